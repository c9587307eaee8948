"""Runs of a grid as jobs of a cluster, submitted by submitit and brought to one table."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ltbench.config.launcher import Launcher
from ltbench.config.recipe import Recipe
from ltbench.digest import read_json
from ltbench.errors import UserError
from ltbench.files import write_json
from ltbench.records.record import LOCK
from ltbench.train.cell_job import CellJob
from ltbench.train.folder import results_file, run_folder
from ltbench.train.grid import Cell, run_cell
from ltbench.train.jobs import GridProgress, StageProgress, download_data, limited_threads

FOLDER = "launcher"  # of jobs and their output
JOBS = "jobs.json"  # number and starts of the job of each run
PAUSE = 1.0  # seconds between looks at the jobs
NOTICE = 8  # jobs that are listed by number


def run_cluster(
    cells: Sequence[Cell],
    launcher: Launcher,
    board: GridProgress,
    folder: Path,
    seen: dict[str, Any] | None = None,
) -> list[Cell]:
    """Run cells as jobs; the failure of one does not stop the others.

    A job that was preempted, ran out of time or was killed is started again and goes on from its
    last checkpoint. If this process ends, the jobs of a cluster go on; the next call finds
    finished cells by their records, jobs by their numbers and running ones by their folders' locks.

    Args:
        cells: of a grid, some perhaps with an outcome.
        launcher: what each job asks for.
        board: progress display.
        folder: of the jobs and their output, on a file system of all machines.
        seen: images of data sets read before; is added to.

    Raises:
        UserError: submitit is missing, or refuses the executor or its parameters.
    """
    executor = _executor(launcher, folder, cells)
    done = list(cells)
    watch = _Jobs(launcher, executor, board, folder, done, {} if seen is None else seen)
    for number, cell in enumerate(done):
        if cell.outcome is not None:
            board.end(number, cell)
        elif _has_results(cell.recipe):
            watch.finish(number, "was done")
        else:
            watch.open[number] = _Job()
    download_data([done[number] for number in watch.open])
    with board.progress:
        watch.find()
        watch.submit()
        if not launcher.wait:
            return [c if c.outcome else replace(c, outcome="elsewhere") for c in done]
        try:
            while watch.open:
                watch.look()
                watch.submit()
                if watch.open:
                    time.sleep(PAUSE)
        except KeyboardInterrupt:
            watch.note_rest()
            raise
    return done


@dataclass
class _Job:
    """Job of a cell.

    Args:
        handle: submitit's; ``None`` before it is submitted, or if another process runs the cell.
        starts: times that it was submitted.
        busy: another process runs the cell.
    """

    handle: Any = None
    starts: int = 0
    busy: bool = False


class _Jobs:
    """Jobs of the cells that are not finished.

    Attributes:
        open: jobs by the number of their cell.
    """

    def __init__(
        self,
        launcher: Launcher,
        executor: Any,
        board: GridProgress,
        folder: Path,
        cells: list[Cell],
        seen: dict[str, Any],
    ) -> None:
        self.launcher, self.executor, self.board = launcher, executor, board
        self.folder, self.cells, self.seen = folder, cells, seen
        self.open: dict[int, _Job] = {}
        local = launcher.executor in ("local", "debug")
        self.most = launcher.array_parallelism or (1 if local else len(cells))

    def find(self) -> None:
        """Find jobs that an earlier command has submitted and that may still be queued."""
        if self.launcher.executor != "slurm":
            return  # others run on this machine: the locks of their folders show them
        import submitit

        before = _read(self.folder / JOBS)
        tasks = range(self.launcher.nodes * self.executor.parameters.get("ntasks_per_node", 1))
        for number, job in self.open.items():
            found = before.get(_name(self.cells[number].recipe), {})
            if "job" not in found:
                continue
            handle: Any = submitit.SlurmJob(self.folder, str(found["job"]), list(tasks))
            if handle.state != "UNKNOWN" and not handle.done():
                job.handle, job.starts = handle, int(found.get("starts", 1))
                self.board.begin(number, self.cells[number])

    def submit(self) -> None:
        """Submit the cells that wait, as many as may run at a time."""
        running = sum(job.handle is not None for job in self.open.values())
        idle = [n for n, job in self.open.items() if job.handle is None and not job.busy]
        room = len(idle) if self.launcher.executor == "slurm" else max(0, self.most - running)
        due = idle[:room]
        if not due:
            return
        tasks = []
        for number in due:
            recipe = self.cells[number].recipe
            report = self.folder / f"{_name(recipe)}.json"
            report.unlink(missing_ok=True)
            tasks.append(CellJob(recipe.tree(), str(Path.cwd()), str(report)))
            if not self.open[number].starts:
                self.board.begin(number, self.cells[number])
        local = self.launcher.executor in ("local", "debug")
        with limited_threads(self.most) if local else nullcontext(), self.executor.batch():
            handles = [self.executor.submit(task) for task in tasks]
        for number, handle in zip(due, handles, strict=True):
            self.open[number].handle = handle
            self.open[number].starts += 1
            self.board.place(number, self.cells[number], StageProgress("queued", 0, 0))
        self._keep()

    def look(self) -> None:
        """Look at each job: what it reports, and whether it has ended."""
        for number, job in list(self.open.items()):
            cell = self.cells[number]
            if job.handle is None:
                if job.busy and not in_use(run_folder(cell.recipe)):
                    job.busy = False
                    if _has_results(cell.recipe):
                        self.finish(number, "was done")
                continue
            report = _read(self.folder / f"{_name(cell.recipe)}.json")
            ended = job.handle.done()
            report = _read(self.folder / f"{_name(cell.recipe)}.json") if ended else report
            if "outcome" in report:
                self._end(number, report)
            elif ended:
                self._lost(number)
            elif "label" in report:
                at = StageProgress(report["label"], report["done"], report["steps"])
                self.board.place(number, cell, at)

    def finish(self, number: int, outcome: Any) -> None:
        """Read the results of a finished cell."""
        cell = run_cell(self.cells[number], lambda recipe: (_results(recipe, self.seen), False))
        if cell.outcome == "was done":
            cell = replace(cell, outcome=outcome)
        self._close(number, cell)

    def note_rest(self) -> None:
        """Print that the jobs go on without this command."""
        rest = [str(job.handle.job_id) for job in self.open.values() if job.handle is not None]
        if rest and self.launcher.executor == "slurm":
            self.board.console.print(
                f"jobs {_listed(rest)} go on; `scancel {' '.join(rest)}` ends them", soft_wrap=True
            )

    def _end(self, number: int, report: dict[str, Any]) -> None:
        """Close a cell whose job has reported its outcome."""
        outcome, cell = report["outcome"], self.cells[number]
        if outcome == "elsewhere":
            self.open[number] = replace(self.open[number], handle=None, busy=True)
        elif outcome == "failed":
            problem, diverged = report["problem"], bool(report.get("diverged"))
            self._close(number, replace(cell, outcome="failed", problem=problem, diverged=diverged))
        else:
            self.finish(number, outcome)

    def _lost(self, number: int) -> None:
        """Start a cell again whose job has ended without an outcome, or give it up."""
        job, cell = self.open[number], self.cells[number]
        if _has_results(cell.recipe):
            self.finish(number, "done")
        elif in_use(run_folder(cell.recipe)):
            self.open[number] = replace(job, handle=None, busy=True)
        elif job.starts > self.launcher.restarts:
            place = job.handle.paths.stderr
            times = "once" if job.starts == 1 else f"{job.starts} times"
            problem = f"its job ended {times} without results; see {place}"
            self._close(number, replace(cell, outcome="failed", problem=problem))
        else:
            self.board.note(cell, f"job {job.handle.job_id} was lost; started again")
            self.open[number] = replace(job, handle=None)

    def _close(self, number: int, cell: Cell) -> None:
        self.cells[number] = cell
        self.open.pop(number, None)
        self.board.end(number, cell)

    def _keep(self) -> None:
        """Write the numbers of the jobs to their folder."""
        jobs = _read(self.folder / JOBS)
        for number, job in self.open.items():
            if job.handle is not None:
                facts = {"job": str(job.handle.job_id), "starts": job.starts}
                jobs[_name(self.cells[number].recipe)] = facts
        write_json(self.folder / JOBS, jobs)


def _executor(launcher: Launcher, folder: Path, cells: Sequence[Cell]) -> Any:
    """Return submitit's executor with the launcher's parameters."""
    if importlib.util.find_spec("submitit") is None:
        raise UserError(
            "`launcher` needs submitit, which is not installed: pip install 'ltbench[slurm]'"
        )
    import submitit

    name = launcher.executor
    limits = {f"{own}_max_num_timeout": launcher.restarts for own in ("slurm", "local")}
    try:
        executor = submitit.AutoExecutor(folder, cluster=name, **limits)
        parameters = launcher.parameters(_gpus(launcher, cells))
        executor.update_parameters(name="ltbench", **parameters)
    except (ValueError, NameError, RuntimeError, AssertionError, TypeError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"`launcher={name}`: {text}") from error
    return executor


def _gpus(launcher: Launcher, cells: Sequence[Cell]) -> int:
    """Return the GPUs of a machine: as given, else one unless the runs are on the CPU."""
    if launcher.gpus is not None:
        return launcher.gpus
    if launcher.ranks is not None or all(c.recipe.run.device == "cpu" for c in cells):
        return 0
    if launcher.executor == "slurm":
        return 1
    import torch

    return min(1, torch.cuda.device_count())


def in_use(folder: Path) -> bool:
    """Return whether a process is running in the folder of a run."""
    lock = folder / LOCK
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _has_results(recipe: Recipe) -> bool:
    return (run_folder(recipe) / results_file(recipe)).is_file()


def _results(recipe: Recipe, seen: dict[str, Any]) -> Any:
    """Return the results of a finished run; needs none of its devices."""
    from ltbench.train.claim import RunFolder

    folder = RunFolder(recipe)
    try:
        if not folder.claim():
            raise UserError(f"{folder.path} has no {folder.results}; give the command again")
        return folder.finished(seen)
    finally:
        folder.release()


def _name(recipe: Recipe) -> str:
    """Return the name that the files of a cell's job share."""
    part = "" if recipe.run.evaluate == "test" else f"-{recipe.run.evaluate}"
    return f"{recipe.name}-{recipe.digest[:8]}-seed{recipe.seed}{part}"


def _read(file: Path) -> dict[str, Any]:
    """Return the content of a file of JSON; nothing if it is missing or damaged."""
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _listed(numbers: Sequence[str]) -> str:
    more = f" and {len(numbers) - NOTICE} more" if len(numbers) > NOTICE else ""
    return ", ".join(numbers[:NOTICE]) + more
