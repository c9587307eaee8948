"""The class gradients of one parameter, held in one of two forms.

`Explicit` has one row per class. `Products` takes inner products between positions of the
feature map, so that no row per class is ever formed.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

COLUMNS = 2**16  # of class gradients multiplied at once; sums of more are taken in float64


class ClassRows(Protocol):
    """The gradients of one parameter, P numbers, by class."""

    def gram(self) -> Tensor:
        """Return inner products [K, K] in float64."""

    def total(self) -> Tensor:
        """Return the sum over classes, in the parameter's shape."""

    def products(self, direction: Tensor) -> Tensor:
        """Return the inner product of each class's gradient with a direction [K] in float64."""


class Explicit:
    """Class gradients as they are.

    Args:
        rows: gradient of each class [K, ...].
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def gram(self) -> Tensor:
        """Return inner products [K, K], in float64 between blocks of columns."""
        flat = in_memory(self.rows, self.rows).flatten(1)
        out = flat.new_zeros((len(flat), len(flat)), dtype=torch.float64)
        for block in torch.split(flat, COLUMNS, dim=1):
            out += block @ block.T
        return out

    def total(self) -> Tensor:
        """Return the sum over classes."""
        return self.rows.sum(0)

    def products(self, direction: Tensor) -> Tensor:
        """Return inner products with a direction [K]."""
        flat = in_memory(self.rows, self.rows).flatten(1)
        return (flat @ in_memory(direction[None], self.rows).flatten().to(flat.dtype)).double()

    def mix(self, v: Tensor) -> Tensor:
        """Return the sum of the rows weighted by ``v`` [K]."""
        mixed: Tensor = torch.tensordot(v.to(self.rows.dtype), self.rows, 1)
        return mixed


class Products:
    """Class gradients of a weight as sums over positions of output gradient times input.

    Cheaper than `Explicit` where there are few positions and many weights: late, small feature
    maps. For one process only, since pairs of samples on different ranks would be missed.

    Args:
        u: inputs at each position, for each group of channels [G, R, D].
        z: output gradients at each position [G, R, C / G].
        members: which rows belong to which class [K, R].
        shift: what is subtracted from class k's gradient, see `NormTerms`.
        shape: of the weight.
    """

    def __init__(
        self, u: Tensor, z: Tensor, members: Tensor, shift: NormTerms | None, shape: torch.Size
    ) -> None:
        self.u, self.members, self.shift, self.shape = u, members, shift, shape
        self.z = z * members.sum(0)[:, None]  # without rows of no class

    def gram(self) -> Tensor:
        """Return inner products [K, K]."""
        pairs = (self.u @ self.u.mT) * (self.z @ self.z.mT)
        out = (self.members @ pairs.sum(0) @ self.members.T).double()
        if self.shift is not None:
            cross = self._shifted(self.shift.means) + self._shifted(self.shift.slopes, first=False)
            out = out - cross - cross.T + self.shift.gram()
        return out

    def total(self) -> Tensor:
        """Return the sum over classes."""
        out = (self.z.mT @ self.u).reshape(self.shape)
        return out if self.shift is None else out - self.shift.total()

    def products(self, direction: Tensor) -> Tensor:
        """Return inner products with a direction [K]."""
        out = self._by_channel(direction).sum(1).double()
        return out if self.shift is None else out - self.shift.products(direction)

    def _shifted(self, matrix: Tensor, first: bool = True) -> Tensor:
        assert self.shift is not None
        weights = self.shift.first if first else self.shift.second
        return (self._by_channel(matrix) @ weights.T).double()

    def _by_channel(self, matrix: Tensor) -> Tensor:
        """Return each output channel's part of the inner products with [C, ...]: [K, C]."""
        groups = len(self.u)
        m = matrix.reshape(groups, -1, self.u.shape[2]).to(self.u.dtype)
        found = self.members @ (self.z * (self.u @ m.mT))  # [G, K, C / G]
        return found.transpose(0, 1).flatten(1)


class NormTerms:
    """How a batch normalisation that follows a layer moves the layer's class gradients.

    The exact backward pass takes from each output gradient its mean and its part along the
    normalised output. For class k that is ``first[k] * means + second[k] * slopes`` by channel.

    Args:
        first: [K, C].
        second: [K, C].
        means: weight gradient of an output gradient of ones [C, ...].
        slopes: weight gradient of the normalised output [C, ...].
    """

    def __init__(self, first: Tensor, second: Tensor, means: Tensor, slopes: Tensor) -> None:
        self.first, self.second = first, second
        self.means, self.slopes = means, slopes

    def gram(self) -> Tensor:
        """Return inner products of what is subtracted [K, K]."""
        a, b = self.first, self.second
        cross = (a * (self.means * self.slopes).flatten(1).sum(1)) @ b.T
        squares = (a * self.means.square().flatten(1).sum(1)) @ a.T
        squares += (b * self.slopes.square().flatten(1).sum(1)) @ b.T
        return (squares + cross + cross.T).double()

    def total(self) -> Tensor:
        """Return the sum over classes, in the weight's shape."""
        first, second = over_first(self.first.sum(0), self.means), self.second.sum(0)
        return first * self.means + over_first(second, self.slopes) * self.slopes

    def products(self, direction: Tensor) -> Tensor:
        """Return inner products with a direction [K]."""
        direction = direction.to(self.means.dtype)
        ours = self.first @ (self.means * direction).flatten(1).sum(1)
        return (ours + self.second @ (self.slopes * direction).flatten(1).sum(1)).double()

    def subtract_from(self, rows: Tensor) -> None:
        """Subtract from class gradients [K, C, ...], in place."""
        parts = [in_memory(t[None], rows)[0].flatten(1) for t in (self.means, self.slopes)]
        weights = torch.stack([self.first.T, self.second.T], dim=2)  # [C, K, 2]
        flat = in_memory(rows, rows).flatten(2).transpose(0, 1)  # [C, K, P / C]
        flat.baddbmm_(weights, torch.stack(parts, dim=1), alpha=-1)


def in_memory(t: Tensor, like: Tensor) -> Tensor:
    """Return a tensor with its dimensions, the first apart, as `like` has them in memory."""
    return t.permute(0, *sorted(range(1, like.dim()), key=like.stride, reverse=True))


def over_first(values: Tensor, like: Tensor) -> Tensor:
    """Return values [C] in a shape that spreads over [C, ...]."""
    return values.view(-1, *(1,) * (like.dim() - 1))
