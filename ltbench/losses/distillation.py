"""Losses towards the predictions of a teacher."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ltbench.losses.precision import full


def deitlt_rows(
    class_logits: Tensor,
    distill_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    class_weights: Tensor | None = None,
    alpha: float = 0.5,
    mean_weight: Tensor | None = None,
) -> Tensor:
    """Return DeiT-LT's loss of each row; their mean is the loss of the batch.

    The class token learns the mixed targets, the distillation token the class that the teacher
    predicts. From the deferred epoch on, the second term is a mean weighted by that class.

    Reference: Rangwani et al., DeiT-LT: Distillation Strikes Back for Vision Transformer Training
        on Long-Tailed Datasets, CVPR 2024, arXiv:2404.02900.
    Departures: none known.

    Args:
        class_logits: of the class token [B, C].
        distill_logits: of the distillation token [B, C].
        teacher_logits: of the teacher on the same images [B, C]; no gradient flows to them.
        targets: probabilities of the classes [B, C].
        class_weights: of the teacher's classes [C], e.g. ``effective_number_weights``; ``None``
            is 1, as before the deferred epoch.
        alpha: weight of the second term, in [0, 1]; 1 - ``alpha`` is that of the first.
        mean_weight: mean weight of the whole batch if this is a part of it, scalar. That of these
            rows by default.

    Returns:
        Losses [B].

    Raises:
        ValueError: ``alpha`` is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be in [0, 1], found {alpha}")
    logits = full(class_logits)
    own = -(targets.to(logits) * logits.log_softmax(dim=1)).sum(dim=1)
    told = teacher_logits.detach().argmax(dim=1)
    distilled = F.cross_entropy(full(distill_logits), told, reduction="none")
    if class_weights is not None:
        weights = class_weights.to(distilled)[told]
        mean = weights.mean() if mean_weight is None else mean_weight.to(distilled)
        distilled = distilled * weights / mean.clamp(min=torch.finfo(weights.dtype).tiny)
    return (1 - alpha) * own + alpha * distilled
