"""Collectives over the ranks of a run; every function is a no-op in a single process."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as td
from torch import Tensor

from ltbench.distributed.launch import read_launch
from ltbench.distributed.rendezvous import meet
from ltbench.errors import UserError

BUCKET = 25 * 2**20  # bytes of gradients per all-reduce; large enough to amortise the latency
ABORTED = "this job has lost its process group"

T = TypeVar("T")
_aborted: list[str] = []  # why this process left its group; it cannot join another one


class CollectiveError(UserError):
    """A user error that is raised on all ranks, so that none waits for another."""


def world() -> int:
    """Return the number of ranks."""
    return td.get_world_size() if td.is_available() and td.is_initialized() else 1


def rank() -> int:
    """Return this process's rank."""
    return td.get_rank() if world() > 1 else 0


def local_rank() -> int:
    """Return this process's rank on its node, as set by torchrun.

    Raises:
        UserError: the environment is not one of torchrun.
    """
    return read_launch().local_rank


def is_main() -> bool:
    """Return True on rank 0, the one that writes files and prints."""
    return rank() == 0


def init(device: torch.device, minutes: float = 10) -> None:
    """Join the process group set up by torchrun's environment variables; without them, do nothing.

    Args:
        device: device of this rank.
        minutes: timeout of collectives.

    Raises:
        UserError: a variable is missing or wrong, or the group cannot be formed.
    """
    if _aborted:
        raise UserError(f"{ABORTED} ({_aborted[0]}); rerun the command: finished runs are skipped")
    if read_launch().world == 1 or td.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    wait = datetime.timedelta(minutes=minutes)
    try:
        store, own, ranks = meet(wait)
        td.init_process_group(
            backend,
            store=store,
            rank=own,
            world_size=ranks,
            timeout=wait,
            device_id=device if backend == "nccl" else None,
        )
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"could not form a process group with {backend}: {first}") from error


def close() -> None:
    """Leave the process group, once all ranks have finished."""
    if td.is_available() and td.is_initialized():
        td.destroy_process_group()


@contextmanager
def fail_together() -> Iterator[None]:
    """Abort the process group if this rank raises, so that the other ranks fail instead of waiting.

    Raises:
        UserError: another rank failed, was killed or timed out.
    """
    try:
        yield
    except CollectiveError:
        raise
    except BaseException as error:
        if world() == 1:
            raise
        reason = _peer_failure(error)
        _aborted.append(reason or str(error).partition("\n")[0] or type(error).__name__)
        # Unlike destroy_process_group, abort does not wait for pending work on the device.
        abort = getattr(td.distributed_c10d, "_abort_process_group", td.destroy_process_group)
        abort()
        if reason:
            raise UserError(reason) from None
        raise


def _peer_failure(error: BaseException) -> str:
    """Return the message for a communication error, or an empty string for any other error."""
    text = str(error).partition("\n")[0]
    if not isinstance(error, td.DistError) and "/gloo/" not in text:
        return ""
    if "imed out" in text or "imeout" in text:
        return "another rank timed out; see its log, or raise `run.timeout_minutes`"
    return (
        "another rank failed or was killed; see its log; rerun the same command to resume from the "
        "last checkpoint"
    )


def on_all_ranks(work: Callable[[], T]) -> T:
    """Run a function on every rank and return its result; an error on one rank is raised on all.

    Args:
        work: called on every rank; must not communicate.

    Raises:
        UserError: that of the lowest rank that raised one; names the rank unless all raised the
            same.
    """
    if world() == 1:
        return work()
    done: list[T] = []
    problem = ""
    try:
        done.append(work())
    except UserError as error:
        problem = str(error)
    problems = [""] * world()
    td.all_gather_object(problems, problem)
    if len(set(problems)) > 1:
        problems = [f"on rank {r}: {p}" if p else "" for r, p in enumerate(problems)]
    _raise_first(problems)
    return done[0]


def on_main(work: Callable[[], T]) -> T:
    """Run a function on rank 0 and return its result on every rank; an error is raised on all.

    Args:
        work: called on rank 0 only; must not communicate.

    Raises:
        UserError: raised by the function.
    """
    if world() == 1:
        return work()
    box: list[Any] = [None, ""]
    if is_main():
        try:
            box[0] = work()
        except UserError as error:
            box[1] = str(error)
    td.broadcast_object_list(box, src=0)
    _raise_first([box[1]])
    result: T = box[0]
    return result


def _raise_first(problems: Iterable[str]) -> None:
    problem = next((p for p in problems if p), "")
    if problem:
        raise CollectiveError(problem)


def barrier() -> None:
    """Wait until all ranks arrive."""
    if world() > 1:
        td.barrier()


def all_reduce_(tensor: Tensor) -> Tensor:
    """Sum a tensor over ranks, in place, and return it."""
    if world() > 1:
        td.all_reduce(tensor)
    return tensor


