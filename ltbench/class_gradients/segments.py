"""Samples grouped by the objective they belong to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Which objective each sample of this rank's batch belongs to.

    Args:
        place: objective of each sample [B], in [0, K), or -1 for none.
        size: objectives K, those without a sample here included.
    """

    place: Tensor
    size: int

    @cached_property
    def order(self) -> Tensor:
        """Samples that have an objective, sorted by it [n]."""
        order = self.place.argsort(stable=True)
        return order[self.place[order] >= 0]

    @cached_property
    def bounds(self) -> list[tuple[int, int, int]]:
        """Objective, start and end of each run of ``order``, for objectives with a sample."""
        counts = torch.bincount(self.place[self.order], minlength=self.size).tolist()
        found, start = [], 0
        for k, n in enumerate(counts):
            if n:
                found.append((k, start, start + n))
            start += n
        return found

    def sum(self, values: Tensor) -> Tensor:
        """Sum the rows [B, n] of each objective [K, n]."""
        out = values.new_zeros((self.size, *values.shape[1:]))
        return out.index_add_(0, self.place[self.order], values[self.order])

    def members(self, repeat: int, like: Tensor) -> Tensor:
        """Return 1 where a row belongs to an objective [K, B * repeat].

        Args:
            repeat: rows per sample, sample by sample.
            like: a tensor of the wanted type and device.
        """
        out = like.new_zeros((self.size, len(self.place)))
        out[self.place[self.order], self.order] = 1
        return out.repeat_interleave(repeat, dim=1)
