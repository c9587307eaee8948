"""Processes that start at once: forked from a server that has imported torch and the package."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# The server only imports: a thread of torch's, started before the fork, would be lost in children.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["ltbench.train.run", "ltbench.cli.app", "matplotlib.pyplot"])


class Forked:
    """A function in a process of its own, with the methods of ``subprocess.Popen``.

    Signals, exit codes and the session are real; output goes to files.

    Args:
        function: found by its module and name in the child.
        args: pickled.
        env: variables on top of this process's environment.
    """

    def __init__(
        self, function: Callable[..., object], *args: Any, env: Mapping[str, str] | None = None
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        place = Path(self._folder.name)
        self._files = place / "out", place / "err"
        self._process = _server.Process(
            target=_child,
            args=(function, args, {**os.environ, **(env or {})}, str(Path.cwd()), self._files),
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"process {self.pid} still runs after {timeout} s")
        return self._process.exitcode

    def communicate(self, timeout: float = 200) -> tuple[str, str]:
        """Wait for the end and return what it wrote to stdout and to stderr."""
        self.wait(timeout)
        out, err = (f.read_text() if f.is_file() else "" for f in self._files)
        return out, err

    def end(self) -> None:
        """Kill it, if it still runs, and remove its files."""
        if self._process.exitcode is None:
            self._process.kill()
        self._process.join()
        self._folder.cleanup()


def run_command(words: Sequence[str]) -> None:
    """Run the command line, as ``python -m ltbench`` does."""
    from ltbench.cli import main

    main(words)


def _child(
    function: Callable[..., object],
    args: tuple[Any, ...],
    env: Mapping[str, str],
    folder: str,
    files: tuple[Path, Path],
) -> None:
    os.setsid()
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    # Whoever runs the tests in the background may have made us ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    torch.set_num_threads(1)
    function(*args)


class Ranks:
    """Ranks of one gloo group that stay, and do one piece of work after the other.

    Args:
        world: number of ranks.
    """

    def __init__(self, world: int) -> None:
        self._world = world
        self._ends: list[Connection] = []
        self._processes: list[Any] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def call(self, function: Callable[..., Any], *args: Any, timeout: float = 300) -> list[Any]:
        """Return what a function gives on each rank.

        Args:
            function: found by its module and name in the ranks.
            args: the same for all of them.
            timeout: in seconds.

        Raises:
            AssertionError: it failed on a rank. The group is formed anew at the next call.
        """
        import torch

        if not self._processes:
            self._start()
        for end in self._ends:
            end.send((function, args))
        until = time.monotonic() + timeout
        answers = [_answer(end, until) for end in self._ends]
        problems = [f"rank {r}: {problem}" for r, (problem, _) in enumerate(answers) if problem]
        if problems:
            self.end()
            raise AssertionError("\n".join(problems))
        return [torch.load(io.BytesIO(value), weights_only=False) for _, value in answers]

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        for rank in range(self._world):
            ours, theirs = _server.Pipe()
            process = _server.Process(
                target=_rank, args=(theirs, rank, self._world, self._folder.name), daemon=True
            )
            process.start()
            theirs.close()
            self._ends.append(ours)
            self._processes.append(process)

    def end(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()
        if self._folder is not None:
            self._folder.cleanup()
        self._ends, self._processes, self._folder = [], [], None


def _answer(end: Connection, until: float) -> tuple[str, bytes]:
    """Wait for a rank's problem, or what it returns."""
    if not end.poll(max(0.0, until - time.monotonic())):
        return "no answer in time", b""
    try:
        problem, value = end.recv()
    except EOFError:
        return "its process died", b""
    return problem, value


def _rank(end: Connection, rank: int, world: int, folder: str) -> None:
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            function, args = end.recv()
            torch.manual_seed(0)
            try:
                file = io.BytesIO()
                torch.save(function(*args), file)
                end.send(("", file.getvalue()))
            except Exception:
                end.send((traceback.format_exc(), b""))
