"""Several runs of a grid at once, on one machine: processes that take one cell after the other."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ltbench.errors import UserError
from ltbench.grid import Cell, known, run_cell
from ltbench.report import Silent

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from multiprocessing.process import BaseProcess

    from ltbench.recipe import Stage

THREADS = "OMP_NUM_THREADS"
PAUSE = 1.0  # seconds between two messages of how far a run is
PATIENCE = 10.0  # seconds that a process has to stop


@dataclass(frozen=True)
class Note:
    """A warning of a run."""

    text: str


@dataclass(frozen=True)
class Place:
    """How far a stage of a run is: ``done`` of ``steps`` steps."""

    label: str
    done: int
    steps: int


class Board:
    """Shows a grid: a line where a run ends, and on a terminal a bar for each run at work.

    Args:
        console: where.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[int, Any] = {}
        self._since: dict[int, float] = {}

    def begin(self, number: int, cell: Cell) -> None:
        """Show that a cell's turn has come."""
        self._since[number] = time.monotonic()
        self._tasks[number] = self.progress.add_task(escape(title(cell)), total=None)

    def place(self, number: int, cell: Cell, at: Place) -> None:
        """Show how far it is."""
        text = escape(f"{title(cell)}: {at.label}")
        task = self._tasks[number]
        self.progress.update(task, description=text, completed=at.done, total=at.steps)

    def note(self, cell: Cell, text: str) -> None:
        """Show a warning."""
        self._line(cell, text)

    def end(self, number: int, cell: Cell) -> None:
        """Show what became of it."""
        text: str = cell.outcome or ""
        if cell.outcome == "failed":
            text += f": {cell.problem}"
        elif cell.record is not None:
            text += f", {100 * cell.record.metrics.top1:.2f} % overall"
        if cell.outcome == "done":
            text += f", {time.monotonic() - self._since[number]:.0f} s"
        if number in self._tasks:
            self.progress.remove_task(self._tasks.pop(number))
        self._line(cell, text)

    def _line(self, cell: Cell, text: str) -> None:
        for line in text.splitlines():
            self.console.print(escape(f"{title(cell)}: {line}"), soft_wrap=True)


def title(cell: Cell) -> str:
    """Return how lines name a cell."""
    return f"{cell.recipe.name}, seed {cell.recipe.seed}"


def run_jobs(cells: Sequence[Cell], jobs: int, board: Board) -> list[Cell]:
    """Run cells in some processes at once; neither a failure nor a crash stops the others.

    The processes divide torch's threads among them, unless ``OMP_NUM_THREADS`` or the recipe's
    ``run.threads`` says how many each has. They end with this one, however it ends.

    Args:
        cells: from ``ltbench.grid.make_grid``.
        jobs: processes at once.
        board: is told what happens.
    """
    done = known(cells)
    waiting = deque(number for number, cell in enumerate(done) if cell.outcome is None)
    for number, cell in enumerate(done):
        if cell.outcome is not None:
            board.end(number, cell)
    jobs = min(jobs, len(waiting))
    _fetch([done[number] for number in waiting])
    workers: dict[Any, _Worker] = {}
    others = set(multiprocessing.active_children())
    try:
        with board.progress:
            while waiting or workers:
                while waiting and len(workers) < jobs:
                    worker = _Worker(jobs)
                    workers[worker.connection] = worker
                    worker.take(waiting, done, board)
                for connection in wait(list(workers)):
                    worker = workers[connection]
                    number = worker.number
                    message = worker.receive(done[number])
                    if isinstance(message, Place):
                        board.place(number, done[number], message)
                    elif isinstance(message, Note):
                        board.note(done[number], message.text)
                    else:
                        done[number] = message
                        board.end(number, message)
                        if waiting and worker.process.is_alive():
                            worker.take(waiting, done, board)
                        else:
                            worker.let_go()
                            del workers[connection]
    finally:
        _stop([p for p in multiprocessing.active_children() if p not in others])
    return done


class _Worker:
    """A process and the cell it works on."""

    def __init__(self, jobs: int) -> None:
        context = multiprocessing.get_context("spawn")  # a GPU does not survive a fork
        self.connection, theirs = context.Pipe()
        self.number = -1
        self.process: SpawnProcess = context.Process(
            target=_work, args=(theirs, warnings.formatwarning)
        )
        with _share_of_threads(jobs):
            self.process.start()
        theirs.close()  # or the end of the process would not be the end of the pipe

    def take(self, waiting: deque[int], done: Sequence[Cell], board: Board) -> None:
        """Give it the next cell."""
        self.number = waiting.popleft()
        board.begin(self.number, done[self.number])
        with contextlib.suppress(OSError):  # it is dead: the next look finds the pipe closed
            self.connection.send(done[self.number])

    def receive(self, cell: Cell) -> Cell | Note | Place:
        """Return what it says; if it has died, that its cell failed."""
        try:
            message: Cell | Note | Place = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            problem = f"its process ended with exit code {code}; what it said stands above"
            return replace(cell, outcome="failed", problem=problem)
        return message

    def let_go(self) -> None:
        """Have it end; there is nothing left to do."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.connection.close()
        self.process.join()


@contextlib.contextmanager
def _share_of_threads(jobs: int) -> Iterator[None]:
    """Inside, a process that starts gets its share of the threads."""
    if THREADS in os.environ:
        yield
        return
    import torch

    os.environ[THREADS] = str(max(1, torch.get_num_threads() // jobs))
    try:
        yield
    finally:
        del os.environ[THREADS]


def _fetch(cells: Sequence[Cell]) -> None:
    """Have data sets that are to be downloaded fetched once, before processes do it at once."""
    configs = [c.recipe.data.config for c in cells]
    for number, config in enumerate(configs):
        if getattr(config, "download", False) and config not in configs[:number]:
            with contextlib.suppress(UserError):  # the runs say it themselves
                config.load()  # type: ignore[attr-defined]


def _stop(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()


# In the processes ----------------------------------------------------------------------------


def _work(connection: Connection, formatwarning: Callable[..., str]) -> None:
    """Run the cells that come; say how far they are and what became of them."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent decides
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        lock = threading.Lock()  # checkpoints are written by a thread, which may warn

        def send(message: Cell | Note | Place) -> None:
            with lock:
                connection.send(message)

        warnings.formatwarning = formatwarning
        logging.captureWarnings(True)
        logging.getLogger().addHandler(_Sending(send))
        from ltbench import runner

        def run(recipe: Any) -> Any:
            result = runner.run(recipe, reporter=_Telling(send))
            return result.record, result.fresh

        while (cell := connection.recv()) is not None:
            send(run_cell(cell, run))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        pass


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Telling(Silent):
    """Sends how far a run is, now and then."""

    def __init__(self, send: Callable[[Place], None]) -> None:
        self.send = send
        self.at, self.sent = Place("", 0, 0), 0.0

    def stage(self, index: int, stage: Stage, steps: int, done: int) -> None:
        """Begin with a stage."""
        update = "" if stage.update.name == "plain" else f" + {stage.update.name}"
        self.at = Place(f"stage {index}: {stage.method.name}{update}", done, steps)

    def step(self, loss: Callable[[], float], images: int) -> None:
        """Count a step."""
        self.at = replace(self.at, done=self.at.done + 1)
        now = time.monotonic()
        if now - self.sent >= PAUSE:
            self.sent = now
            self.send(self.at)


class _Sending(logging.Handler):
    """Sends what is logged."""

    def __init__(self, send: Callable[[Note], None]) -> None:
        super().__init__(logging.WARNING)
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send one message."""
        self.send(Note(record.getMessage().strip()))
