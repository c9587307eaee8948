"""Attacks in rows: something honest is damaged, used as a user would, and the outcome counted."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltbench.errors import UserError

RIGHT, CAUGHT, SILENT, TRACEBACK, HUNG = "right", "caught", "silently wrong", "traceback", "hung"
OUTCOMES = (RIGHT, CAUGHT, SILENT, TRACEBACK, HUNG)
BAD = (SILENT, TRACEBACK, HUNG)
MEMORY = 3 * 2**30  # bytes of address space that an attack may take on top of what is there
LINE = 1500  # characters of a message's line


class Hung(BaseException):
    """Ends an attack that takes too long."""


@dataclass(frozen=True)
class Row:
    """One experiment.

    Args:
        name: what the table calls it.
        tries: attacks in a whole run.
        honest: function of an empty folder that puts what is attacked there.
        damage: function of a copy of it, a random generator and the attack's number.
        use: function of the copy that does what a user does and returns what comes out.
        seconds: limit of one attack.
        sample: attacks in a quick run.
        isolated: a process of its own for each attack.
    """

    name: str
    tries: int
    honest: Callable[[Path], object]
    damage: Callable[[Path, random.Random, int], object]
    use: Callable[[Path], object]
    seconds: float = 20.0
    sample: int = 0
    isolated: bool = False


@dataclass
class Count:
    """What came of the attacks of a row."""

    row: str
    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)  # of what should not have been

    @property
    def bad(self) -> int:
        return sum(self.outcomes[name] for name in BAD)


def run_row(row: Row, tries: int, seed: int, scratch: Path, deadline: float | None = None) -> Count:
    """Try the attacks of a row in forked processes and count what came of them.

    Args:
        row: the experiment.
        tries: number of attacks.
        seed: of the attacks.
        scratch: empty folder.
        deadline: time of ``time.monotonic`` after which no attack begins.
    """
    count = Count(row.name)
    honest = scratch / "honest"
    honest.mkdir(parents=True)
    (expected,) = _forked(lambda: _made(row, honest), 300.0)
    if expected[0] != RIGHT:
        raise RuntimeError(f"{row.name}: the honest one fails: {expected[1]}")
    number = 0
    while number < tries and (deadline is None or time.monotonic() < deadline):
        block = range(number, min(tries, number + (1 if row.isolated else 50)))
        found = _forked(
            lambda block=block: _attacks(row, block, seed, honest, scratch, expected[1], deadline),
            row.seconds,
        )
        for outcome, said in found:
            count.tried += 1
            count.outcomes[outcome] += 1
            if outcome in BAD:
                count.examples.append(f"{row.name} #{number}: {outcome}: {said}")
            number += 1
        if not found:
            break
    return count


def _made(row: Row, honest: Path) -> Iterator[tuple[str, str]]:
    row.honest(honest)
    copy = honest.with_name("tried")
    shutil.copytree(honest, copy, symlinks=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = _used(row, copy)
    yield RIGHT, found


def _used(row: Row, folder: Path) -> str:
    return repr(row.use(folder))


def _attacks(
    row: Row,
    block: Sequence[int],
    seed: int,
    honest: Path,
    scratch: Path,
    expected: str,
    deadline: float | None,
) -> Iterator[tuple[str, str]]:
    for number in block:
        if deadline is not None and time.monotonic() > deadline:
            return
        rng = random.Random(zlib.crc32(f"{row.name} {seed} {number}".encode()))
        copy = scratch / f"copy{number}"
        shutil.copytree(honest, copy, symlinks=True)
        try:
            yield _outcome(row, copy, rng, number, expected)
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def _outcome(
    row: Row, copy: Path, rng: random.Random, number: int, expected: str
) -> tuple[str, str]:
    note = str(row.damage(copy, rng, number) or "")
    out, err = io.StringIO(), io.StringIO()
    signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, row.seconds)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = _used(row, copy)
    except UserError as error:
        return _judged(str(error), note)
    except SystemExit as error:
        if error.code == 2:
            said = err.getvalue()
            if not said.replace("\n", "").replace("\t", "").isprintable():
                return SILENT, f"{note}: the terminal gets {said[:200]!r}"
            return _judged(said, note)
        return TRACEBACK, f"{note}: exit code {error.code}: {err.getvalue()[-300:]}"
    except Hung:
        return HUNG, f"{note}: over {row.seconds:g} s at {_where()}"
    except MemoryError:
        return HUNG, f"{note}: over {MEMORY:,} bytes at {_where()}"
    except BaseException as error:  # anything else is what the table counts
        return TRACEBACK, f"{note}: {type(error).__name__}: {str(error)[:200]} at {_where()}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if found != expected:
        return SILENT, f"{note}: {_difference(expected, found)}"
    return RIGHT, ""


def _judged(message: str, note: str) -> tuple[str, str]:
    """Return whether a message is one for a user."""
    lines = [line for line in message.split("\n") if line]
    if not lines or "Traceback" in message:
        return TRACEBACK, f"{note}: {message[-300:]}"
    long = [line for line in lines if len(line) > LINE]
    if long:
        return TRACEBACK, f"{note}: a line of {len(long[0])} characters: {long[0][:200]!r}"
    return CAUGHT, ""


def _difference(expected: str, found: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), 0)
    start = max(0, at - 20)
    return f"expected ...{expected[start : at + 60]}, found ...{found[start : at + 60]}"


def _alarm(*_: object) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.5)  # again, should someone swallow it
    raise Hung


def _where() -> str:
    frames = traceback.extract_tb(sys.exc_info()[2])
    ours = [frame for frame in frames if "/ltbench/" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"


def _forked(work: Callable[[], Iterator[tuple[str, str]]], seconds: float) -> list[tuple[str, str]]:
    """Do work in a forked process, and return what it yields; after a silence it is killed."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork where threads may be
        child = os.fork()
    if not child:
        code = 1
        try:
            os.close(reading)
            os.setsid()
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)  # the Hub's client tells of each of its tries
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            with os.fdopen(writing, "wb", buffering=0) as pipe:
                for item in work():
                    pipe.write(json.dumps(item).encode() + b"\n")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    data, why = b"", ""
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], seconds + 10)
            if not ready:
                why = HUNG
                break
            chunk = pipe.read(2**16)
            if not chunk:
                break
            data += chunk
    if why:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    found: list[tuple[str, str]] = [tuple(json.loads(line)) for line in data.splitlines()]
    if why:
        found.append((HUNG, f"silent for {seconds + 10:g} s, killed"))
    elif status:
        found.append((TRACEBACK, f"the process ended with status {status}"))
    return found


def table(counts: Sequence[Count]) -> str:
    """Return the counts as a Markdown table."""
    head = ["experiment", "tried", "went on right", *OUTCOMES[1:]]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    whole = Count("**all**", sum(c.tried for c in counts))
    for count in counts:
        whole.outcomes.update(count.outcomes)
    for count in [*counts, whole]:
        cells: list[Any] = [count.row, count.tried]
        cells += [count.outcomes[name] or "" for name in OUTCOMES]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
