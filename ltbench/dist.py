"""The ranks of a run: every function is a no-op in one process, so callers never ask."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as td
from torch import Tensor

from ltbench.errors import UserError
from ltbench.rendezvous import meet

BUCKET = 25 * 2**20  # bytes of gradients per all-reduce; large enough to amortise the latency
LEFT = "this job's ranks have lost each other"

T = TypeVar("T")
_left: list[str] = []  # why this process left its group; a new group needs a new job


class Agreed(UserError):
    """A mistake that all ranks know of, so that none of them waits for another."""


def world() -> int:
    """Return the number of ranks."""
    return td.get_world_size() if td.is_available() and td.is_initialized() else 1


def rank() -> int:
    """Return this process's rank."""
    return td.get_rank() if world() > 1 else 0


def local_rank() -> int:
    """Return this process's place on its node, as torchrun numbers it."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_main() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0


def init(device: torch.device, minutes: float = 10) -> None:
    """Join the process group that torchrun describes in the environment; nothing without it.

    Args:
        device: of this rank.
        minutes: how long a rank waits for the others.

    Raises:
        UserError: the group could not be formed.
    """
    if _left:
        raise UserError(f"{LEFT} ({_left[0]}); start the command again: what is done is skipped")
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or td.is_initialized():
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
    """Leave the process group, after all ranks have come to the end."""
    if td.is_available() and td.is_initialized():
        td.destroy_process_group()


@contextmanager
def united() -> Iterator[None]:
    """Inside, a rank that fails leaves the group at once: the others fail too, and do not wait.

    Raises:
        UserError: another rank failed, was killed, or did not answer in time.
    """
    try:
        yield
    except Agreed:
        raise
    except BaseException as error:
        if world() == 1:
            raise
        reason = _loss_of_another(error)
        _left.append(reason or str(error).partition("\n")[0] or type(error).__name__)
        # Unlike destroy_process_group it does not wait for what is under way on the device.
        abort = getattr(td.distributed_c10d, "_abort_process_group", td.destroy_process_group)
        abort()
        if reason:
            raise UserError(reason) from None
        raise


def _loss_of_another(error: BaseException) -> str:
    """Return what to say of an error of the communication itself, nothing of other errors."""
    text = str(error).partition("\n")[0]
    if not isinstance(error, td.DistError) and "/gloo/" not in text:
        return ""
    if "imed out" in text or "imeout" in text:
        return (
            "another rank did not answer in time; see what it says, or raise `run.timeout_minutes`"
        )
    return (
        "another rank failed or was killed; its own message says why; the same command goes on "
        "from the last checkpoint"
    )


def together(work: Callable[[], T]) -> T:
    """Return what each rank's work gives; where it fails on one rank, all raise that message.

    Args:
        work: done on every rank; communicates nothing.

    Raises:
        UserError: of the lowest rank whose work raised one; says which if others did not.
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
    """Return on every rank what rank 0's work gives; where that fails, all raise its message.

    Args:
        work: done on rank 0 alone; communicates nothing.

    Raises:
        UserError: that of the work.
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
        raise Agreed(problem)


def barrier() -> None:
    """Wait for all ranks."""
    if world() > 1:
        td.barrier()


def sum_(tensor: Tensor) -> Tensor:
    """Sum a tensor over ranks, in place, and return it."""
    if world() > 1:
        td.all_reduce(tensor)
    return tensor


def sum_each(tensors: Iterable[Tensor]) -> None:
    """Sum tensors over ranks, in place; every rank holds the same list."""
    _BucketSum(tensors).wait()


class GradientSum:
    """A sum of parameters' gradients over ranks that is under way while other work goes on.

    The sum of gradients of ``sum(w * rows) / D`` with the global D is the gradient of the global
    batch, whatever each rank holds. A wrapper that averages per-rank means gets class-weighted
    losses wrong, and hides gradients that SAM and PLOT need between passes.

    A gradient that is missing on this rank counts as zero, so that all ranks reduce the same
    buckets; one that is missing on all ranks stays ``None``. The number of ranks that have each
    gradient is reduced with the last bucket, and read only by a rank that lacks one.

    Args:
        gradients: ``None`` where this rank has none; the others are changed in place by ``wait``,
            until which they hold what this rank put in.
        parameters: whose they are, the same on every rank; one may come several times, with the
            gradients of several terms, and has none only where all of them are missing.
    """

    def __init__(self, gradients: Iterable[Tensor | None], parameters: Sequence[Tensor]) -> None:
        self.gradients = list(gradients)
        self._lacking: list[int] = []
        if world() == 1 or not parameters:
            self._sum = _BucketSum(())
            return
        pairs = list(zip(self.gradients, parameters, strict=True))
        here = {id(p) for g, p in pairs if g is not None}
        self._lacking = [i for i, p in enumerate(parameters) if id(p) not in here]
        tensors = [torch.zeros_like(p) if g is None else g for g, p in pairs]
        self.gradients = [*tensors]
        self._ranks = parameters[-1].new_ones(len(pairs))  # that have a gradient, once summed
        for i in self._lacking:
            self._ranks[i] = 0
        self._sum = _BucketSum([*tensors, self._ranks])

    def wait(self) -> list[Tensor | None]:
        """Return the gradients, summed."""
        self._sum.wait()
        if self._lacking:
            ranks = self._ranks.tolist()
            for i in self._lacking:
                if not ranks[i]:
                    self.gradients[i] = None
        return self.gradients


class _BucketSum:
    """A sum of tensors over ranks; buckets are reduced while later ones are packed."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._works: list[tuple[Any, Tensor, list[Tensor]]] = []
        for bucket in _buckets(list(tensors)) if world() > 1 else ():
            flat = torch.cat([t.reshape(-1) for t in bucket])
            self._works.append((td.all_reduce(flat, async_op=True), flat, bucket))

    def wait(self) -> None:
        """Write the sums into the tensors."""
        for work, flat, bucket in self._works:
            work.wait()
            for t, part in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
                t.copy_(part.view_as(t))
        self._works = []


def average_(tensors: Iterable[Tensor]) -> None:
    """Replace floating-point tensors by their mean over ranks (running statistics)."""
    if world() == 1:
        return
    floats = [t for t in tensors if t.is_floating_point()]
    sum_each(floats)
    for t in floats:
        t.div_(world())


def gather(tensor: Tensor) -> Tensor:
    """Concatenate a tensor over ranks along its first dimension, in rank order, without gradient.

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


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Do what ``gather`` does, with a gradient: each rank's rows get the sum of all ranks' wishes.

    So a loss that is summed over ranks has the gradient of the global batch, although each rank
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
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        summed = sum_(grads[0].clone(memory_format=torch.contiguous_format))
        own: Tensor = summed[ctx.rows]
        return own

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return gather(tangents[0])


def offset(tensor: Tensor) -> int:
    """Return how many rows of a gathered tensor belong to lower ranks."""
    return sum(_sizes(tensor)[: rank()]) if world() > 1 else 0


def _sizes(tensor: Tensor) -> list[int]:
    sizes = torch.zeros(world(), dtype=torch.int64, device=tensor.device)
    sizes[rank()] = len(tensor)
    return [int(n) for n in sum_(sizes).tolist()]


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Cut tensors, in order, into lists of one type and about ``BUCKET`` bytes."""
    buckets: list[list[Tensor]] = []
    room, kind = 0, None
    for t in tensors:
        if t.dtype != kind or room < t.nbytes:
            buckets.append([])
            room, kind = BUCKET, t.dtype
        buckets[-1].append(t)
        room -= t.nbytes
    return buckets
