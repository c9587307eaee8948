from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ltbench.config.recipe import Stage

REFRESH = 0.5  # seconds between reads of the loss; each one synchronises the device
QUIET_LINE = 10.0  # seconds between lines without a terminal


class Reporter(Protocol):
    """Receives training progress; implementations may display it."""

    def stage(self, index: int, stage: Stage, steps: int, done: int) -> None:
        """Stage ``index`` begins or is resumed, with ``done`` of ``steps`` steps finished."""

    def step(self, loss: Callable[[], float], images: int) -> None:
        """A step on ``images`` images of the global batch is finished."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch is finished; ``row`` is its line of the curves."""


class NoProgress:
    """Progress callbacks that do nothing, for ranks other than 0 and for library use."""

    def stage(self, index: int, stage: Stage, steps: int, done: int) -> None:
        """Ignore."""

    def step(self, loss: Callable[[], float], images: int) -> None:
        """Ignore."""

    def epoch(self, row: dict[str, Any]) -> None:
        """Ignore."""

    def close(self) -> None:
        """Ignore."""


class ProgressBar(NoProgress):
    """Progress bar with loss, images per second and time left; plain lines without a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s  left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self.live,
        )
        self.task: Any = None
        self.label, self.steps, self.done = "", 0, 0
        self.images, self.shown, self.printed = 0, time.monotonic(), 0.0
        self.progress.start()

    def stage(self, index: int, stage: Stage, steps: int, done: int) -> None:
        """Start the bar of a stage."""
        if self.task is not None:
            self.progress.stop_task(self.task)
        update = "" if stage.update.name == "plain" else f" + {stage.update.name}"
        self.label = f"stage {index}: {stage.method.name}{update}"
        self.steps, self.done = steps, done
        self.images, self.shown = 0, time.monotonic()
        self.task = self.progress.add_task(
            self.label, total=steps, completed=done, loss="-", speed="-"
        )

    def step(self, loss: Callable[[], float], images: int) -> None:
        """Advance by one step; read the loss at most every ``REFRESH`` seconds."""
        self.done += 1
        self.images += images
        now = time.monotonic()
        passed = now - self.shown
        if passed < REFRESH and self.done < self.steps:
            return
        value, speed = f"{loss():.3f}", f"{self.images / max(passed, 1e-9):.0f}"
        self.images, self.shown = 0, now
        if self.live:
            self.progress.update(self.task, completed=self.done, loss=value, speed=speed)
        elif now - self.printed > QUIET_LINE or self.done == self.steps:
            self.printed = now
            self.console.print(
                f"{self.label}  {self.done}/{self.steps}  loss {value}  {speed} images/s"
            )

    def close(self) -> None:
        """Stop the bar and restore the terminal."""
        self.progress.stop()


@contextmanager
def counting(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a progress callback ``(name, done, total)`` with one bar per name."""
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
        if not console.is_terminal and (now - printed.get(name, now) > QUIET_LINE or done == total):
            console.print(f"{name}  {done:,}/{total:,}")
            printed[name] = now
        printed.setdefault(name, now)

    with progress:
        yield update
