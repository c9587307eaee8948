"""Class gradients of one step of any method."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ltbench.class_gradients.engine import Engine, Loss, Pass
from ltbench.class_gradients.gram import with_exact_sum
from ltbench.distributed import ranks
from ltbench.gradients import held
from ltbench.methods.base import Batch, Progress, Rows
from ltbench.models.batchnorm import frozen_statistics
from ltbench.seeding import derive
from ltbench.updates.base import StepRun
from ltbench.updates.objectives import ClassObjectives
from ltbench.updates.pareto import repeatable

Mode = Literal["auto", "exact", "fast"]
Numbers = NDArray[np.float64]

SMALL = 20  # number of classes up to which ``auto`` is exact and whole matrices are kept
SAMPLED = 50  # maximum number of classes in exact mode


@dataclass(frozen=True)
class StepGradients:
    """Class gradients of one global batch with respect to a part of the network.

    Args:
        classes: classes present, ascending [K].
        rows: number of loss rows of each [K].
        loss: weighted mean row of each [K].
        share: contribution of each to the batch's loss, ``B_k l_k / B`` [K].
        correct: training accuracy of each [K]; NaN if not known.
        chosen: indices in ``classes`` of those that were differentiated [n].
        products: inner products of their gradients and, in the last row, of the gradient of all
            other rows [n + 1, n + 1]; the gradients are those of ``share``.
        along: inner products of the same with a given direction [n + 1], or ``None``.
        mode: ``exact`` or ``fast``.
    """

    classes: NDArray[np.int64]
    rows: Numbers
    loss: Numbers
    share: Numbers
    correct: Numbers
    chosen: NDArray[np.int64]
    products: Numbers
    along: Numbers | None
    mode: str


def step_gradients(
    run: StepRun,
    batches: Sequence[Batch],
    at: Progress,
    part: list[nn.Parameter],
    *,
    mode: Mode = "auto",
    engine: Engine | None = None,
    direction: Sequence[Tensor] | None = None,
) -> StepGradients:
    """Compute the class gradients of the method's loss on prepared micro-batches.

    Weights, their gradients, running statistics and random state are not changed.

    Args:
        run: the method and the context of its forward passes.
        batches: prepared micro-batches of this rank.
        at: progress of training.
        part: parameters to differentiate with respect to; all require gradients.
        mode: ``exact`` is one backward pass per class, for at most ``SAMPLED`` classes; ``fast`` is
            a single one, if the method supports it, approximate except for the average; ``auto``
            is exact for data sets of at most ``SMALL`` classes.
        engine: engine of the part, to be reused from step to step.
        direction: one tensor for each parameter of the part.
    """
    method = run.method
    size = method.info.num_classes
    fast = mode == "fast" or (mode == "auto" and size > SMALL)
    engine = Engine(method, part) if engine is None else engine
    outs: list[Rows] = []

    def forward(micro: int) -> Loss:
        out = run.loss(batches[micro], replace(at, micro=micro))
        if len(outs) == micro:
            outs.append(out)
        return out.rows, None

    device = part[0].device
    devices = [device] if device.type == "cuda" else []
    one = len(batches) == 1  # several would hold all graphs at once
    with torch.random.fork_rng(devices=devices), frozen_statistics(method):
        torch.manual_seed(derive(at.seed, "look", at.stage, at.epoch, at.step, ranks.rank()))
        forwards = [repeatable(partial(forward, micro), method) for micro in range(len(batches))]
        record = engine.recording() if fast else nullcontext()
        with record, torch.set_grad_enabled(one):
            losses = [again() for again in forwards]
        objectives = ClassObjectives.measure(
            outs,
            num_classes=size,
            scale="batch_fraction",
            collapse_weight=0.0,
            collapse_divisor="all",
            collapse_in_class_gradients=True,
        )
        present = objectives.counts.nonzero()[:, 0]

        def passes(chosen: Tensor) -> list[Pass]:
            place = torch.full((size,), len(chosen), dtype=torch.int64, device=device)
            place[chosen] = torch.arange(len(chosen), device=device)
            kept = losses if one else [None] * len(losses)
            weights = [objectives.cotangents(out)[0] for out in outs]
            return [
                Pass(again, place[out.labels], weight, weight, loss=loss, images=out.images)
                for again, out, weight, loss in zip(forwards, outs, weights, kept, strict=True)
            ]

        chosen = present
        own = passes(chosen)
        fast = fast and engine.supports_fast(own[0])
        if fast:
            total, found = engine.fast(own, len(chosen), part, additive=True)
            products = with_exact_sum(found.cpu().numpy())
            # Rescale products over sampled columns to the exact norm of the sum.
            squares = [(g.double() ** 2).sum() for g in held(total.wait())]
            square = float(torch.stack(squares).sum()) if squares else 0.0
            tiny = float(np.finfo(np.float64).tiny)
            products = products * np.clip(square / max(float(products.sum()), tiny), 0.1, 10)
        else:
            chosen = present[spread(len(present), SAMPLED)]
            own = passes(chosen)
            products = engine.exact(own, len(chosen) + 1).cpu().numpy()
        along = None
        if direction is not None:
            along = engine.slopes(own, len(chosen) + 1, direction).cpu().numpy()
        engine.release()
    table = _sums(outs, batches, size)[present].cpu().numpy()
    sums, weight, right, seen = table.T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, correct = sums / weight, np.where(seen > 0, right / seen, np.nan)
    classes = present.cpu().numpy()
    return StepGradients(
        classes=classes,
        rows=objectives.counts[present].cpu().numpy(),
        loss=mean,
        share=sums / float(objectives.divisor),
        correct=correct,
        chosen=np.searchsorted(classes, chosen.cpu().numpy()),
        products=products,
        along=along,
        mode="fast" if fast else "exact",
    )


def spread(size: int, limit: int) -> list[int]:
    """Return at most ``limit`` evenly spaced indices below ``size``, including first and last."""
    return sorted({round(i) for i in np.linspace(0, size - 1, min(size, limit))})


def _sums(outs: Sequence[Rows], batches: Sequence[Batch], size: int) -> Tensor:
    """Sum weighted rows, weights, correct images and images by class over all ranks [C, 4]."""
    table = torch.zeros((size, 4), dtype=torch.float64, device=outs[0].rows.device)
    for out, batch in zip(outs, batches, strict=True):
        rows = out.rows.detach().double()
        weight = torch.ones_like(rows) if out.weight is None else out.weight.detach().double()
        table[:, :2].index_add_(0, out.labels, torch.stack([weight * rows, weight], dim=1))
        if out.logits is not None:
            right = (out.logits.argmax(dim=1) == batch.labels).double()
            table[:, 2:].index_add_(
                0, batch.labels, torch.stack([right, torch.ones_like(right)], dim=1)
            )
    return ranks.all_reduce_(table)
