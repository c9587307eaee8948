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
from ltbench.losses.branches import bbn_alpha, reslt_rows
from ltbench.losses.class_counts import (
    effective_number_weights,
    focal_sam_shares,
    label_aware_smoothing,
    ldam_margins,
    log_prior,
    logit_adjustment_offset,
    plot_class_weights,
)
from ltbench.losses.collaborative import (
    hard_classes,
    mutual_divergences,
    ncl_rows,
    nclpp_rows,
)
from ltbench.losses.contrastive import (
    balanced_contrastive_rows,
    paco_rows,
    supervised_contrastive_rows,
)
from ltbench.losses.curriculum import next_levels, trial_counts
from ltbench.losses.dirichlet import (
    dirmixe_centres,
    dirmixe_losses,
    dirmixe_offsets,
    draw_test_priors,
    upper_semivariance,
)
from ltbench.losses.distillation import deitlt_rows
from ltbench.losses.etf import (
    batch_lengths,
    dot_regression_rows,
    etf_directions,
)
from ltbench.losses.experts import (
    balpoe_offsets,
    balpoe_rows,
    balpoe_strengths,
    diversity_rows,
    expert_ldam_rows,
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
from ltbench.losses.mixing import (
    consistency_rows,
    cumulative_rows,
    cut_box,
    kept_share,
    paste,
    weighted_mixup_rows,
)
from ltbench.losses.modules import (
    BalancedSoftmaxLoss,
    LabelAwareSmoothingLoss,
    LDAMLoss,
    LogitAdjustedLoss,
)
from ltbench.losses.retraining import (
    binary_softmax_rows,
    fused_maps,
    max_norm,
    max_norm_limit,
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
from ltbench.losses.self_distillation import (
    mdcs_confident,
    mdcs_offsets,
    mdcs_rows,
    shike_rows,
)
from ltbench.losses.vmf import (
    bessel_ratio,
    log_ive,
    proco_logits,
    updated_means,
    vmf_concentration,
    vmf_log_normaliser,
)

__all__ = [
    "BalancedSoftmaxLoss",
    "LDAMLoss",
    "LabelAwareSmoothingLoss",
    "LogitAdjustedLoss",
    "VariationTransfer",
    "balanced_contrastive_rows",
    "balanced_softmax_rows",
    "balpoe_offsets",
    "balpoe_rows",
    "balpoe_strengths",
    "batch_lengths",
    "bbn_alpha",
    "bessel_ratio",
    "binary_softmax_rows",
    "class_perturbed_logits",
    "class_radii",
    "cloud_sizes",
    "consistency_rows",
    "cross_entropy_rows",
    "cumulative_rows",
    "cut_box",
    "deitlt_rows",
    "difficulty_target",
    "difficulty_weights",
    "dirmixe_centres",
    "dirmixe_losses",
    "dirmixe_offsets",
    "disalign_logits",
    "diversity_rows",
    "dot_regression_rows",
    "draw_test_priors",
    "driver_loss",
    "effective_number_weights",
    "etf_directions",
    "expert_ldam_rows",
    "focal_rows",
    "focal_sam_shares",
    "fused_maps",
    "gcl_rows",
    "generalised_weights",
    "hard_classes",
    "kept_share",
    "label_aware_smoothing",
    "label_aware_smoothing_rows",
    "lade_regulariser",
    "ldam_margins",
    "ldam_rows",
    "log_ive",
    "log_prior",
    "logit_adjusted_rows",
    "logit_adjustment_offset",
    "max_norm",
    "max_norm_limit",
    "mdcs_confident",
    "mdcs_offsets",
    "mdcs_rows",
    "mixup_rows",
    "mutual_divergences",
    "ncl_rows",
    "nclpp_rows",
    "next_levels",
    "paco_rows",
    "paste",
    "plot_class_weights",
    "proco_logits",
    "reslt_rows",
    "ride_temperatures",
    "sade_expert_weights",
    "sade_inverse_prior",
    "sade_rows",
    "sade_test_time_similarity",
    "seed_acceptance",
    "shike_rows",
    "supervised_contrastive_rows",
    "translate",
    "trial_counts",
    "updated_means",
    "upper_semivariance",
    "variability_collapse",
    "variation_rows",
    "vmf_concentration",
    "vmf_log_normaliser",
    "vs_offset",
    "vs_rows",
    "vs_scale",
    "weighted_mixup_rows",
]