def all_reduce_each_(tensors: Iterable[Tensor]) -> None:
    """Sum tensors over ranks, in place; the list must match on all ranks."""
    _BucketSum(tensors).wait()


class GradientSum:
    """Asynchronous all-reduce of parameter gradients, overlapping other work.

    The sum of gradients of ``sum(w * rows) / D`` with the global D is the gradient of the global
    batch, however its rows are split over ranks. A wrapper that averages per-rank means (DDP) gets
    class-weighted losses wrong, and hides gradients that SAM and PLOT need between passes.

    A gradient that is missing on this rank counts as zero, so that all ranks reduce the same
    buckets; one that is missing on all ranks stays ``None``. The number of ranks that have each
    gradient is reduced with the last bucket, and read only by a rank that lacks one.

    Args:
        gradients: ``None`` where this rank has none; the others are reduced in place and keep this
            rank's values until ``wait``.
        parameters: their parameters, the same on every rank; one may occur several times, with the
            gradients of several terms, and is without gradient only if all of them are missing.
    """

    def __init__(self, gradients: Iterable[Tensor | None], parameters: Sequence[Tensor]) -> None:
        self.gradients = list(gradients)
        self._missing: list[int] = []
        if world() == 1 or not parameters:
            self._sum = _BucketSum(())
            return
        pairs = list(zip(self.gradients, parameters, strict=True))
        here = {id(p) for g, p in pairs if g is not None}
        self._missing = [i for i, p in enumerate(parameters) if id(p) not in here]
        tensors = [torch.zeros_like(p) if g is None else g for g, p in pairs]
        self.gradients = [*tensors]
        self._ranks = parameters[-1].new_ones(len(pairs))  # number with a gradient, once summed
        for i in self._missing:
            self._ranks[i] = 0
        self._sum = _BucketSum([*tensors, self._ranks])

    def wait(self) -> list[Tensor | None]:
        """Wait for the reduction and return the summed gradients."""
        self._sum.wait()
        if self._missing:
            ranks = self._ranks.tolist()
            for i in self._missing:
                if not ranks[i]:
                    self.gradients[i] = None
        return self.gradients


class _BucketSum:
    """Asynchronous all-reduce of tensors in buckets; one is reduced while the next is packed."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._works: list[tuple[Any, Tensor, list[Tensor]]] = []
        for bucket in _buckets(list(tensors)) if world() > 1 else ():
            flat = torch.cat([t.reshape(-1) for t in bucket])
            self._works.append((td.all_reduce(flat, async_op=True), flat, bucket))

    def wait(self) -> None:
        """Wait for the reduction and write the sums into the tensors."""
        for work, flat, bucket in self._works:
            work.wait()
            for t, part in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
                t.copy_(part.view_as(t))
        self._works = []


def all_reduce_mean_(tensors: Iterable[Tensor]) -> None:
    """Average floating-point tensors (running statistics) over ranks, in place."""
    if world() == 1:
        return
    floats = [t for t in tensors if t.is_floating_point()]
    all_reduce_each_(floats)
    for t in floats:
        t.div_(world())


def all_gather(tensor: Tensor) -> Tensor:
    """Concatenate a tensor over ranks along dimension 0, in rank order, without gradient.

    Ranks may hold different numbers of rows; the other dimensions must agree.
    """
    if world() == 1:
        return tensor
    sizes = _sizes(tensor)
    most = max(sizes)
    padded = tensor.detach().new_zeros((most, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    td.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])


def all_gather_with_gradient(tensor: Tensor) -> Tensor:
    """Differentiable ``all_gather``: the backward pass sums the incoming gradients over ranks.

    A loss that is summed over ranks thus has the gradient of the global batch, although each rank
    differentiates its own rows only.
    """
    if world() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.rows = slice(start := offset(tensor), start + len(tensor))
        return all_gather(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        summed = all_reduce_(grads[0].clone(memory_format=torch.contiguous_format))
        own: Tensor = summed[ctx.rows]
        return own

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return all_gather(tangents[0])


def offset(tensor: Tensor) -> int:
    """Return the index of this rank's first row in the gathered tensor."""
    return sum(_sizes(tensor)[: rank()]) if world() > 1 else 0


def _sizes(tensor: Tensor) -> list[int]:
    sizes = torch.zeros(world(), dtype=torch.int64, device=tensor.device)
    sizes[rank()] = len(tensor)
    return [int(n) for n in all_reduce_(sizes).tolist()]


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Split tensors, in order, into lists of one dtype and about ``BUCKET`` bytes."""
    buckets: list[list[Tensor]] = []
    room, kind = 0, None
    for t in tensors:
        if t.dtype != kind or room < t.nbytes:
            buckets.append([])
            room, kind = BUCKET, t.dtype
        buckets[-1].append(t)
        room -= t.nbytes
    return buckets
