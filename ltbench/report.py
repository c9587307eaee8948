from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ltbench.recipe import Stage

REFRESH = 0.5  # seconds between looks at the loss; each one waits for the device
QUIET_LINE = 10.0  # seconds between lines where there is no terminal


class Silent:
    """Shows nothing: ranks other than the first, and library use."""

    def stage(self, index: int, stage: Stage, steps: int, done: int) -> None:
        """Ignore."""

    def step(self, loss: Callable[[], float], images: int) -> None:
        """Ignore."""

    def epoch(self, row: dict[str, Any]) -> None:
        """Ignore."""

    def close(self) -> None:
        """Ignore."""


class Bar(Silent):
    """A progress bar with loss, images per second and time left; plain lines without a terminal."""

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
        """Begin a bar for a stage."""
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
        """Advance; look at the loss only now and then."""
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
        """Leave the terminal as it was."""
        self.progress.stop()


@contextmanager
def counting(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that is told ``(what, done, total)`` and shows one bar for each ``what``."""
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

    def tell(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = progress.add_task(what, total=total)
        progress.update(tasks[what], completed=done, total=total)
        now = time.monotonic()
        if not console.is_terminal and (now - printed.get(what, now) > QUIET_LINE or done == total):
            console.print(f"{what}  {done:,}/{total:,}")
            printed[what] = now
        printed.setdefault(what, now)

    with progress:
        yield tell
