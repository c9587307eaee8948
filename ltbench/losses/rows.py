"""Losses as pure functions that return one value per row.

Logits are [B, C] of any floating type; half precision is raised to single. Labels are [B], int64.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ltbench.losses.class_counts import Counts, checked_counts
from ltbench.losses.precision import full


def cross_entropy_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each row.

    Args:
        logits: [B, C].
        labels: [B].

    Returns:
        Losses [B].
    """
    return F.cross_entropy(full(logits), labels, reduction="none")


def mixup_rows(logits: Tensor, labels: Tensor, partner: Tensor, lam: float | Tensor) -> Tensor:
    """Return the cross-entropy of each mixed row against both of its labels.

    Reference: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018,
        arXiv:1710.09412.
    Departures: none known.

    Args:
        logits: of the mixed images [B, C].
        labels: first labels [B].
        partner: second labels [B].
        lam: share of the first label, in [0, 1]; a scalar tensor is not checked.

    Returns:
        Losses [B].

    Raises:
        ValueError: ``lam`` is not in [0, 1].
    """
    if not isinstance(lam, Tensor) and not 0 <= lam <= 1:
        raise ValueError(f"`lam` must be in [0, 1], found {lam}")
    log_p = full(logits).log_softmax(dim=1)
    first, second = _pick(log_p, labels), _pick(log_p, partner)
    return -(lam * first + (1 - lam) * second)


def logit_adjusted_rows(logits: Tensor, labels: Tensor, offset: Tensor) -> Tensor:
    """Return the cross-entropy of each row after adding an offset to the logits.

    Reference: Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021,
        arXiv:2007.07314, Eqn 10.
    Departures: none known.

    Args:
        logits: [B, C].
        labels: [B].
        offset: [C], see ``logit_adjustment_offset``.

    Returns:
        Losses [B].
    """
    logits = full(logits)
    return cross_entropy_rows(logits + offset.to(logits), labels)


def balanced_softmax_rows(logits: Tensor, labels: Tensor, class_counts: Counts) -> Tensor:
    """Return the cross-entropy of each row under a softmax weighted by class counts.

    Reference: Ren et al., Balanced Meta-Softmax for Long-Tailed Visual Recognition,
        NeurIPS 2020, arXiv:2007.10740, Eqn 3-4.
    Departures: none known.

    Args:
        logits: [B, C].
        labels: [B].
        class_counts: training images of each class [C].

    Returns:
        Losses [B].

    Raises:
        UserError: a count is not positive.
    """
    return logit_adjusted_rows(logits, labels, checked_counts(class_counts).log())


def ldam_rows(logits: Tensor, labels: Tensor, margins: Tensor, scale: float = 30.0) -> Tensor:
    """Return the cross-entropy of each row after lowering its own class's cosine by a margin.

    Reference: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin
        Loss, NeurIPS 2019, arXiv:1906.07413, section 3.2.
    Departures: takes logits that carry the scale already, where the authors' code scales inside.

    Args:
        logits: scale times cosine [B, C].
        labels: [B].
        margins: of each class, in units of the cosine [C], see ``ldam_margins``.
        scale: that of the logits, > 0.

    Returns:
        Losses [B].

    Raises:
        ValueError: ``scale`` is not positive.
    """
    if not scale > 0:
        raise ValueError(f"`scale` must be > 0, found {scale}")
    logits = full(logits)
    lowered = scale * margins.to(logits)[labels]  # [B]
    return cross_entropy_rows(logits.scatter_add(1, labels[:, None], -lowered[:, None]), labels)


def label_aware_smoothing_rows(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    """Return the cross-entropy of each row against its smoothed label.

    Reference: Zhong et al., Improving Calibration for Long-Tailed Recognition, CVPR 2021,
        arXiv:2104.00466 (label-aware smoothing).
    Departures: the paper spreads the smoothed mass over the other classes; here, as in the
        authors' code, over all classes.

    Args:
        logits: [B, C].
        labels: [B].
        smoothing: share taken from the label, by class, in [0, 1] [C].

    Returns:
        Losses [B].
    """
    log_p = full(logits).log_softmax(dim=1)
    share = smoothing.to(log_p)[labels]  # [B]
    return -((1 - share) * _pick(log_p, labels) + share * log_p.mean(dim=1))


def variability_collapse(
    rows: Tensor,
    labels: Tensor,
    num_classes: int,
    divisor: Literal["all", "present", "official"] = "all",
) -> tuple[Tensor, Tensor]:
    """Return PLOT's variability-collapse loss: the spread of losses within classes.

    Reference: Zhou et al., Pareto Deep Long-Tailed Recognition: A Conflict-Averse Solution,
        ICLR 2024, Eqn 2.
    Departures: the paper does not specify the standard deviation; here it is the unbiased one, 0
        for a class with one row. ``official`` is the mean over classes with two rows or more, as
        released, but 0 where the release divides by zero.

    Args:
        rows: losses [N].
        labels: class of each row [N].
        num_classes: C.
        divisor: mean over all C classes, those present, or those with two rows or more.

    Returns:
        The loss, and the standard deviation of each class [C]; gradients flow through both.

    Raises:
        ValueError: ``divisor`` is unknown.
    """
    rows = full(rows)
    zeros = rows.new_zeros(num_classes)
    counts = zeros.index_add(0, labels, torch.ones_like(rows))
    means = zeros.index_add(0, labels, rows) / counts.clamp(min=1)
    squares = zeros.index_add(0, labels, (rows - means[labels]) ** 2)
    spread = squares > 0
    variance = torch.where(spread, squares, 1.0) / (counts - 1).clamp(min=1)
    std = torch.where(spread & (counts > 1), variance.sqrt(), 0.0)  # finite slope at zero
    if divisor == "all":
        terms = counts.new_tensor(float(num_classes))
    elif divisor == "present":
        terms = (counts > 0).sum()
    elif divisor == "official":
        terms = (counts > 1).sum()
    else:
        raise ValueError(f"`divisor`: expected all, present or official, found {divisor}")
    return std.sum() / terms.clamp(min=1), std


def _pick(log_p: Tensor, labels: Tensor) -> Tensor:
    return log_p.gather(1, labels[:, None])[:, 0]
