"""Pool of processes that run the cells of a grid in parallel on one machine."""

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
from ltbench.machine import JOBS
from ltbench.train.grid import Cell, known, run_cell
from ltbench.train.plan import stage_title
from ltbench.train.progress import NoProgress

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess
    from multiprocessing.process import BaseProcess

    from ltbench.config.recipe import Stage

THREADS = "OMP_NUM_THREADS"
PAUSE = 1.0  # seconds between progress messages of a run
GRACE = 10.0  # seconds before a terminated process is killed


@dataclass(frozen=True)
class LogMessage:
    """Warning of a run."""

    text: str


@dataclass(frozen=True)
class StageProgress:
    """Progress of a stage: ``done`` of ``steps`` steps."""

    label: str
    done: int
    steps: int


class GridProgress:
    """Progress of a grid: a line per finished run and, on a terminal, a bar per active run.

    Args:
        console: the console to print to.
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
        """Start the bar of a cell."""
        self._since[number] = time.monotonic()
        self._tasks[number] = self.progress.add_task(escape(title(cell)), total=None)

    def place(self, number: int, cell: Cell, at: StageProgress) -> None:
        """Update the bar of a cell."""
        text = escape(f"{title(cell)}: {at.label}")
        task = self._tasks[number]
        self.progress.update(task, description=text, completed=at.done, total=at.steps)

    def note(self, cell: Cell, text: str) -> None:
        """Print a warning of a cell."""
        self._line(cell, text)

    def end(self, number: int, cell: Cell) -> None:
        """Print the outcome of a cell and remove its bar."""
        text: str = cell.outcome or ""
        if cell.outcome == "failed":
            text += f": {cell.problem}"
        elif cell.record is not None:
            text += f", {100 * cell.record.metrics.top1:.2f} % overall"
        elif cell.validation is not None:
            text += f", {100 * cell.validation.metrics.mean_recall:.2f} % val, balanced"
        if cell.outcome == "done":
            text += f", {time.monotonic() - self._since[number]:.0f} s"
        if number in self._tasks:
            self.progress.remove_task(self._tasks.pop(number))
        self._line(cell, text)

    def _line(self, cell: Cell, text: str) -> None:
        for line in text.splitlines():
            self.console.print(escape(f"{title(cell)}: {line}"), soft_wrap=True)


def title(cell: Cell) -> str:
    """Return the title of a cell in printed lines."""
    return f"{cell.label}, seed {cell.recipe.seed}"


def run_jobs(cells: Sequence[Cell], jobs: int, board: GridProgress) -> list[Cell]:
    """Run cells in parallel processes; the failure or crash of one does not stop the others.

    The processes share torch's threads equally, unless ``OMP_NUM_THREADS`` or the recipe's
    ``run.threads`` sets their number. They end with the parent process, however it ends.

    Args:
        cells: from ``ltbench.train.grid.make_grid``.
        jobs: number of processes.
        board: progress display.
    """
    done = known(cells)
    waiting = deque(number for number, cell in enumerate(done) if cell.outcome is None)
    for number, cell in enumerate(done):
        if cell.outcome is not None:
            board.end(number, cell)
    jobs = min(jobs, len(waiting))
    download_data([done[number] for number in waiting])
    workers: dict[Any, _Worker] = {}
    others = set(multiprocessing.active_children())
    try:
        with board.progress:
            while waiting or workers:
                while waiting and len(workers) < jobs:
                    worker = _Worker(jobs)
                    workers[worker.connection] = worker
                    worker.assign(waiting, done, board)
                for connection in wait(list(workers)):
                    worker = workers[connection]
                    number = worker.number
                    message = worker.receive(done[number])
                    if isinstance(message, StageProgress):
                        board.place(number, done[number], message)
                    elif isinstance(message, LogMessage):
                        board.note(done[number], message.text)
                    else:
                        done[number] = message
                        board.end(number, message)
                        if waiting and worker.process.is_alive():
                            worker.assign(waiting, done, board)
                        else:
                            worker.close()
                            del workers[connection]
    finally:
        _stop([p for p in multiprocessing.active_children() if p not in others])
    return done


class _Worker:
    """Process with the cell that it runs."""

    def __init__(self, jobs: int) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not support fork
        self.connection, theirs = context.Pipe()
        self.number = -1
        self.process: SpawnProcess = context.Process(
            target=_work, args=(theirs, warnings.formatwarning)
        )
        with limited_threads(jobs):
            self.process.start()
        theirs.close()  # otherwise the pipe would stay open after the process ends

    def assign(self, waiting: deque[int], done: Sequence[Cell], board: GridProgress) -> None:
        """Send the next cell to the process."""
        self.number = waiting.popleft()
        board.begin(self.number, done[self.number])
        with contextlib.suppress(OSError):  # dead: the next receive finds the pipe closed
            self.connection.send(done[self.number])

    def receive(self, cell: Cell) -> Cell | LogMessage | StageProgress:
        """Return the next message of the process, or a failed cell if the process has died."""
        try:
            message: Cell | LogMessage | StageProgress = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            problem = f"its process ended with exit code {code}; see its output above"
            return replace(cell, outcome="failed", problem=problem)
        return message

    def close(self) -> None:
        """End the process after its last cell."""
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.connection.close()
        self.process.join()


@contextlib.contextmanager
def limited_threads(jobs: int) -> Iterator[None]:
    """Limit processes started inside to their share of the threads and cores."""
    own = {JOBS: str(jobs)}
    if THREADS not in os.environ:
        import torch

        own[THREADS] = str(max(1, torch.get_num_threads() // jobs))
    before = dict(os.environ)
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]
        os.environ.update(before)


def download_data(cells: Sequence[Cell]) -> None:
    """Download each data set once, before several processes do it at the same time."""
    configs = [c.recipe.data.config for c in cells]
    for number, config in enumerate(configs):
        if getattr(config, "download", False) and config not in configs[:number]:
            with contextlib.suppress(UserError):  # the runs report it themselves
                config.load()  # type: ignore[attr-defined]


def _stop(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(GRACE)
        if process.is_alive():
            process.kill()
            process.join()


# In the processes ----------------------------------------------------------------------------


def _work(connection: Connection, formatwarning: Callable[..., str]) -> None:
    """Run the cells received; send their progress and outcome."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent decides
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        lock = threading.Lock()  # the thread that writes checkpoints may warn

        def send(message: Cell | LogMessage | StageProgress) -> None:
            with lock:
                connection.send(message)

        warnings.formatwarning = formatwarning
        logging.captureWarnings(True)
        logging.getLogger().addHandler(_PipeHandler(send))
        from ltbench.train import run as runner

        seen: dict[str, Any] = {}

        def run(recipe: Any) -> Any:
            result = runner.run(recipe, reporter=_PipeProgress(send), seen=seen)
            return result.found, result.fresh

        while (cell := connection.recv()) is not None:
            send(run_cell(cell, run))
    except UserError as error:  # a plugin was changed since the grid began
        send(LogMessage(str(error)))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        pass


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _PipeProgress(NoProgress):
    """Sends the progress of a run, at most every ``PAUSE`` seconds."""

    def __init__(self, send: Callable[[StageProgress], None]) -> None:
        self.send = send
        self.at, self.sent = StageProgress("", 0, 0), 0.0

    def stage(self, index: int, stage: Stage, steps: int, done: int) -> None:
        """Start a stage."""
        self.at = StageProgress(stage_title(index, stage), done, steps)

    def step(self, loss: Callable[[], float], images: int) -> None:
        """Count one step."""
        self.at = replace(self.at, done=self.at.done + 1)
        now = time.monotonic()
        if now - self.sent >= PAUSE:
            self.sent = now
            self.send(self.at)


class _PipeHandler(logging.Handler):
    """Sends log messages through the pipe."""

    def __init__(self, send: Callable[[LogMessage], None]) -> None:
        super().__init__(logging.WARNING)
        self.send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send one message."""
        self.send(LogMessage(record.getMessage().strip()))
