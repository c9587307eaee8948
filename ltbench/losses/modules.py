"""Losses as modules, with class statistics as buffers."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ltbench.losses.class_counts import (
    Counts,
    Smoothing,
    checked_counts,
    label_aware_smoothing,
    ldam_margins,
    logit_adjustment_offset,
)
from ltbench.losses.rows import label_aware_smoothing_rows, ldam_rows, logit_adjusted_rows

Reduction = Literal["mean", "none"]


class RowLoss(nn.Module):
    """Base class of losses with one value per row.

    Args:
        reduction: ``mean`` over rows, or ``none`` for the rows [B] themselves.

    Raises:
        ValueError: ``reduction`` is unknown.
    """

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "none"):
            raise ValueError(f"`reduction`: expected mean or none, found {reduction}")
        self.reduction = reduction

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row [B]."""
        raise NotImplementedError

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of logits [B, C] against labels [B]."""
        rows = self.rows(logits, labels)
        return rows.mean() if self.reduction == "mean" else rows


class LogitAdjustedLoss(RowLoss):
    """Cross-entropy with the training prior added to the logits; predict with the bare logits.

    Reference: Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021,
        arXiv:2007.07314, Eqn 10.
    Departures: see ``logit_adjustment_offset``.

    Args:
        class_counts: training images of each class [C].
        tau: strength of the prior, >= 0.
        reduction: ``mean`` or ``none``.
    """

    offset: Tensor

    def __init__(
        self, class_counts: Counts, tau: float = 1.0, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(reduction)
        offset = logit_adjustment_offset(class_counts, tau)
        self.register_buffer("offset", offset, persistent=False)

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row [B]."""
        return logit_adjusted_rows(logits, labels, self.offset)


class BalancedSoftmaxLoss(RowLoss):
    """Cross-entropy under a softmax weighted by class counts; predict with the bare logits.

    Reference: Ren et al., Balanced Meta-Softmax for Long-Tailed Visual Recognition,
        NeurIPS 2020, arXiv:2007.10740, Eqn 3-4.
    Departures: none known.

    Args:
        class_counts: training images of each class [C].
        reduction: ``mean`` or ``none``.
    """

    log_counts: Tensor

    def __init__(self, class_counts: Counts, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        self.register_buffer("log_counts", checked_counts(class_counts).log(), persistent=False)

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row [B]."""
        return logit_adjusted_rows(logits, labels, self.log_counts)


class LDAMLoss(RowLoss):
    """Label-distribution-aware margin loss on scaled cosines.

    Reference: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin
        Loss, NeurIPS 2019, arXiv:1906.07413, section 3.2.
    Departures: takes logits that carry the scale already, e.g. those of
        ``ltbench.models.heads.CosineHead``; deferred weights are the caller's.

    Args:
        class_counts: training images of each class [C].
        max_margin: margin of the rarest class in units of the cosine, >= 0.
        scale: that of the logits, > 0.
        reduction: ``mean`` or ``none``.
    """

    margins: Tensor

    def __init__(
        self,
        class_counts: Counts,
        max_margin: float = 0.5,
        scale: float = 30.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.scale = scale
        self.register_buffer("margins", ldam_margins(class_counts, max_margin), persistent=False)

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row [B]."""
        return ldam_rows(logits, labels, self.margins, self.scale)


class LabelAwareSmoothingLoss(RowLoss):
    """Cross-entropy with labels smoothed more for larger classes.

    Reference: Zhong et al., Improving Calibration for Long-Tailed Recognition, CVPR 2021,
        arXiv:2104.00466 (label-aware smoothing).
    Departures: see ``label_aware_smoothing_rows``.

    Args:
        class_counts: training images of each class [C].
        head: smoothing of the largest class, in [tail, 1].
        tail: smoothing of the smallest class, in [0, 1].
        shape: how smoothing grows from tail to head.
        power: exponent > 0 of the shape ``exponential``.
        reduction: ``mean`` or ``none``.
    """

    smoothing: Tensor

    def __init__(
        self,
        class_counts: Counts,
        head: float = 0.3,
        tail: float = 0.0,
        shape: Smoothing = "concave",
        power: float | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        smoothing = label_aware_smoothing(class_counts, head, tail, shape, power)
        self.register_buffer("smoothing", smoothing, persistent=False)

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row [B]."""
        return label_aware_smoothing_rows(logits, labels, self.smoothing)
