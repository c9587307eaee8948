from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ltbench.config.recipe import Stage
from ltbench.train.cadence import shown
from ltbench.train.plan import Plan, stage_title

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ltbench.evaluation.metrics import Metrics

REFRESH = 0.5  # seconds between reads of the loss; each one synchronises the device
QUIET_LINE = 10.0  # seconds between lines of a count without a terminal
SILENCE = 60.0  # seconds after which a line is printed within an epoch
ON_IMAGES, STORED = 50, 1  # cost of a step on images and on stored features, for the time left


class NoProgress:
    """Receiver of training progress that shows nothing; the base of those that do."""

    def begin(self, plan: Plan) -> None:
        """The data are loaded; the first step follows."""

    def features(self, images: int) -> None:
        """Features of so many training images are computed or read, before their stage."""

    def stage(self, index: int, stage: Stage, steps: int, done: int) -> None:
        """Stage ``index`` begins or is resumed, with ``done`` of ``steps`` steps finished."""

    def step(self, loss: Callable[[], float], images: int) -> None:
        """A step on ``images`` images of the global batch is finished."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is finished; ``row`` is its line of the curves."""

    def result(self, metrics: Metrics, split: str) -> None:
        """The trained model is evaluated on ``split``, val or test."""

    def close(self) -> None:
        """The run has ended, with or without an error; may be called more than once."""


class ProgressBar(NoProgress):
    """Header, lines for the epochs that the curves show, and on a terminal a bar over the run.

    Without a terminal a line is also printed after a minute without one.

    Args:
        console: the console to print to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=8),
            TextColumn("{task.percentage:>3.0f}%  loss {task.fields[loss]}  {task.fields[speed]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not self.live,
        )
        self.plan: Plan | None = None
        self.task: TaskID | None = None
        self.index, self.count, self.epochs, self.per_epoch = 0, 0, 0, 0
        self.steps, self.done = 0, 0  # of the stage
        self.cost = ON_IMAGES  # of a step of the stage
        self.total, self.before = 0, 0  # cost of the run, and of earlier stages
        self.first, self.started = 0, time.monotonic()  # cost of what was done when we began
        self.images, self.shown, self.printed = 0, self.started, self.started
        self.loss, self.speed = "-", "-"

    def begin(self, plan: Plan) -> None:
        """Print the header."""
        self.plan, self.count, self.total = plan, len(plan.steps), plan_cost(plan)
        for line in plan.lines():
            self._print(line)
        self.first, self.started = plan_cost(plan, plan.done), time.monotonic()

    def features(self, images: int) -> None:
        """Print a line, since a minute may pass without another one."""
        self._print(f"features of {images:,} training images, computed once and stored ...")

    def stage(self, index: int, stage: Stage, steps: int, done: int) -> None:
        """Print the title of a stage, and go on with the bar."""
        plan = self.plan
        self.index, self.epochs, self.steps, self.done = index, stage.epochs or 0, steps, done
        self.per_epoch = 0 if plan is None else plan.per_epoch[index]
        self.cost = step_cost(stage)
        self.before = 0 if plan is None else plan_cost(plan, sum(plan.steps[:index]))
        if plan is None:
            self.total, self.first = self.cost * steps, self.cost * done
            self.started = time.monotonic()
        self.images, self.shown = 0, time.monotonic()
        self._print(stage_title(index, stage, self.count))
        at, total = self._at(), self.total
        if self.task is None:
            self.progress.start()
            self.task = self.progress.add_task(
                self._where(), completed=at, total=total, loss="-", speed=""
            )
        elif plan is None:
            self.progress.reset(self.task, description=self._where(), completed=at, total=total)

    def step(self, loss: Callable[[], float], images: int) -> None:
        """Advance by one step; read the loss at most every ``REFRESH`` seconds."""
        self.done += 1
        self.images += images
        now = time.monotonic()
        passed = now - self.shown
        if passed < REFRESH and self.done < self.steps:
            return
        self.loss, self.speed = f"{loss():.3f}", f"{self.images / max(passed, 1e-9):,.0f} img/s"
        self.images, self.shown = 0, now
        if self.live and self.task is not None:
            self.progress.update(
                self.task,
                completed=self._at(),
                description=self._where(),
                loss=self.loss,
                speed=self.speed,
            )
        elif now - self.printed > SILENCE:
            step = f"step {self.done:,} of {self.steps:,}"
            self._print(f"  {step}, loss {self.loss}, {self.speed}, {self._left()}")

    def epoch(self, row: dict[str, Any]) -> None:
        """Print the line of an epoch that the curves show or that ends a silence."""
        silent = not self.live and time.monotonic() - self.printed > SILENCE
        every = 0 if self.plan is None else self.plan.recipe.run.eval_every
        due = shown(row["epoch"], self.epochs, every)
        if not due and not silent and self.done < self.steps:
            return
        of = f" of {self.epochs}" if self.epochs else ""
        epoch = f"{row['epoch']:>{len(str(self.epochs))}}"
        parts = [f"  epoch {epoch}{of}", f"loss {row['loss']:.3f}"]
        parts += [
            f"{name} {100 * row[f'{name}_top1']:5.2f} %"
            for name in ("train", "val", "test")
            if row.get(f"{name}_top1") is not None
        ]
        self._print("  ".join([*parts, self._left()]))

    def close(self) -> None:
        """Stop the bar and restore the terminal."""
        self.progress.stop()

    def _where(self) -> str:
        """Return the title of the bar: stage and epoch."""
        of = f"/{self.count}" if self.count else ""
        if not self.per_epoch:
            return f"stage {self.index + 1}{of}"
        epoch = min(self.epochs, max(0, self.done - 1) // self.per_epoch + 1)
        return f"stage {self.index + 1}{of} epoch {epoch}/{self.epochs}"

    def _at(self) -> int:
        """Return the cost of what is done."""
        return self.before + self.cost * self.done

    def _left(self) -> str:
        """Return the time left for all stages, at the mean pace so far."""
        at = self._at()
        done = at - self.first
        if at >= self.total or not done:
            return clock(time.monotonic() - self.started)
        pace = (time.monotonic() - self.started) / done
        return f"about {clock(pace * (self.total - at))} left"

    def _print(self, line: str) -> None:
        self.printed = time.monotonic()
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def step_cost(stage: Stage) -> int:
    """Return the cost of a step of a stage."""
    return STORED if stage.features == "cached" else ON_IMAGES


def plan_cost(plan: Plan, steps: int | None = None) -> int:
    """Return the cost of a run, or of so many of its first steps."""
    left, total = sum(plan.steps) if steps is None else steps, 0
    for stage, of_stage in zip(plan.recipe.stages, plan.steps, strict=True):
        total += step_cost(stage) * min(left, of_stage)
        left -= min(left, of_stage)
    return total


def default_progress() -> NoProgress:
    """Return the progress display of `ltbench.run`: on a terminal or in a notebook, else none."""
    console = Console(stderr=True)
    return ProgressBar(console) if console.is_terminal or console.is_jupyter else NoProgress()


def clock(seconds: float) -> str:
    """Return a duration as ``h:mm:ss``."""
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def counting(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a progress callback ``(name, done, total)``: one bar per name, or lines in a log."""
    tasks: dict[str, Any] = {}
    printed: dict[str, float] = {}
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )

    def update(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = progress.add_task(name, total=total)
        progress.update(tasks[name], completed=done, total=total)
        now = time.monotonic()
        if not console.is_terminal and now - printed.setdefault(name, now) > QUIET_LINE:
            console.print(f"{name}  {done:,}/{total:,}")
            printed[name] = now

    with progress:
        yield update
