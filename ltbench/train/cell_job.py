"""Run of a grid's cell inside a job of a cluster, on each of its ranks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ltbench.config import plugins
from ltbench.config.recipe import Recipe, Stage
from ltbench.config.validation import build_recipe
from ltbench.files import write_json
from ltbench.train.grid import Cell, run_cell
from ltbench.train.plan import stage_title
from ltbench.train.progress import ProgressBar

REPORT = 5.0  # seconds between progress reports of a job


@dataclass(frozen=True)
class CellJob:
    """Run of a cell as submitit calls it on every rank; its content is plain data.

    Args:
        tree: of the recipe.
        place: working directory.
        report: file for progress and outcome.
    """

    tree: dict[str, Any]
    place: str
    report: str

    def __call__(self) -> None:
        """Run the cell, or go on with it."""
        os.chdir(self.place)
        os.register_at_fork(after_in_child=_default_signals)
        _join()
        from ltbench.distributed import ranks
        from ltbench.distributed.launch import read_launch
        from ltbench.train import run as runner

        plugins.load_installed()
        main = read_launch().rank == 0

        def run(recipe: Recipe) -> Any:
            reporter = _JobProgress(Path(self.report)) if main else None
            result = runner.run(recipe, reporter=reporter, quiet=True)
            return result.found, result.fresh

        try:
            with plugins.of_recipe(str(self.tree["name"]), self.tree):
                recipe = build_recipe(self.tree)
            cell = run_cell(Cell(recipe), run)
        finally:
            ranks.close()
        if cell.problem.startswith("another rank"):
            raise RuntimeError(cell.problem)  # no outcome: the cell is started again
        if main:
            facts = {"outcome": cell.outcome, "problem": cell.problem, "diverged": cell.diverged}
            write_json(Path(self.report), facts)

    def checkpoint(self) -> Any:
        """Return what goes back to the queue: the same run, which has its own checkpoints."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class _JobProgress(ProgressBar):
    """Prints to the output of the job, and writes its progress to a file now and then."""

    def __init__(self, file: Path) -> None:
        super().__init__(Console())
        self.file, self.written, self.label = file, 0.0, ""

    def stage(self, index: int, stage: Stage, steps: int, done: int) -> None:
        """Start a stage."""
        super().stage(index, stage, steps, done)
        self.label = stage_title(index, stage)
        self._write()

    def step(self, loss: Callable[[], float], images: int) -> None:
        """Count one step."""
        super().step(loss, images)
        if time.monotonic() - self.written >= REPORT:
            self._write()

    def _write(self) -> None:
        self.written = time.monotonic()
        write_json(self.file, {"label": self.label, "done": self.done, "steps": self.steps})


def _join() -> None:
    """Set the variables by which the ranks of this job find each other."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)


def _default_signals() -> None:
    """Leave the signals of the cluster to the process of the job, not to its loaders."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    for number in (signal.SIGCONT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
