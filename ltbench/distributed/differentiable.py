"""Collectives that gradients flow through, in both modes of differentiation.

A loss that is summed over ranks has the gradient of the global batch, although each rank
differentiates its own rows only: the backward pass sums the incoming gradients over ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor

from ltbench.distributed import ranks


def all_gather(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    """Concatenate a tensor over ranks along dimension 0, in rank order.

    Args:
        tensor: rows of this rank; the other dimensions agree on all ranks.
        sizes: rows of each rank.
    """
    if ranks.world() == 1:
        return tensor
    gathered: Tensor = _Gather.apply(tensor, sizes)
    return gathered


def all_gather_labelled(
    labels: Tensor, features: Tensor, sizes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Concatenate labels and features over ranks in one exchange; see ``all_gather``.

    Args:
        labels: below 2^24 [N]; they travel as a column of the features.
        features: [N, d], single or double.
        sizes: rows of each rank.
    """
    if ranks.world() == 1:
        return labels, features
    both = all_gather(torch.cat([labels[:, None].to(features), features], dim=1), sizes)
    return both[:, 0].detach().long(), both[:, 1:]


def all_reduce(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over ranks."""
    if ranks.world() == 1:
        return tensor
    summed: Tensor = _Sum.apply(tensor)
    return summed


def from_largest(tensor: Tensor) -> Tensor:
    """Return the largest value of each entry over ranks, without gradient."""
    if ranks.world() == 1:
        return tensor.detach()
    largest: Tensor = _Largest.apply(tensor)
    return largest


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.sizes = sizes
        return ranks.all_gather(tensor, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        sizes, gradient = ctx.sizes, grads[0]
        if min(sizes) == max(sizes):
            own = gradient.new_empty((sizes[0], *gradient.shape[1:]))
            td.reduce_scatter_tensor(own, gradient.contiguous())
            return own, None
        summed = ranks.all_reduce_(gradient.clone(memory_format=torch.contiguous_format))
        start = ranks.first_row(sizes)
        return summed[start : start + sizes[ranks.rank()]], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return ranks.all_gather(tangents[0], ctx.sizes)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return ranks.all_reduce_(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        summed: Tensor = _Sum.apply(grads[0])
        return summed

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return ranks.all_reduce_(tangents[0].clone(memory_format=torch.contiguous_format))


class _Largest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        largest = tensor.clone(memory_format=torch.contiguous_format)
        td.all_reduce(largest, op=td.ReduceOp.MAX)
        ctx.mark_non_differentiable(largest)
        return largest

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        return None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        return None
