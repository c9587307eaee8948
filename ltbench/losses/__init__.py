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

from ltbench.losses.adaptive import (
    class_perturbed_logits,
    class_radii,
    difficulty_target,
    difficulty_weights,
    driver_loss,
    seed_acceptance,
    translate,
)
from ltbench.losses.class_counts import (
    effective_number_weights,
    label_aware_smoothing,
    ldam_margins,
    log_prior,
    logit_adjustment_offset,
    plot_class_weights,
)
from ltbench.losses.contrastive import (
    balanced_contrastive_rows,
    paco_rows,
)
from ltbench.losses.experts import (
    bbn_alpha,
    diversity_rows,
    expert_ldam_rows,
    reslt_rows,
    ride_temperatures,
    sade_expert_weights,
    sade_inverse_prior,
    sade_rows,
    sade_test_time_similarity,
)
from ltbench.losses.logits import (
    cloud_sizes,
    disalign_logits,
    focal_rows,
    gcl_rows,
    generalised_weights,
    lade_regulariser,
    vs_offset,
    vs_rows,
    vs_scale,
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
from ltbench.losses.rsg import (
    VariationTransfer,
    variation_rows,
)

__all__ = [
    "BalancedSoftmaxLoss",
    "LDAMLoss",
    "LabelAwareSmoothingLoss",
    "LogitAdjustedLoss",
    "VariationTransfer",
    "balanced_contrastive_rows",
    "balanced_softmax_rows",
    "bbn_alpha",
    "class_perturbed_logits",
    "class_radii",
    "cloud_sizes",
    "cross_entropy_rows",
    "difficulty_target",
    "difficulty_weights",
    "disalign_logits",
    "diversity_rows",
    "driver_loss",
    "effective_number_weights",
    "expert_ldam_rows",
    "focal_rows",
    "gcl_rows",
    "generalised_weights",
    "label_aware_smoothing",
    "label_aware_smoothing_rows",
    "lade_regulariser",
    "ldam_margins",
    "ldam_rows",
    "log_prior",
    "logit_adjusted_rows",
    "logit_adjustment_offset",
    "mixup_rows",
    "paco_rows",
    "plot_class_weights",
    "reslt_rows",
    "ride_temperatures",
    "sade_expert_weights",
    "sade_inverse_prior",
    "sade_rows",
    "sade_test_time_similarity",
    "seed_acceptance",
    "translate",
    "variability_collapse",
    "variation_rows",
    "vs_offset",
    "vs_rows",
    "vs_scale",
]
