"""Cost of the log of class gradients (`diagnose.every=N`), as a ratio to training without it.

Usage:
  python tools/bench/watch.py [every=20] [pipeline=plain] [rounds=5]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field
from rich.console import Console

from ltbench.bench.steps import Case, Steps
from ltbench.bench.words import Name
from ltbench.config.recipe import Diagnose
from ltbench.config.schema import Config
from ltbench.config.words import read_words
from ltbench.errors import UserError
from ltbench.methods.base import Progress
from ltbench.train.watch import Watch
from ltbench.updates.base import StepRun, Update


@dataclass(frozen=True)
class Overhead:
    """Blocks of steps with the log and without, in turn.

    Args:
        every: steps of a block, of which one is looked at.
        pipeline: of ``ltbench.bench.steps``.
        ratio: median over turns of time with over time without.
        spread: smallest and largest such ratio.
        look: what a look costs, in steps of the pipeline without log; median.
    """

    every: int
    pipeline: str
    ratio: float
    spread: tuple[float, float]
    look: float


def measure(
    every: int = 20, case: Case | None = None, *, pipeline: str = "plain", rounds: int = 5
) -> Overhead:
    """Time blocks of ``every`` steps with one look and without, in turn, after one of each.

    Files are written as in training, those of each block as an epoch of its own.

    Args:
        every: steps from look to look.
        case: what is trained; by default that of ``Case``.
        pipeline: of ``ltbench.bench.steps``.
        rounds: timed blocks of each.
    """
    steps = Steps(case or Case())
    run, update = steps.make(pipeline)
    other, plain = steps.make(pipeline)
    ratios, looks = [], []
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(update, Diagnose(every=every), Path(folder), per_epoch=every)
        for turn in range(rounds + 1):
            without = _block(steps, other, plain, every, turn)
            began = time.perf_counter()
            _block(steps, run, watch, every, turn)
            watch.flush()
            with_log = time.perf_counter() - began
            if turn:
                ratios.append(with_log / without)
                looks.append((with_log - without) / (without / every))
    middle, look = statistics.median(ratios), statistics.median(looks)
    return Overhead(every, pipeline, middle, (min(ratios), max(ratios)), look)


class Words(Config):
    """Words of this script."""

    every: int = Field(20, ge=1)
    pipeline: Name = "plain"
    rounds: int = Field(5, ge=1)


def report(words: Sequence[str], console: Console) -> None:
    """Measure and print.

    Args:
        words: see ``Words``.
        console: where the line goes.

    Raises:
        UserError: a word or a value is unknown.
    """
    given = read_words(words, Words)
    found = measure(given.every, pipeline=given.pipeline, rounds=given.rounds)
    low, high = found.spread
    console.print(
        f"{found.pipeline}, a look every {found.every} steps: {found.ratio:.3f} times the time "
        f"without ({low:.3f} to {high:.3f}); a look costs {found.look:.1f} steps"
    )


def _block(steps: Steps, run: StepRun, update: Update, size: int, epoch: int) -> float:
    began = time.perf_counter()
    at = Progress(0, 0, epoch, epoch + 1, 0, lr=1e-4)
    for step in range(size):
        update.step(run, [steps.batch], replace(at, step=step))
    return time.perf_counter() - began


if __name__ == "__main__":
    try:
        report(sys.argv[1:], Console(highlight=False))
    except UserError as error:
        sys.exit(f"error: {error}")
