"""Collectives over the ranks of a run; every function is a no-op in a single process."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as td
from torch import Tensor

from ltbench.distributed.copies import to_device
from ltbench.distributed.launch import read_launch
from ltbench.distributed.rendezvous import meet
from ltbench.errors import UserError

PATIENCE = 6  # timeouts for which ranks wait for work of rank 0: hashing, slow disks
BUCKET = 25 * 2**20  # bytes of gradients per all-reduce; large enough to amortise the latency
ABORTED = "this job has lost its process group"

T = TypeVar("T")
_timeout: list[datetime.timedelta] = []  # of collectives, once the group is formed
_groups: dict[str, Any] = {}  # by purpose, beside the one of ``all``
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
        minutes: timeout of collectives; waiting for work of rank 0 has ``PATIENCE`` times it.

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
        _timeout[:], backend = [wait], "gloo; GLOO_SOCKET_IFNAME names the network interface"
        barrier()  # gloo connects at the first use of a group
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"could not form a process group with {backend}: {first}") from error


def close() -> None:
    """Leave the process group, once all ranks have finished."""
    if td.is_available() and td.is_initialized():
        _groups.clear()
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
        _groups.clear()  # what holds a group holds its connections
        # Unlike destroy_process_group, abort does not wait for pending work on the device.
        abort = getattr(td.distributed_c10d, "_abort_process_group", td.destroy_process_group)
        abort()
        if reason:
            raise UserError(reason) from None
        raise


def _peer_failure(error: BaseException) -> str:
    """Return the message for a communication error, or an empty string for any other error."""
    text = str(error).partition("\n")[0]
    connecting = text == "Wait timeout"  # gloo's, for the first collective of a group
    if not isinstance(error, td.DistError) and "/gloo/" not in text and not connecting:
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
    td.all_gather_object(problems, problem, group=_object_group())
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
    td.broadcast_object_list(box, src=0, group=_object_group())
    _raise_first([box[1]])
    result: T = box[0]
    return result


def _raise_first(problems: Iterable[str]) -> None:
    problem = next((p for p in problems if p), "")
    if problem:
        raise CollectiveError(problem)


def gradient_group() -> Any:
    """Return the group in which gradients are summed; all ranks call it first at the same point."""
    return _group("gradients", None, 1)


def _object_group() -> Any:
    """Return the group of Python objects and of waiting for rank 0; as ``gradient_group``.

    It is never NCCL's: objects need no GPU, a rank that waits keeps none busy, and a rank whose
    peer has died raises an error.
    """
    return _group("objects", "gloo" if td.get_backend() == "nccl" else None, PATIENCE)


def _group(purpose: str, backend: str | None, patience: int) -> Any:
    if _groups.get("all") is not td.group.WORLD:
        _groups.clear()
        _groups["all"] = td.group.WORLD
    if purpose not in _groups:
        wait = patience * _timeout[0] if _timeout else None
        _groups[purpose] = td.new_group(backend=backend, timeout=wait)
    return _groups[purpose]


def barrier() -> None:
    """Wait until all ranks arrive."""
    if world() > 1:
        td.barrier(group=_object_group())


def all_reduce_(tensor: Tensor) -> Tensor:
    """Sum a tensor over ranks, in place, and return it."""
    if world() > 1:
        td.all_reduce(tensor)
    return tensor


def from_main_(tensor: Tensor) -> Tensor:
    """Replace a tensor by that of rank 0, in place, and return it; the host does not wait for it.

    What a rank computes on its own may differ in the last bit from processor to processor.
    Weights stay equal on all ranks if what they are computed from is.
    """
    if world() > 1:
        td.broadcast(tensor, src=0)
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
        for bucket in buckets_of(list(tensors)) if world() > 1 else ():
            flat = torch.cat([t.reshape(-1) for t in bucket])
            self._works.append((td.all_reduce(flat, async_op=True), flat, bucket))

    def wait(self) -> None:
        """Wait for the reduction and write the sums into the tensors."""
        for work, flat, bucket in self._works:
            work.wait()
            parts = torch.split(flat, [t.numel() for t in bucket])
            torch._foreach_copy_(bucket, [p.view_as(t) for p, t in zip(parts, bucket, strict=True)])
        self._works = []


def all_reduce_mean_(tensors: Iterable[Tensor]) -> None:
    """Average floating-point tensors (running statistics) over ranks, in place."""
    if world() == 1:
        return
    floats = [t for t in tensors if t.is_floating_point()]
    for bucket in buckets_of(floats):
        flat = all_reduce_(torch.cat([t.reshape(-1) for t in bucket])).div_(world())
        parts = torch.split(flat, [t.numel() for t in bucket])
        torch._foreach_copy_(bucket, [p.view_as(t) for p, t in zip(parts, bucket, strict=True)])


def all_gather(tensor: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Concatenate a tensor over ranks along dimension 0, in rank order, without gradient.

    Args:
        tensor: rows of this rank; the other dimensions agree on all ranks.
        sizes: rows of each rank; ``None`` asks for them, and the host waits for the answer.
    """
    if world() == 1:
        return tensor
    sizes = sizes_of(tensor) if sizes is None else sizes
    own, most = tensor.detach().contiguous(), max(sizes)
    if len(own) < most:
        own = torch.cat([own, own.new_zeros((most - len(own), *own.shape[1:]))])
    rows = own.new_empty((world() * most, *own.shape[1:]))
    td.all_gather_into_tensor(rows, own)
    if min(sizes) == most:
        return rows
    return torch.cat([part[:n] for part, n in zip(torch.split(rows, most), sizes, strict=True)])


