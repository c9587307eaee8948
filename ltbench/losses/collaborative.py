"""Losses of networks that learn together from each other's predictions.

Logits of E networks are [B, E, C] of any floating type; half precision is raised to single. Labels
are [B], int64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltbench.losses.precision import full
from ltbench.losses.rows import cross_entropy_rows

FLOOR = 1e-9  # added to the probabilities of the student; as in NCL's code


def hard_classes(logits: Tensor, labels: Tensor, number: int) -> Tensor:
    """Return the mask of each image's hard classes: its label and the highest other logits.

    Reference: Li et al., Nested Collaborative Learning for Long-Tailed Visual Recognition,
        CVPR 2022, arXiv:2203.15359 (hard category mining).
    Departures: none known.

    Args:
        logits: without prior [B, C].
        labels: [B].
        number: hard classes N of an image, its label included, in [1, C].

    Returns:
        bool [B, C], N true values in each row.

    Raises:
        ValueError: ``number`` is out of range.
    """
    classes = logits.shape[1]
    if not 1 <= number <= classes:
        raise ValueError(f"expected 1 <= `number` <= {classes} classes, found {number}")
    raised = full(logits.detach()).scatter(1, labels[:, None], torch.inf)
    chosen = raised.topk(number, dim=1).indices
    return torch.zeros_like(raised, dtype=torch.bool).scatter(1, chosen, True)


def mutual_divergences(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the divergences of all other predictions from each one, of each image.

    That of prediction i is the sum over the others j of ``KL(p_j || p_i)``, with 1e-9 added to
    p_i inside the logarithm. Gradients flow through both.

    Reference: Li et al., Nested Collaborative Learning for Long-Tailed Visual Recognition,
        CVPR 2022, arXiv:2203.15359 (nested balanced online distillation).
    Departures: the slope of p log p is 0 where p is 0, as in the PyTorch of the authors' time.

    Args:
        logits: of M networks, or of M views of an image [B, M, C].
        mask: classes to sum over, whose probabilities are not normalised anew, bool [B, C];
            ``None`` is all.

    Returns:
        Divergences [B, M]; without other predictions 0.
    """
    log_p = full(logits).log_softmax(dim=2)
    p = log_p.exp()
    negative_entropy = p * log_p
    others = p.sum(dim=1, keepdim=True) - p
    terms = negative_entropy.sum(dim=1, keepdim=True) - negative_entropy
    terms = terms - others * (p + FLOOR).log()
    if mask is not None:
        terms = terms * mask[:, None]
    return terms.sum(dim=2)


def ncl_rows(
    logits: Tensor,
    labels: Tensor,
    log_counts: Tensor,
    number: int,
    diversity: float = 0.6,
    hard_diversity: float | None = None,
) -> Tensor:
    """Return NCL's loss of each image: cross-entropies of all networks and their distillation.

    Both are taken over all classes and over the image's hard ones, which the first network
    chooses; the other classes stay in the second softmax with logit 0.

    Reference: Li et al., Nested Collaborative Learning for Long-Tailed Visual Recognition,
        CVPR 2022, arXiv:2203.15359.
    Departures: the logit 0 is that of the authors' code; see ``mutual_divergences``.

    Args:
        logits: of the networks [B, E, C].
        labels: [B].
        log_counts: log of the training images of each class [C].
        number: hard classes of an image, its label included, in [1, C].
        diversity: weight of the distillation over all classes, >= 0.
        hard_diversity: of that over hard ones; ``None`` is the same.

    Returns:
        Losses [B].

    Raises:
        ValueError: ``number`` is out of range.
    """
    logits = full(logits)
    mask = hard_classes(logits[:, 0], labels, number)
    balanced, hard = _both(logits, log_counts, mask)
    pairs = max(logits.shape[1] - 1, 1)
    rows = _cross_entropies(balanced, labels) + _cross_entropies(hard, labels)
    if hard_diversity is None:
        hard_diversity = diversity
    rows = rows + diversity / pairs * mutual_divergences(balanced).sum(dim=1)
    return rows + hard_diversity / pairs * mutual_divergences(hard).sum(dim=1)


def nclpp_rows(
    logits: Tensor,
    labels: Tensor,
    log_counts: Tensor,
    number: int,
    copies: int,
    diversity: float = 0.6,
) -> Tensor:
    """Return NCL++'s loss of each augmented copy of each image; their mean is that of the batch.

    Copies of an image are distilled into each other within a network, networks into each other on
    a copy; both over all classes and over hard ones, those of the first copy within a network.

    Reference: Tan et al., NCL++: Nested Collaborative Learning for Long-Tailed Visual Recognition,
        Pattern Recognition 2024, arXiv:2306.16709.
    Departures: see ``ncl_rows``.

    Args:
        logits: of the networks, copy after copy [m B, E, C].
        labels: copy after copy [m B].
        log_counts: log of the training images of each class [C].
        number: hard classes of an image, its label included, in [1, C].
        copies: copies m of each image, >= 1.
        diversity: weight of the distillation, >= 0.

    Returns:
        Losses [m B].

    Raises:
        ValueError: ``number`` is out of range, or the rows are no multiple of ``copies``.
    """
    if copies < 1 or len(logits) % copies:
        raise ValueError(f"expected a multiple of `copies` = {copies} rows, found {len(logits)}")
    logits = full(logits)
    networks = logits.shape[1]
    mask = hard_classes(logits[:, 0], labels, number)
    balanced, hard = _both(logits, log_counts, mask)
    rows = _cross_entropies(balanced, labels) + _cross_entropies(hard, labels)
    between = mutual_divergences(balanced) + mutual_divergences(balanced, mask)
    rows = rows + diversity * _per_pair(networks) * between.sum(dim=1)
    views = balanced.view(copies, -1, *balanced.shape[1:])  # [m, B, E, C]
    first = mask[: views.shape[1]]
    for network in range(networks):
        own = views[:, :, network].transpose(0, 1)  # [B, m, C]
        within = mutual_divergences(own) + mutual_divergences(own, first)  # [B, m]
        rows = rows + copies * diversity * _per_pair(copies) * within.T.flatten()
    return rows


def _both(logits: Tensor, log_counts: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return balanced logits, and the same with logit 0 for all but the hard classes."""
    balanced = logits + log_counts.to(logits)
    return balanced, balanced * mask[:, None]


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each image, summed over networks [B]."""
    experts = logits.shape[1]
    rows = cross_entropy_rows(logits.flatten(0, 1), labels.repeat_interleave(experts))
    return rows.view(-1, experts).sum(dim=1)


def _per_pair(members: int) -> float:
    """Return one over the number of unordered pairs; without a pair 0."""
    return 2 / (members * (members - 1)) if members > 1 else 0.0
