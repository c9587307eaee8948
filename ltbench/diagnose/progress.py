"""Time that diagnostics need: an estimate before, a bar or lines of a log meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from ltbench.diagnose.report import duration
from ltbench.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from ltbench.diagnose.base import Diagnostic, Subject

Count = Callable[[str, int, int], None]

PROBE = 32  # images that are timed
SILENCE = 15.0  # seconds without a terminal after which a line is printed


def estimates(
    diagnostics: Mapping[str, Diagnostic], subjects: Sequence[Subject]
) -> dict[str, float]:
    """Return the expected seconds of each diagnostic over all subjects.

    A few images, and one step of each long measurement, are timed on each subject.

    Args:
        diagnostics: by name.
        subjects: the models.
    """
    found = dict.fromkeys(diagnostics, 0.0)
    for subject in subjects:
        forward = seconds_per_image(subject)
        for name, diagnostic in diagnostics.items():
            with suppress(UserError):  # reported by the measurement
                found[name] += diagnostic.estimate(subject, forward)
    return found


def seconds_per_image(subject: Subject) -> float:
    """Return the time to load a test image and pass it through the model, in seconds."""
    from ltbench.diagnose.predictions import see

    order = np.arange(min(PROBE, len(subject.data.test)))
    return timed(lambda: [seen.logits.cpu() for seen in see(subject, subject.data.test, order)]) / (
        max(1, len(order))
    )


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds of the second of two calls; the first one warms up."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def estimate_line(found: Mapping[str, float]) -> str:
    """Return the estimated durations as one line, the longest first."""
    long = {name: s for name, s in found.items() if s >= 1}
    parts = [f"{n} {duration(s)}" for n, s in sorted(long.items(), key=lambda one: -one[1])]
    if len(long) < len(found):
        parts.append("the others less than a second each" if long else "less than a second each")
    return f"estimated time: {duration(sum(found.values()))} and drawing ({', '.join(parts)})"


@contextmanager
def watching(console: Console) -> Iterator[Count]:
    """Yield a callback ``(name, done, total)``: a bar on a terminal, else a line now and then."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    live = console.is_terminal
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        Remaining(),
        console=console,
        disable=not live,
        transient=True,
    )
    task = bar.add_task("", total=1, visible=False)
    began = printed = time.monotonic()

    def count(name: str, done: int, total: int) -> None:
        nonlocal began, printed
        now = time.monotonic()
        if done == 0:
            began = printed = now
            bar.reset(task, total=total, description=name, visible=True)
        bar.update(task, completed=done, visible=done < total)
        if not live and 0 < done < total and now - printed > SILENCE:
            printed = now
            left = duration((now - began) / done * (total - done))
            line = f"{name}: {done:,} of {total:,}, about {left} left"
            console.print(line, markup=False, soft_wrap=True)

    with bar:
        yield count
