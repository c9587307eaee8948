"""The class gradients of one step of any method, and how far they agree."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ltbench import dist
from ltbench.backbones.batchnorm import frozen_statistics
from ltbench.class_gradients.engine import Engine, Loss, Pass
from ltbench.class_gradients.gram import with_exact_sum
from ltbench.gradients import held
from ltbench.methods.base import Batch, Progress, Rows
from ltbench.metrics import GROUPS
from ltbench.seeding import derive
from ltbench.updates.base import StepRun
from ltbench.updates.objectives import ClassObjectives
from ltbench.updates.pareto import repeatable

Mode = Literal["auto", "exact", "fast"]
Numbers = NDArray[np.float64]

SMALL = 20  # classes up to which ``auto`` is exact, and whole matrices are kept
SAMPLED = 50  # classes at most that are differentiated one by one


@dataclass(frozen=True)
class Look:
    """What the classes of one global batch want of a part of the network.

    Args:
        classes: those present, ascending [K].
        rows: loss rows of each [K].
        loss: mean row of each, by the rows' weights [K].
        share: what each adds to the batch's loss, ``B_k l_k / B`` [K].
        correct: share of its images that are classified rightly [K]; NaN where it is not known.
        chosen: places in ``classes`` of those whose gradients were found [n].
        products: inner products of these gradients and, in the last row, of that of all other
            rows together [n + 1, n + 1]; a class's gradient is that of its share.
        along: inner products of the same with a given direction [n + 1], or ``None``.
        mode: how they were found.
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


@dataclass(frozen=True)
class Agreement:
    """How far gradients agree.

    Args:
        norm: length of each [n].
        ratio: length over that of the average gradient g_0 [n].
        cosine: of each pair [n, n]; 0 where a gradient is zero.
        with_mean: cosine of each with g_0 [n].
        conflicts: pairs with a negative cosine.
        dominated: ordered pairs (i, j) with ``|g_i| < |g_j|`` and ``cos(g_0, g_i) < 0``.
        mean_norm: length of g_0.
    """

    norm: Numbers
    ratio: Numbers
    cosine: Numbers
    with_mean: Numbers
    conflicts: int
    dominated: int
    mean_norm: float

    @property
    def pairs(self) -> int:
        """How many pairs there are: the most that conflicts, and dominated ones, can be."""
        return len(self.norm) * (len(self.norm) - 1) // 2


def agreement(products: ArrayLike, count: int | None = None) -> Agreement:
    """Compute how far class gradients agree, some of them perhaps known in sum only.

    Reference: Zhou et al., PLOT, ICLR 2024, Definitions 2.1 (conflict) and 2.2 (dominated
        conflict).
    Departures: none known.

    Args:
        products: inner products of n gradients and, in the last row, of the sum of all others
            [n + 1, n + 1]; zeros where there are no others.
        count: how many gradients g_0 is the average of; n if not given.
    """
    table = np.asarray(products, dtype=np.float64)
    gram, with_sum = table[:-1, :-1], table.sum(axis=1)[:-1]
    norm = np.sqrt(gram.diagonal().clip(0))
    length = float(np.sqrt(max(float(table.sum()), 0.0)))
    mean = length / max(1, len(norm) if count is None else count)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(norm > 0, 1 / norm, 0.0)
        with_mean = with_sum * inverse / length if length > 0 else np.zeros_like(norm)
        ratio = norm / mean if mean > 0 else np.full_like(norm, np.nan)
    cosine = (gram * inverse) * inverse[:, None]
    longer = (norm[:, None] < norm).sum(axis=1)
    return Agreement(
        norm=norm,
        ratio=ratio,
        cosine=cosine.clip(-1, 1),
        with_mean=with_mean.clip(-1, 1),
        conflicts=int((np.triu(cosine, k=1) < 0).sum()),
        dominated=int(longer[with_mean < 0].sum()),
        mean_norm=mean,
    )


def between_groups(cosine: ArrayLike, groups: Sequence[str]) -> dict[tuple[str, str], float]:
    """Return the mean cosine of different classes within and between shot groups.

    Args:
        cosine: of each pair of classes [n, n].
        groups: shot group of each class [n].

    Returns:
        For each pair of groups, in the order of ``GROUPS``; NaN where there is no pair of classes.
    """
    table, names = np.asarray(cosine, dtype=np.float64), np.asarray(groups)
    upper = np.triu(np.ones(table.shape, dtype=bool), k=1)
    found = {}
    for i, a in enumerate(GROUPS):
        for b in GROUPS[i:]:
            one = np.outer(names == a, names == b)
            values = table[upper & (one | one.T)]
            found[a, b] = float(values.mean()) if len(values) else float("nan")
    return found


def look(
    run: StepRun,
    batches: Sequence[Batch],
    at: Progress,
    part: list[nn.Parameter],
    *,
    mode: Mode = "auto",
    engine: Engine | None = None,
    direction: Sequence[Tensor] | None = None,
) -> Look:
    """Differentiate the method's loss on prepared micro-batches, class by class.

    Weights, their gradients, running statistics and random numbers are left as they were.

    Args:
        run: the method, and how its forward passes run.
        batches: micro-batches of this rank, prepared.
        at: where training stands.
        part: what is differentiated; all of it takes gradients.
        mode: ``exact`` is one backward pass per class present, of at most ``SAMPLED`` of them;
            ``fast`` one in all, where the method allows it, approximate but for the average;
            ``auto`` is exact for data of at most ``SMALL`` classes.
        engine: of the part, where one is kept from step to step.
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
    one = len(batches) == 1  # the graphs of several would be held at once
    with torch.random.fork_rng(devices=devices), frozen_statistics(method):
        torch.manual_seed(derive(at.seed, "look", at.stage, at.epoch, at.step, dist.rank()))
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
                Pass(again, place[out.labels], weight, weight, loss=loss)
                for again, out, weight, loss in zip(forwards, outs, weights, kept, strict=True)
            ]

        chosen = present
        own = passes(chosen)
        fast = fast and engine.works(own[0])
        if fast:
            total, found = engine.survey(own, len(chosen), part, together=True)
            products = with_exact_sum(found.cpu().numpy())
            # Few columns were looked at: their lengths are put right by that of the sum.
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
        engine.forget()
    table = _sums(outs, batches, size)[present].cpu().numpy()
    sums, weight, right, seen = table.T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, correct = sums / weight, np.where(seen > 0, right / seen, np.nan)
    classes = present.cpu().numpy()
    return Look(
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
    """Return at most ``limit`` places of ``size``, evenly spread, first and last among them."""
    return sorted({round(i) for i in np.linspace(0, size - 1, min(size, limit))})


def _sums(outs: Sequence[Rows], batches: Sequence[Batch], size: int) -> Tensor:
    """Return weighted rows, weights, right images and images by class, of all ranks [C, 4]."""
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
    return dist.sum_(table)
