"""Gradients summed over ranks while the backward pass still runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor

from ltbench.distributed import ranks

ALIGNED = 16  # elements; each gradient starts at a multiple, for vectorised kernels


class OverlappedSum:
    """Gradients of parameters, summed over ranks during the backward pass.

    They lie in flat buckets that are kept from step to step. The last parameters come first, since
    the backward pass reaches them first. A bucket is reduced as soon as its gradients are there,
    after those before it, so that all ranks reduce the same buckets in the same order, and in a
    group of their own, so that no other collective of the backward pass comes between. The sums
    are those of ``ranks.GradientSum``.

    Args:
        parameters: the same on every rank.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self._buckets: list[_Bucket] = []
        if ranks.world() > 1:
            made = ranks.buckets_of(self.parameters[::-1])
            self._buckets = [_Bucket(bucket) for bucket in made]
        self._bucket_of = {id(p): bucket for bucket in self._buckets for p in bucket.parameters}
        self._reduced = 0  # number of buckets whose reduction has begun

    @contextmanager
    def during_backward(self) -> Iterator[None]:
        """Context manager of the backward pass that completes the gradients of this rank."""
        self._reduced = 0
        for bucket in self._buckets:
            bucket.awaited = {id(p) for p in bucket.parameters}
        hooks = [
            p.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]
            for bucket in self._buckets
            for p in bucket.parameters
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def wait(self, sums: Tensor) -> list[Tensor | None]:
        """Reduce what is left, wait for all, and return the summed gradients.

        Args:
            sums: further numbers, summed over ranks in place.

        Returns:
            The gradients, valid until the next backward pass; ``None`` is one that no rank has.
        """
        if ranks.world() == 1:
            return [p.grad for p in self.parameters]
        for bucket in self._buckets[self._reduced :]:
            bucket.reduce()
        missing = [
            i for i, p in enumerate(self.parameters) if id(p) in self._bucket_of[id(p)].missing
        ]
        holders = sums.new_ones(
            len(self.parameters)
        )  # number of ranks with a gradient, once summed
        for i in missing:
            holders[i] = 0
        both = ranks.all_reduce_(torch.cat([sums, holders]))
        sums.copy_(both[: len(sums)])
        views: dict[int, Tensor] = {}
        for bucket in self._buckets:
            bucket.work.wait()
            bucket.work = None
            views |= dict(zip(map(id, bucket.parameters), bucket.views, strict=True))
        gradient: list[Tensor | None] = [views[id(p)] for p in self.parameters]
        if missing:  # otherwise nothing is read from the device
            there = both[len(sums) :].tolist()
            for i in missing:
                gradient[i] = gradient[i] if there[i] else None
        return gradient

    def _arrived(self, parameter: Tensor) -> None:
        self._bucket_of[id(parameter)].awaited.discard(id(parameter))
        while self._reduced < len(self._buckets) and not self._buckets[self._reduced].awaited:
            self._buckets[self._reduced].reduce()
            self._reduced += 1


class _Bucket:
    """Gradients that are reduced at once, in one flat tensor."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self.awaited: set[int] = set()  # parameters that have no gradient yet
        self.missing: set[int] = set()  # those that had none when the reduction began
        self.work: Any = None
        places = [0]
        for p in parameters:
            places.append(places[-1] - (-p.numel() // ALIGNED) * ALIGNED)
        self.flat = parameters[0].new_zeros(places.pop())
        self.views = [
            self.flat.as_strided(p.shape, _strides(p), place)
            for p, place in zip(parameters, places, strict=True)
        ]

    def reduce(self) -> None:
        """Begin to sum the gradients over ranks; a missing one is zero."""
        pairs = [(v, p.grad) for v, p in zip(self.views, self.parameters, strict=True)]
        there = [(v, g) for v, g in pairs if g is not None]
        zero = [v for v, g in pairs if g is None]
        self.missing = {id(p) for p in self.parameters if p.grad is None}
        if there:
            torch._foreach_copy_([v for v, _ in there], [g for _, g in there])
        if zero:
            torch._foreach_zero_(zero)
        for p in self.parameters:
            p.grad = None  # its memory is free for the rest of the pass
        self.work = td.all_reduce(self.flat, group=ranks.gradient_group(), async_op=True)


def _strides(parameter: Tensor) -> tuple[int, ...]:
    """Return the strides of a parameter if it is dense, so that optimizers treat both as one."""
    formats = [torch.channels_last] if parameter.dim() == 4 else []
    if any(parameter.is_contiguous(memory_format=f) for f in [torch.contiguous_format, *formats]):
        return parameter.stride()
    return torch.empty(parameter.shape, device="meta").stride()
