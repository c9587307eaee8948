"""Losses of experts that are distilled into each other or into their own prediction of a view.

Logits of E experts are [B, E, C] of any floating type; half precision is raised to single. Labels
are [B], int64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ltbench.losses.class_counts import Counts, checked_counts
from ltbench.losses.experts import sade_rows
from ltbench.losses.precision import full
from ltbench.losses.rows import cross_entropy_rows

MDCS_FLOOR = 1e-9  # added to powers of the class counts; as in MDCS's code


def mdcs_offsets(class_counts: Counts, powers: Sequence[float] = (-0.5, 1.0, 2.5)) -> Tensor:
    """Return MDCS's logit offsets of each expert: the logarithm of a power of the class counts.

    Reference: Zhao et al., MDCS: More Diverse Experts with Consistency Self-distillation for
        Long-tailed Recognition, ICCV 2023, arXiv:2308.09922, diversity loss.
    Departures: 1e-9 is added to the power before the logarithm, as in the authors' code.

    Args:
        class_counts: training images of each class [C].
        powers: exponent q of each expert; 0 is cross-entropy, 1 balanced softmax, above it rare
            classes are favoured, below 0 frequent ones.

    Returns:
        Offsets [E, C].

    Raises:
        UserError: a count is not positive.
    """
    counts = checked_counts(class_counts)
    return torch.stack([(counts**q + MDCS_FLOOR).log() for q in powers])


def mdcs_confident(weak: Tensor, labels: Tensor, offsets: Tensor) -> Tensor:
    """Return whether each expert is right on the weak view, bool [B, E].

    Args:
        weak: the experts' logits on weakly augmented images [B, E, C].
        labels: [B].
        offsets: of each expert [E, C], see ``mdcs_offsets``.
    """
    adjusted = full(weak).detach()
    return (adjusted + offsets.to(adjusted)).argmax(dim=2) == labels[:, None]


def mdcs_rows(
    weak: Tensor,
    strong: Tensor,
    labels: Tensor,
    offsets: Tensor,
    weight: float,
    shares: Tensor | None = None,
) -> Tensor:
    """Return MDCS's loss of each image; their mean over images is the loss of the batch.

    A row is the mean over both views of the experts' summed cross-entropies, plus ``weight`` times
    the divergence of each expert's strong view from its weak one, for experts that are right on
    the weak view, divided by the share of images on which the expert is. The weak view is a
    constant target.

    Reference: Zhao et al., MDCS: More Diverse Experts with Consistency Self-distillation for
        Long-tailed Recognition, ICCV 2023, arXiv:2308.09922.
    Departures: none known.

    Args:
        weak: the experts' logits on weakly augmented images [B, E, C].
        strong: on strongly augmented ones [B, E, C].
        labels: [B].
        offsets: of each expert [E, C], see ``mdcs_offsets``.
        weight: of the divergences, >= 0.
        shares: share of images of the whole batch on which each expert is right [E], if this is a
            part of it. Counted in ``weak`` by default.

    Returns:
        Losses [B].
    """
    rows = (sade_rows(weak, labels, offsets) + sade_rows(strong, labels, offsets)) / 2
    right = mdcs_confident(weak, labels, offsets).to(rows)  # [B, E]
    shares = right.mean(dim=0) if shares is None else shares.to(rows)
    weak, strong = full(weak), full(strong)
    target = (weak + offsets.to(weak)).detach().log_softmax(dim=2)
    student = (strong + offsets.to(strong)).log_softmax(dim=2)
    divergence = (target.exp() * (target - student)).sum(dim=2)  # [B, E]
    each = right / shares.clamp(min=torch.finfo(rows.dtype).tiny)
    return rows + weight * (each * divergence).sum(dim=1)


def shike_rows(
    logits: Tensor, labels: Tensor, suppression: float = 10.0, label_logit: float = -30.0
) -> Tensor:
    """Return SHIKE's loss of each image in stage 1; their mean is the loss of the batch.

    A row sums over experts the cross-entropy, ``suppression`` times the divergence from a common
    target without the label, and the divergences from all other experts; both divergences are
    means over classes. The target takes for the other classes the largest logit of any expert, but
    the experts' mean for the hardest one, that of the highest mean.

    Reference: Jin et al., Long-Tailed Visual Recognition via Self-Heterogeneous Integration with
        Knowledge Excavation, CVPR 2023, arXiv:2304.01279.
    Departures: as in the authors' code, the label has logit 0 in the target and ``label_logit`` in
        the experts' predictions without it, gradients flow through targets too, and divergences
        are divided by the number of classes.

    Args:
        logits: of the experts [B, E, C], C >= 2.
        labels: [B].
        suppression: weight of the divergences from the common target, >= 0.
        label_logit: logit of the label in predictions without it.

    Returns:
        Losses [B].
    """
    logits = full(logits)
    experts, classes = logits.shape[1:]
    own = torch.zeros_like(logits[:, 0], dtype=torch.bool).scatter(1, labels[:, None], True)
    mean = logits.mean(dim=1)  # [B, C]
    hardest = mean.detach().masked_fill(own, -torch.inf).argmax(dim=1, keepdim=True)
    target = logits.max(dim=1).values.scatter(1, hardest, mean.gather(1, hardest))
    target = target.masked_fill(own, 0.0).log_softmax(dim=1)[:, None]
    others = logits.masked_fill(own[:, None], label_logit).log_softmax(dim=2)
    rows = suppression * (target.exp() * (target - others)).sum(dim=(1, 2))
    log_p = logits.log_softmax(dim=2)
    for e in range(experts):
        rows = rows + (log_p.exp() * (log_p - log_p[:, e : e + 1])).sum(dim=(1, 2))
    each = cross_entropy_rows(logits.flatten(0, 1), labels.repeat_interleave(experts))
    return each.view(-1, experts).sum(dim=1) + rows / classes
