"""Losses, projections and feature fusion of second stages, which train a classifier further.

Logits are [B, C] of any floating type; half precision is raised to single. Labels are [B], int64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ltbench.losses.precision import full


def binary_softmax_rows(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of each row's softmax probabilities.

    A row is -(log p_y + sum_{k != y} log(1 - p_k)) / C, with p the softmax of its logits.

    Reference: Alshammari et al., Long-Tailed Recognition via Weight Balancing, CVPR 2022,
        arXiv:2203.14197; the loss is that of the authors' code, after the class-balanced loss of
        Cui et al., CVPR 2019, arXiv:1901.05555, whose text suggests a softmax cross-entropy.
    Departures: logarithms are computed from the logits and stay finite, where the authors' code
        cuts them off at -100.

    Args:
        logits: [B, C], C > 1.
        labels: [B].

    Returns:
        Losses [B].
    """
    logits = full(logits)
    log_p = logits.log_softmax(dim=1)
    top = logits.argmax(dim=1, keepdim=True)
    # Only the largest probability can be near 1; of the others, 1 - p has no cancellation.
    others = logits.scatter(1, top, -torch.inf).logsumexp(dim=1) - logits.logsumexp(dim=1)
    small = log_p.exp().scatter(1, top, 0.0)
    log_not = torch.log1p(-small).scatter(1, top, others[:, None])
    own = labels[:, None]
    total = log_not.scatter(1, own, 0.0).sum(dim=1) + log_p.gather(1, own)[:, 0]
    return -total / logits.shape[1]


def max_norm_limit(weight: Tensor, share: float = 0.1) -> Tensor:
    """Return the largest norm of a class's weights that MaxNorm allows.

    Reference: Alshammari et al., Long-Tailed Recognition via Weight Balancing, CVPR 2022,
        arXiv:2203.14197; the rule for the limit is in the authors' code.
    Departures: none known.

    Args:
        weight: of the classifier as the stage begins, one row per class [C, D].
        share: place of the limit between the smallest norm, 0, and the largest, 1.

    Returns:
        Scalar.

    Raises:
        ValueError: ``share`` is out of range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"`share` must be in [0, 1], found {share}")
    norms: Tensor = torch.linalg.vector_norm(weight.detach(), dim=1)
    return norms.min() + share * (norms.max() - norms.min())


def max_norm(weight: Tensor, limit: Tensor) -> Tensor:
    """Return weights whose rows are at most as long as a limit: longer ones are shortened to it.

    Reference: Alshammari et al., Long-Tailed Recognition via Weight Balancing, CVPR 2022,
        arXiv:2203.14197 (MaxNorm by projected gradient descent).
    Departures: none known.

    Args:
        weight: of the classifier, one row per class [C, D].
        limit: largest norm, a scalar >= 0, see ``max_norm_limit``.

    Returns:
        Weights [C, D].
    """
    norms = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
    factor = limit / norms.clamp(min=torch.finfo(weight.dtype).tiny)
    return torch.where(norms > limit, weight * factor, weight)


def fused_maps(maps: Tensor, others: Tensor, channels: Tensor) -> Tensor:
    """Return feature maps with some channels taken from the maps of other images.

    Reference: Li et al., Feature Fusion from Head to Tail for Long-Tailed Visual Recognition,
        AAAI 2024, arXiv:2306.06963 (H2T).
    Departures: none known; the given maps stay as they are, where the authors' code changes them.

    Args:
        maps: of the images whose labels count [B, D, H, W].
        others: of other images [B, D, H, W].
        channels: indices of the channels to replace, int64.

    Returns:
        Maps [B, D, H, W].
    """
    taken = torch.zeros(maps.shape[1], dtype=torch.bool, device=maps.device)
    taken = taken.index_fill(0, channels, True)
    return torch.where(taken[:, None, None], others.to(maps), maps)
