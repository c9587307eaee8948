"""The loss of a step seen as one objective per class, and the exact gradient of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ltbench import dist
from ltbench.methods.base import Batch, Progress, Rows
from ltbench.updates.base import StepRun

Divisor = Literal["all", "present", "official"]


@dataclass
class ClassObjectives:
    """What every rank must know of the global batch before it differentiates.

    The gradient of class k's objective is a weighted sum of the rows' gradients with fixed
    weights (`cotangents`), the spread of losses included: d std / d l_i = (l_i - mean) /
    ((n - 1) std). So one vector-Jacobian product per class, or one for any mixture of classes.
    """

    present: Tensor  # classes with a row in the global batch, ascending [K]
    divisor: Tensor  # D of the loss, scalar
    weight_sums: Tensor  # sum of row weights by class [C]
    means: Tensor  # mean row by class [C]
    std: Tensor  # unbiased standard deviation of the rows by class, 0 for one row [C]
    counts: Tensor  # rows by class [C]
    scale: Literal["batch_fraction", "class_mean"]
    collapse_weight: float
    collapse_divisor: Divisor
    collapse_in_class_gradients: bool
    rows: list[Rows]  # with graphs, when there is one micro-batch; else empty

    @classmethod
    def measure(
        cls,
        run: StepRun,
        batches: Sequence[Batch],
        at: Progress,
        *,
        num_classes: int,
        scale: Literal["batch_fraction", "class_mean"],
        collapse_weight: float,
        collapse_divisor: Divisor,
        collapse_in_class_gradients: bool,
    ) -> ClassObjectives:
        """Run the forward pass and sum over micro-batches and ranks what classes share."""
        one = len(batches) == 1
        kept, outs = [], []
        for micro, batch in enumerate(batches):
            with torch.set_grad_enabled(one):
                out = run.loss(batch, replace(at, micro=micro))
            outs.append(out)
            if one:
                kept.append(out)
        device = batches[0].labels.device
        table = torch.zeros((num_classes + 1, 3), dtype=torch.float64, device=device)
        for out in outs:
            rows, weight = out.rows.detach().double(), _weight(out).double()
            table[:num_classes].index_add_(
                0, out.labels, torch.stack([torch.ones_like(rows), rows, weight], dim=1)
            )
            table[num_classes, 0] += out.images if out.divide == "images" else weight.sum()
        dist.sum_(table)
        counts, sums, weights = table[:num_classes].unbind(dim=1)
        means = sums / counts.clamp(min=1)
        squares = torch.zeros(num_classes, dtype=torch.float64, device=device)
        for out in outs:  # second pass over numbers, not over the network: stable variance
            away = out.rows.detach().double() - means[out.labels]
            squares.index_add_(0, out.labels, away**2)
        dist.sum_(squares)
        std = (squares / (counts - 1).clamp(min=1)).sqrt()
        return cls(
            present=counts.nonzero()[:, 0],
            divisor=table[num_classes, 0],
            weight_sums=weights,
            means=means,
            std=std,
            counts=counts,
            scale=scale,
            collapse_weight=collapse_weight,
            collapse_divisor=collapse_divisor,
            collapse_in_class_gradients=collapse_in_class_gradients,
            rows=kept,
        )

    def cotangents(self, out: Rows) -> tuple[Tensor, Tensor]:
        """Return the weight of each row in its class's objective and in the ordinary loss [N]."""
        weight = _weight(out).double()
        ordinary = weight / self.divisor
        own = ordinary if self.scale == "batch_fraction" else weight / self.weight_sums[out.labels]
        spread = self._collapse(out)
        if self.collapse_in_class_gradients:
            own = own + spread
        return own.to(out.rows.dtype), (ordinary + spread).to(out.rows.dtype)

    def _collapse(self, out: Rows) -> Tensor:
        """Return the weight of each row in the gradient of the variability-collapse term [N]."""
        n = {
            "all": float(len(self.counts)),
            "present": float(len(self.present)),
            "official": float((self.counts >= 2).sum()),
        }[self.collapse_divisor]
        away = out.rows.detach().double() - self.means[out.labels]
        below = (self.counts[out.labels] - 1) * self.std[out.labels] * max(n, 1.0)
        spread = torch.where(below > 0, away / below.where(below > 0, 1.0), 0.0)
        return self.collapse_weight * spread


