"""Losses of networks with several branches: BBN and ResLT.

Logits of E branches are [B, E, C] of any floating type; half precision is raised to single. Labels
are [B], int64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ltbench.losses.class_counts import Counts, checked_counts
from ltbench.losses.precision import full
from ltbench.losses.rows import cross_entropy_rows

RESLT_FLOOR = 1e-7  # added to probabilities; as in ResLT's code


def bbn_alpha(epoch: int, epochs: int) -> float:
    """Return alpha, the share of BBN's conventional branch, which decays quadratically from 1.

    Reference: Zhou et al., BBN: Bilateral-Branch Network with Cumulative Learning for Long-Tailed
        Visual Recognition, CVPR 2020, arXiv:1912.02413, Eqn 5.
    Departures: the first epoch has alpha 1, as in the authors' code; the paper does not specify
        the first epoch's index.

    Args:
        epoch: counted from 1.
        epochs: T_max >= ``epoch``.

    Returns:
        Number in (0, 1].

    Raises:
        ValueError: the epoch is out of range.
    """
    if not 1 <= epoch <= epochs:
        raise ValueError(f"expected 1 <= `epoch` <= `epochs`, found {epoch} and {epochs}")
    return 1 - float((epoch - 1) / epochs) ** 2


def bbn_horizon(epochs: int) -> int:
    """Return the number of epochs rounded up to a multiple of 100.

    BBN's released code has this T_max for 90 and 180 epochs.

    Args:
        epochs: of the training, >= 1.
    """
    return 100 * math.ceil(epochs / 100)


def bbn_features(conventional: Tensor, balanced: Tensor, alpha: float) -> Tensor:
    """Return BBN's mixed features [B, 2D]: those of both branches, weighted 2a and 2(1-a).

    Reference: Zhou et al., BBN: Bilateral-Branch Network with Cumulative Learning for Long-Tailed
        Visual Recognition, CVPR 2020, arXiv:1912.02413, Eqn 1.
    Departures: twice the paper's weights, hence 1 halfway, as in the authors' code.

    Args:
        conventional: features of uniformly drawn images [B, D].
        balanced: features of images drawn by the reversed sampler [B, D].
        alpha: share of the first, in [0, 1].
    """
    return torch.cat([2 * alpha * conventional, 2 * (1 - alpha) * balanced], dim=1)


def rarest_classes(class_counts: Counts, number: int) -> Tensor:
    """Return the mask of the ``number`` rarest classes [C]; ties go to lower indices.

    Args:
        class_counts: training images of each class [C].
        number: in [0, C].

    Raises:
        ValueError: ``number`` is out of range.
        UserError: a count is not positive.
    """
    counts = checked_counts(class_counts)
    if not 0 <= number <= len(counts):
        raise ValueError(f"expected 0 <= `number` <= {len(counts)} classes, found {number}")
    chosen = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
    chosen[counts.argsort(stable=True)[:number]] = True
    return chosen


def floored_cross_entropy_rows(logits: Tensor, labels: Tensor, floor: float) -> Tensor:
    """Return -log(p + floor) of each row, p the probability of its label.

    Args:
        logits: [B, C].
        labels: [B].
        floor: added to p, >= 0.

    Returns:
        Losses [B].
    """
    p = full(logits).softmax(dim=1).gather(1, labels[:, None])[:, 0]
    return -(p + floor).log()


def reslt_rows(
    logits: Tensor,
    labels: Tensor,
    medium_and_tail: Tensor,
    tail: Tensor,
    beta: float,
    contributions: Tensor | float | None = None,
    fused_floor: float = 0.0,
) -> Tensor:
    """Return ResLT's loss of each image; their mean over images is the loss of the batch.

    A row is ``beta`` times the independent losses of the branches that cover the image's class,
    over the mean number of such branches per image, plus ``1 - beta`` times the fused loss.

    Reference: Cui et al., ResLT: Residual Learning for Long-Tailed Recognition, TPAMI 2022,
        arXiv:2101.10633.
    Departures: none known; the fused loss has no floor in the authors' code for CIFAR and
        iNaturalist, and that of the independent ones, 1e-7, in their code for ImageNet-LT.

    Args:
        logits: of the branches for all, medium and tail, and tail classes [B, E, C]; the last one
            or two may be absent.
        labels: [B].
        medium_and_tail: whether a class belongs to the second branch, bool [C].
        tail: whether it belongs to the third, bool [C].
        beta: share of the independent losses, in [0, 1].
        contributions: branch losses per image, ``1 + (#M + #T) / B``, of the whole batch if this is
            a part of it. Counted in ``labels`` by default.
        fused_floor: added to the fused probabilities, >= 0.

    Returns:
        Losses [B].

    Raises:
        ValueError: ``beta`` is out of range.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"`beta` must be in [0, 1], found {beta}")
    logits = full(logits)
    branches = logits.shape[1]
    groups = [torch.ones_like(tail), medium_and_tail, tail][:branches]
    sees = torch.stack(groups, dim=1)[labels]  # [B, E]
    if contributions is None:
        contributions = sees.to(logits).sum() / max(len(labels), 1)
    rows = floored_cross_entropy_rows(
        logits.flatten(0, 1), labels.repeat_interleave(branches), RESLT_FLOOR
    )
    independent = (rows.view(-1, branches) * sees).sum(dim=1)
    total = logits.sum(dim=1)
    if fused_floor:
        fused = floored_cross_entropy_rows(total, labels, fused_floor)
    else:
        fused = cross_entropy_rows(total, labels)
    return beta * independent / contributions + (1 - beta) * fused


def reslt_normalised_logits(features: Tensor, weight: Tensor, gamma: float) -> Tensor:
    """Return the branches' summed logits under weights w_k / |w_k|^gamma and without bias.

    Reference: Cui et al., ResLT: Residual Learning for Long-Tailed Recognition, TPAMI 2022,
        arXiv:2101.10633; the normalisation is in the authors' code.
    Departures: none known; a row of zeros stays zero.

    Args:
        features: of the branches [B, E, D].
        weight: of the shared classifier [C, D].
        gamma: 0 keeps the norms, 1 removes them.

    Returns:
        Logits [B, C].
    """
    norms = weight.norm(dim=1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    return F.linear(features, weight / norms**gamma).sum(dim=1)