def all_gather_labelled(
    labels: Tensor, tensors: Sequence[Tensor], sizes: Sequence[int]
) -> list[Tensor]:
    """Concatenate labels and matrices over ranks, each, in one exchange; see ``all_gather``.

    Args:
        labels: below 2^24 [N]; they travel as a column of the matrices.
        tensors: matrices [N, ...] of one dtype, single or double.
        sizes: rows of each rank.
    """
    if world() == 1:
        return [labels, *tensors]
    columns = [labels[:, None].to(tensors[0]), *tensors]
    rows = all_gather(torch.cat(columns, dim=1), sizes)
    parts = torch.split(rows, [t.shape[1] for t in columns], dim=1)
    return [parts[0][:, 0].long(), *(part.contiguous() for part in parts[1:])]


def fetch_rows(
    tensors: Sequence[Tensor], wanted: Sequence[Tensor], sizes: Sequence[int]
) -> list[Tensor]:
    """Return rows of the global batch, without gradient; each is sent by the rank that holds it.

    Args:
        tensors: rows of this rank, the same number in each.
        wanted: for each rank, the numbers of the rows that it wants; on the CPU, and the same on
            all ranks.
        sizes: rows of each rank.
    """
    own, device = wanted[rank()], tensors[0].device
    if world() == 1:
        rows = to_device(own, device)
        return [t.detach()[rows] for t in tensors]
    edges = torch.tensor(sizes).cumsum(0)
    first = first_row(sizes)
    asked = [w[(w >= first) & (w < first + sizes[rank()])] - first for w in wanted]
    holder = torch.bucketize(own, edges, right=True)
    came = holder.argsort(stable=True)  # rows come by rank, each in the order of ``wanted``
    rows, places = to_device(torch.cat(asked), device), to_device(came.argsort(), device)
    sent = [len(a) for a in asked]
    received = torch.bincount(holder, minlength=world()).tolist()
    found = []
    for t in tensors:
        theirs = t.new_empty((len(own), *t.shape[1:]))
        td.all_to_all_single(theirs, t.detach()[rows].contiguous(), received, sent)
        found.append(theirs[places])
    return found


def first_row(sizes: Sequence[int]) -> int:
    """Return the number of this rank's first row in the global batch.

    Args:
        sizes: rows of each rank.
    """
    return sum(sizes[: rank()])


def sizes_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the number of rows that each rank has; the ranks exchange them, and the host waits."""
    if world() == 1:
        return (len(tensor),)
    sizes = torch.zeros(world(), dtype=torch.int64, device=tensor.device)
    sizes[rank()] = len(tensor)
    return tuple(int(n) for n in all_reduce_(sizes).tolist())


def buckets_of(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
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