def class_jacobian(
    run: StepRun,
    batches: Sequence[Batch],
    at: Progress,
    objectives: ClassObjectives,
    chosen: Tensor,
    part: list[nn.Parameter],
) -> tuple[Tensor, Tensor]:
    """Return the exact gradient of each chosen class, one backward pass per class.

    The ordinary gradient of the loss is left in ``.grad`` of the parameters outside ``part``.

    Args:
        run: the step's loss and parameters.
        batches: micro-batches of this rank.
        at: where training stands.
        objectives: from ``ClassObjectives.measure`` on the same micro-batches.
        chosen: classes that become objectives, ascending [K].
        part: parameters to differentiate, P numbers in all.

    Returns:
        Class gradients of the global batch [K, P], and what is added to the direction
        unweighed [P]: classes left out and the loss that belongs to no class.
    """
    inside = {id(p) for p in part}
    rest = [p for p in run.parameters if id(p) not in inside]
    size = sum(p.numel() for p in part)
    jacobian = part[0].new_zeros((len(chosen), size))
    others = part[0].new_zeros(size)
    place = torch.full_like(objectives.counts, -1, dtype=torch.int64)
    place[chosen] = torch.arange(len(chosen), device=place.device)
    shares = dist.world() * len(batches)
    for micro, batch in enumerate(batches):
        if objectives.rows:
            out = objectives.rows[micro]
        else:
            out = run.loss(batch, replace(at, micro=micro))
        own, ordinary = objectives.cotangents(out)
        where = place[out.labels]
        for k in _passes(objectives, len(chosen), where):
            cotangent = torch.where(where == k, own if k >= 0 else ordinary, 0.0)
            target = jacobian[k] if k >= 0 else others
            target += _flat_gradient(out.rows, part, cotangent)
        if out.shared is not None:
            others += _flat_gradient(out.shared / shares, part, None)
        _ordinary_gradient(out, ordinary, rest, shares)
    dist.sum_(jacobian)
    dist.sum_(others)
    dist.sum_gradients([p.grad for p in rest if p.grad is not None])
    return jacobian, others


def _passes(objectives: ClassObjectives, chosen: int, where: Tensor) -> list[int]:
    """Return the objectives to differentiate on this rank, -1 for the classes left out.

    Several ranks go through the same list: synchronised batch normalisation meets in each pass.
    """
    if dist.world() == 1:
        return [int(k) for k in torch.unique(where).tolist()]
    left_out = chosen < len(objectives.present)
    return [*range(chosen), *([-1] if left_out else [])]


def _flat_gradient(value: Tensor, part: list[nn.Parameter], cotangent: Tensor | None) -> Tensor:
    found = torch.autograd.grad(value, part, cotangent, retain_graph=True, allow_unused=True)
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(part, found, strict=True)
        ]
    )


def _ordinary_gradient(out: Rows, cotangent: Tensor, rest: list[nn.Parameter], shares: int) -> None:
    """Accumulate the ordinary gradient in ``.grad`` of parameters outside the part."""
    if not rest:
        return
    values, weights = [out.rows], [cotangent]
    if out.shared is not None:
        values.append(out.shared)
        weights.append(out.shared.new_tensor(1 / shares))
    found = torch.autograd.grad(values, rest, weights, allow_unused=True)
    for p, g in zip(rest, found, strict=True):
        if g is not None:
            p.grad = g if p.grad is None else p.grad + g


def _weight(out: Rows) -> Tensor:
    return torch.ones_like(out.rows) if out.weight is None else out.weight.detach()
