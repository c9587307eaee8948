"""Supervised contrastive losses for long tails, one value per anchor.

Features have unit norm and any floating type; half precision is raised to single, and products are
computed in full precision even under autocast. Labels are int64. The anchors may be a subset of the
features, so that each rank can contrast its own anchors with the features of all ranks. Of many
anchors or features, some anchors are contrasted at a time, so that memory is bounded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ltbench.losses.precision import full

HELD = 2**24  # similarities of anchors and features in memory at once; a loss holds about six each


def paco_rows(
    scores: Tensor,
    anchors: Tensor,
    labels: Tensor,
    others: Tensor,
    other_labels: Tensor,
    *,
    start: int = 0,
    alpha: float = 0.05,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 0.2,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the parametric contrastive loss of each anchor.

    An anchor is attracted to its class centre with weight ``beta`` and to each other feature of its
    class with weight ``alpha``, against all centres and, ``gamma`` times, all other features.

    Reference: Cui et al., Parametric Contrastive Learning, ICCV 2021, arXiv:2107.12028, Eqn 4-5;
        the smoothing is that of Cui et al., Generalized Parametric Contrastive Learning, TPAMI
        2023, arXiv:2209.12400.
    Departures: gamma is in the authors' code only.

    Args:
        scores: logits of the class centres, prior included [N, C].
        anchors: [N, d].
        labels: of the anchors [N].
        others: features to contrast with, including the anchors themselves [M, d].
        other_labels: [M]; a negative label belongs to no class.
        start: index of the first anchor in ``others``; the rest follow it.
        alpha: weight of features as positives, >= 0.
        beta: weight of the centre as a positive, > 0.
        gamma: weight of features in the denominator, >= 0.
        temperature: > 0.
        smoothing: share of ``beta`` that goes to the other centres in equal parts, in [0, 1).

    Returns:
        Losses [N].

    Raises:
        ValueError: a weight, the temperature or the smoothing is out of range.
    """
    if not (alpha >= 0 and beta > 0 and gamma >= 0 and temperature > 0):
        raise ValueError(
            "expected `alpha`, `gamma` >= 0 and `beta`, `temperature` > 0, found "
            f"{alpha}, {gamma}, {beta}, {temperature}"
        )
    if not 0 <= smoothing < 1:
        raise ValueError(f"`smoothing` must be in [0, 1), found {smoothing}")
    scores = full(scores)
    weight = scores.new_full((), gamma).log()  # minus infinity removes features

    def rows(part: slice) -> Tensor:
        own, given = scores[part], labels[part]
        similar, itself = _similarities(anchors[part], others, start + part.start, temperature)
        positive = (given[:, None] == other_labels) & ~itself
        spread = torch.cat([own, similar.masked_fill(itself, -torch.inf) + weight], dim=1)
        centre = own.gather(1, given[:, None])[:, 0]
        if smoothing:
            rest = (own.sum(dim=1) - centre) / max(own.shape[1] - 1, 1)
            centre = (1 - smoothing) * centre + smoothing * rest
        drawn = beta * centre + alpha * (similar * positive).sum(dim=1)
        return spread.logsumexp(dim=1) - drawn / (beta + alpha * positive.sum(dim=1).to(own))

    return _in_parts(rows, len(anchors), len(others) + scores.shape[1])


def supervised_contrastive_rows(
    anchors: Tensor,
    labels: Tensor,
    others: Tensor,
    other_labels: Tensor,
    *,
    start: int = 0,
    temperature: float = 0.2,
) -> Tensor:
    """Return the supervised contrastive loss of each anchor: its mean over the class's features.

    Reference: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, arXiv:2004.11362,
        Eqn 2.
    Departures: an anchor without another feature of its class has loss 0, where released codes
        divide by zero.

    Args:
        anchors: [N, d].
        labels: of the anchors [N].
        others: features to contrast with, including the anchors themselves [M, d], M > 1.
        other_labels: [M]; a negative label belongs to no class.
        start: index of the first anchor in ``others``; the rest follow it.
        temperature: > 0.

    Returns:
        Losses [N].

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be > 0, found {temperature}")

    def rows(part: slice) -> Tensor:
        similar, itself = _similarities(anchors[part], others, start + part.start, temperature)
        positive = (labels[part, None] == other_labels) & ~itself
        count = positive.sum(dim=1)
        spread = similar.masked_fill(itself, -torch.inf).logsumexp(dim=1)
        drawn = (similar * positive).sum(dim=1) / count.clamp(min=1)
        return torch.where(count > 0, spread - drawn, 0.0)

    return _in_parts(rows, len(anchors), len(others))


def balanced_contrastive_rows(
    anchors: Tensor,
    labels: Tensor,
    features: Tensor,
    feature_labels: Tensor,
    prototypes: Tensor,
    *,
    start: int = 0,
    temperature: float = 0.07,
) -> Tensor:
    """Return the balanced contrastive loss of each anchor.

    Each class enters the denominator as the mean over its members, one of which is its prototype.

    Reference: Zhu et al., Balanced Contrastive Learning for Long-Tailed Visual Recognition,
        CVPR 2022, arXiv:2207.09052, Eqn 5-7.
    Departures: none known.

    Args:
        anchors: [N, d].
        labels: of the anchors [N].
        features: of the batch, including the anchors themselves [M, d].
        feature_labels: [M].
        prototypes: one per class [C, d].
        start: index of the first anchor in ``features``; the rest follow it.
        temperature: > 0.

    Returns:
        Losses [N].

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be > 0, found {temperature}")
    members = torch.cat([features, prototypes.to(features)])  # [M + C, d]
    classes = torch.arange(len(prototypes), device=labels.device)
    member_labels = torch.cat([feature_labels, classes])
    none, one = full(anchors).new_zeros(len(prototypes)), full(anchors).new_ones(len(members))
    sizes = none.index_add(0, member_labels, one)  # [C]
    # The anchor itself is excluded from its class, which thus has one member less.
    own_size, size = (sizes - 1).clamp(min=1).log()[labels], sizes.log()[member_labels]

    def rows(part: slice) -> Tensor:
        similar, itself = _similarities(anchors[part], members, start + part.start, temperature)
        positive = (labels[part, None] == member_labels) & ~itself
        log_size = torch.where(positive, own_size[part, None], size)
        spread = (similar - log_size).masked_fill(itself, -torch.inf).logsumexp(dim=1)
        return spread - (similar * positive).sum(dim=1) / positive.sum(dim=1)

    return _in_parts(rows, len(anchors), len(members))


def _in_parts(rows: Callable[[slice], Tensor], number: int, width: int) -> Tensor:
    """Return the values of all rows: of some at a time if there are many similarities.

    Those of a part are computed anew in the backward pass, not kept for it.

    Args:
        rows: returns the values of a part of the rows.
        number: of rows.
        width: similarities of each row.
    """
    size = max(HELD // max(width, 1), 1)
    if number <= size:
        return rows(slice(0, number))
    parts = [slice(i, min(i + size, number)) for i in range(0, number, size)]
    found = [
        checkpoint(rows, part, use_reentrant=False, preserve_rng_state=False) for part in parts
    ]
    return torch.cat(found)


def _similarities(
    anchors: Tensor, others: Tensor, start: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return scaled inner products [N, M] and the mask of self-similarities."""
    with torch.autocast(anchors.device.type, enabled=False):
        similar = full(anchors) @ full(others).T / temperature
    itself = torch.zeros_like(similar, dtype=torch.bool)
    itself.diagonal(offset=start).fill_(True)
    return similar, itself
