"""Limits of the machine that stop loader processes: shared memory, descriptors, processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor
from torch.utils.data import get_worker_info

from ltbench.errors import UserError
from ltbench.machine import share_of_cores

Workers = int | Literal["auto"]

MOST = 16  # loader processes of a rank that ``"auto"`` starts
PER_WORKER, OTHERS = 4, 16  # file descriptors of the training process
FULL = (
    "shared memory (/dev/shm) has no room for a batch of images; use `run.workers=0`, lower the "
    "batch size, or enlarge the memory (64 MiB in Docker by default: --shm-size=8g)"
)


def loader_processes(workers: Workers) -> int:
    """Return the number of loader processes of this rank.

    Args:
        workers: number, or ``"auto"`` for as many as its ``share_of_cores``, at most 16.
    """
    return min(MOST, share_of_cores()) if workers == "auto" else workers


def share(tensors: tuple[Tensor, ...]) -> str:
    """Move tensors of a loader process to shared memory and return what went wrong, if anything.

    torch would do it later, in a thread whose errors are lost, and training would wait forever.
    """
    if get_worker_info() is None:
        return ""
    try:
        for tensor in tensors:
            tensor.share_memory_()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError) as error:
        text = str(error).partition("\n")[0]
        return FULL if "No space left" in text else f"a data worker cannot share images ({text})"
    return ""


def check_descriptors(workers: int) -> None:
    """Check that the process may open enough files to start loader processes.

    Raises:
        UserError: its limit is too low.
    """
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - before any file is opened
    except (ImportError, OSError):  # not on Linux
        return
    needed = used + PER_WORKER * workers + OTHERS
    if limit != resource.RLIM_INFINITY and needed > limit:
        raise UserError(
            f"`run.workers={workers}` needs about {needed} open files, this process may have "
            f"{limit}; lower `run.workers`, or raise the limit with `ulimit -n {needed}`"
        )


@contextmanager
def worker_errors() -> Iterator[None]:
    """Turn the death of a loader process, or a limit on starting one, into one line.

    Raises:
        UserError: a process died or could not be started.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "Too many open files" in text or "items of ancdata" in text:
            raise UserError(
                "the data workers used up all open files that this process may have; lower "
                "`run.workers`, or raise the limit with `ulimit -n`"
            ) from None
        if "DataLoader worker" not in text:
            raise
        raise UserError(
            f"a data worker died ({text.splitlines()[0]}); lower `workers`, "
            f"or give the process more memory or shared memory"
        ) from error
    except OSError as error:
        if error.errno not in _LIMITS:
            raise
        _forget(error, before)
        raise UserError(
            f"cannot start data workers: {error.strerror}: {_LIMITS[error.errno]}"
        ) from None


_SHARED = "they need a /dev/shm that can be written; use `run.workers=0`, or mount one"
_LIMITS = {
    errno.EMFILE: "lower `run.workers`, or raise the limit with `ulimit -n`",
    errno.ENFILE: "lower `run.workers`",
    errno.EAGAIN: "lower `run.workers`, or raise the limit of processes with `ulimit -u`",
    errno.ENOMEM: "lower `run.workers`",
    errno.ENOSPC: FULL,
    errno.EROFS: _SHARED,
    errno.EACCES: _SHARED,
    errno.ENOENT: _SHARED,
    errno.ENOSYS: _SHARED,
}


def _forget(error: OSError, before: set[multiprocessing.process.BaseProcess]) -> None:
    """Remove a loader that was started in part; torch's own clean-up of it fails, with traces."""
    for process in set(multiprocessing.active_children()) - before:
        process.terminate()
    shown, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        traceback.clear_frames(error.__traceback__)
    finally:
        sys.unraisablehook = shown
