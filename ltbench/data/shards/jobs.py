"""Worker processes for shards; they end with the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from ltbench.errors import UserError
from ltbench.machine import cores

Job = TypeVar("Job")
Result = TypeVar("Result")
Tick = Callable[[int], None]  # called with the finished amount of a job
Progress = Callable[[int, int], None]  # called with the finished and the whole amount of all jobs

_POLL = 0.1  # seconds between two looks at the workers


class _Stopped(Exception):
    """Ends a worker's job when another one failed or the user interrupted."""


def run_jobs(
    work: Callable[[Job, Tick], Result],
    jobs: Sequence[Job],
    amounts: Sequence[int],
    *,
    workers: int | None,
    progress: Progress | None,
) -> list[Result]:
    """Do jobs side by side and return their results in order; the first failure stops all.

    Workers are new processes, so that they hold nothing of this one. They end at an interrupt
    here, and when this process is killed; a job that leaves a file behind must clean up itself.

    Args:
        work: function of a job and a ``Tick``, which can be pickled; it calls the tick often.
        jobs: arguments of ``work``, which can be pickled.
        amounts: size of each job in the unit of ``progress``.
        workers: processes; 1 does the jobs in this one, ``None`` takes one per usable core.
        progress: called with the finished and the whole amount.

    Raises:
        UserError: a job raised one, or a worker was killed.
    """
    workers = min(workers or cores(), len(jobs))
    if workers <= 1:
        return _in_turn(work, jobs, amounts, progress)
    spawn = multiprocessing.get_context("spawn")
    counts = spawn.RawArray("q", len(jobs) + 1)  # done of each job; the last: stop
    futures: list[Future[Any]] = []
    with ProcessPoolExecutor(workers, spawn, _begin, (work, counts)) as pool:
        try:
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            try:  # a worker inherits the mask: only this process hears an interrupt
                futures += [pool.submit(_do, number, job) for number, job in enumerate(jobs)]
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            pending = set(futures)
            while pending:
                finished, pending = wait(pending, _POLL, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                if progress is not None:
                    progress(sum(counts[:-1]), sum(amounts))
        except BaseException as error:
            counts[-1] = 1
            pool.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "a worker process was killed, perhaps for lack of memory; run the same again, "
                    "with fewer workers"
                ) from error
            raise
    return [future.result() for future in futures]


def _in_turn(
    work: Callable[[Job, Tick], Result],
    jobs: Sequence[Job],
    amounts: Sequence[int],
    progress: Progress | None,
) -> list[Result]:
    results = []
    before, total = 0, sum(amounts)

    def tick(done: int) -> None:
        if progress is not None:
            progress(before + done, total)

    for job, amount in zip(jobs, amounts, strict=True):
        results.append(work(job, tick))
        before += amount
    return results


_work: Callable[[Any, Tick], Any]  # of a worker process
_counts: Any


def _begin(work: Callable[[Any, Tick], Any], counts: Any) -> None:
    global _work, _counts
    _work, _counts = work, counts
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(number: int, job: Any) -> Any:
    def tick(done: int) -> None:
        _counts[number] = done
        if _counts[-1]:
            raise _Stopped

    return _work(job, tick)
