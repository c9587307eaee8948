"""Per-class objectives of the loss of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ltbench.distributed import ranks
from ltbench.methods.base import Rows

Divisor = Literal["all", "present", "official"]


@dataclass
class ClassObjectives:
    """Per-class statistics of the global batch, from which the weight of each row follows.

    The gradient of class k's objective is a weighted sum of the rows' gradients with fixed
    weights (`cotangents`), the spread of losses included: d std / d l_i = (l_i - mean) /
    ((n - 1) std). It therefore takes one vector-Jacobian product per class, or one for any mixture
    of classes.
    """

    divisor: Tensor  # D of the loss, scalar
    weight_sums: Tensor  # sum of row weights by class [C]
    means: Tensor  # mean row by class [C]
    std: Tensor  # unbiased standard deviation of the rows by class, 0 for one row [C]
    counts: Tensor  # rows by class [C]
    scale: Literal["batch_fraction", "class_mean"]
    collapse_weight: float
    collapse_divisor: Divisor
    collapse_in_class_gradients: bool

    @classmethod
    def measure(
        cls,
        outs: Sequence[Rows],
        *,
        num_classes: int,
        scale: Literal["batch_fraction", "class_mean"],
        collapse_weight: float,
        collapse_divisor: Divisor,
        collapse_in_class_gradients: bool,
    ) -> ClassObjectives:
        """Compute the statistics over micro-batches and ranks; ``outs`` are the rows of each."""
        device = outs[0].rows.device
        table = torch.zeros((num_classes + 1, 3), dtype=torch.float64, device=device)
        for out in outs:
            rows = out.rows.detach().double()
            one = torch.ones_like(rows)
            weight = one if out.weight is None else out.weight.detach().double()
            values = torch.stack([one, rows, weight], dim=1)
            table[:num_classes].index_add_(0, out.labels, values)
            table[num_classes, 0].add_(out.images if out.divide == "images" else weight.sum())
        ranks.all_reduce_(table)
        counts, sums, weights = table[:num_classes].unbind(dim=1)
        means = sums / counts.clamp(min=1)
        squares = torch.zeros(num_classes, dtype=torch.float64, device=device)
        for out in outs:  # two-pass variance, for numerical stability
            away = out.rows.detach().double() - means[out.labels]
            squares.index_add_(0, out.labels, away**2)
        ranks.all_reduce_(squares)
        std = (squares / (counts - 1).clamp(min=1)).sqrt()
        return cls(
            divisor=table[num_classes, 0],
            weight_sums=weights,
            means=means,
            std=std,
            counts=counts,
            scale=scale,
            collapse_weight=collapse_weight,
            collapse_divisor=collapse_divisor,
            collapse_in_class_gradients=collapse_in_class_gradients,
        )

    def cotangents(self, out: Rows) -> tuple[Tensor, Tensor]:
        """Return the weight of each row in its class's objective and in the ordinary loss [N]."""
        given = out.weight
        weight = out.rows.new_ones(len(out.rows), dtype=torch.float64) if given is None else given
        weight = weight.detach().double()
        ordinary = weight / self.divisor
        spread = self._collapse(out)
        whole = (ordinary + spread).to(out.rows.dtype)
        if self.additive:
            return whole, whole
        own = ordinary if self.scale == "batch_fraction" else weight / self.weight_sums[out.labels]
        if self.collapse_in_class_gradients:
            own = own + spread
        return own.to(out.rows.dtype), whole

    @property
    def additive(self) -> bool:
        """True if the objectives of all classes add up to the ordinary loss."""
        spread = self.collapse_in_class_gradients or self.collapse_weight == 0
        return spread and self.scale == "batch_fraction"

    def _collapse(self, out: Rows) -> Tensor:
        """Return the weight of each row in the gradient of the variability-collapse term [N]."""
        least = {"all": 0, "present": 1, "official": 2}[self.collapse_divisor]
        n = (self.counts >= least).sum().clamp(min=1)
        away = out.rows.detach().double() - self.means[out.labels]
        below = ((self.counts - 1) * self.std * n)[out.labels]
        spread = torch.where(below > 0, away / below, 0.0)
        return self.collapse_weight * spread
