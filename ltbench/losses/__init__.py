"""Losses of long-tailed recognition, for any model and training loop.

Every loss exists as a function that returns one value per row (`..._rows`) and as a small module
with ``reduction="mean"`` or ``"none"``. Example::

    import torch
    from ltbench.losses import BalancedSoftmaxLoss, label_aware_smoothing_rows
    from ltbench.losses import label_aware_smoothing

    class_counts = [500, 120, 30, 5]                      # training images of each class
    logits = torch.randn(8, 4, requires_grad=True)        # [B, C]
    labels = torch.randint(4, (8,))                       # [B]
    criterion = BalancedSoftmaxLoss(class_counts)
    criterion(logits, labels).backward()
    smoothing = label_aware_smoothing(class_counts, head=0.3, tail=0.0)
    rows = label_aware_smoothing_rows(logits, labels, smoothing)  # [B]
"""

from __future__ import annotations

from ltbench.losses.class_counts import (
    effective_number_weights,
    label_aware_smoothing,
    ldam_margins,
    logit_adjustment_offset,
    plot_class_weights,
)
from ltbench.losses.modules import (
    BalancedSoftmaxLoss,
    LabelAwareSmoothingLoss,
    LDAMLoss,
    LogitAdjustedLoss,
)
from ltbench.losses.rows import (
    balanced_softmax_rows,
    cross_entropy_rows,
    label_aware_smoothing_rows,
    ldam_rows,
    logit_adjusted_rows,
    mixup_rows,
    variability_collapse,
)

__all__ = [
    "BalancedSoftmaxLoss",
    "LDAMLoss",
    "LabelAwareSmoothingLoss",
    "LogitAdjustedLoss",
    "balanced_softmax_rows",
    "cross_entropy_rows",
    "effective_number_weights",
    "label_aware_smoothing",
    "label_aware_smoothing_rows",
    "ldam_margins",
    "ldam_rows",
    "logit_adjusted_rows",
    "logit_adjustment_offset",
    "mixup_rows",
    "plot_class_weights",
    "variability_collapse",
]
