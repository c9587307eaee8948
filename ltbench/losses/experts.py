"""Losses of networks with several branches or experts.

Logits of E experts are [B, E, C] of any floating type; half precision is raised to single. Labels
are [B], int64. Quantities derived from class counts are float64 or bool [C].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ltbench.losses.class_counts import Counts, checked_counts, log_prior
from ltbench.losses.precision import full
from ltbench.losses.rows import cross_entropy_rows, ldam_rows, logit_adjusted_rows

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


def ride_temperatures(class_counts: Counts, factor: float) -> Tensor:
    """Return RIDE's diversity temperature of each class: 1 for the largest, lower for rarer ones.

    Reference: Wang et al., Long-Tailed Recognition by Routing Diverse Distribution-Aware Experts,
        ICLR 2021, arXiv:2010.01809, section 3.
    Departures: none known.

    Args:
        class_counts: training images of each class [C].
        factor: in [0, 1]; 0 gives equal temperatures.

    Returns:
        Temperatures [C].

    Raises:
        ValueError: ``factor`` is out of range.
        UserError: a count is not positive.
    """
    if not 0 <= factor <= 1:
        raise ValueError(f"`factor` must be in [0, 1], found {factor}")
    counts = checked_counts(class_counts)
    t = factor * len(counts) * counts / counts.sum() + 1 - factor
    return t / t.max()


def diversity_rows(logits: Tensor, temperatures: Tensor) -> Tensor:
    """Return the diversity of experts, Tbar^2 sum_e KL(mean || e) of each row.

    Reference: Wang et al., Long-Tailed Recognition by Routing Diverse Distribution-Aware Experts,
        ICLR 2021, arXiv:2010.01809, Eqn 3.
    Departures: relative to the detached mean of the experts, as in the authors' code, instead of
        the other experts, as in the paper.

    Args:
        logits: of the experts [B, E, C].
        temperatures: of each class [C], see ``ride_temperatures``.

    Returns:
        Rows [B], >= 0.
    """
    logits = full(logits)
    t = temperatures.to(logits)
    mean = (logits.detach().mean(dim=1, keepdim=True) / t).log_softmax(dim=2)  # [B, 1, C]
    own = (logits / t).log_softmax(dim=2)
    return t.mean() ** 2 * (mean.exp() * (mean - own)).sum(dim=(1, 2))


def expert_ldam_rows(
    logits: Tensor, labels: Tensor, margins: Tensor, scale: float = 30.0
) -> Tensor:
    """Return the LDAM losses of each row, summed over experts.

    Args:
        logits: scale times cosine, of the experts [B, E, C].
        labels: [B].
        margins: of each class, in units of the cosine [C], see ``ldam_margins``.
        scale: that of the logits, > 0.

    Returns:
        Losses [B].
    """
    experts = logits.shape[1]
    each = labels.repeat_interleave(experts)
    rows = ldam_rows(logits.flatten(0, 1), each, margins, scale)
    return rows.view(-1, experts).sum(dim=1)


def sade_inverse_prior(class_counts: Counts) -> Tensor:
    """Return the prior with ranks reversed: the k-th largest class has the k-th smallest share.

    Among classes of equal size the lower label counts as the smaller one.

    Reference: Zhang et al., Self-Supervised Aggregation of Diverse Experts for Test-Agnostic
        Long-Tailed Recognition, NeurIPS 2022, arXiv:2107.09249.
    Departures: none known. The authors' sort need not be stable, so the order of equal
        classes is undefined in their code.

    Args:
        class_counts: training images of each class [C].

    Returns:
        Shares [C], which sum to 1.

    Raises:
        UserError: a count is not positive.
    """
    counts = checked_counts(class_counts)
    order = counts.argsort(stable=True).flip(0)
    return torch.empty_like(counts).scatter(0, order, counts.sort().values) / counts.sum()


def sade_offsets(class_counts: Counts, tau: float = 2.0) -> Tensor:
    """Return SADE's logit offsets of its three experts: 0, o, and o - tau * o_reversed.

    Reference: Zhang et al., Self-Supervised Aggregation of Diverse Experts for Test-Agnostic
        Long-Tailed Recognition, NeurIPS 2022, arXiv:2107.09249, Eqns 2-4.
    Departures: logarithms of priors have the floor 1e-9, as in the authors' code.

    Args:
        class_counts: training images of each class [C].
        tau: strength of the reversed prior, >= 0; 0 makes the last two experts alike.

    Returns:
        Offsets [3, C].

    Raises:
        ValueError: ``tau`` is negative.
        UserError: a count is not positive.
    """
    if not tau >= 0:
        raise ValueError(f"`tau` must be >= 0, found {tau}")
    prior = log_prior(class_counts)
    inverse = log_prior(sade_inverse_prior(class_counts))  # a prior is counts of sum 1
    return torch.stack([torch.zeros_like(prior), prior, prior - tau * inverse])


def sade_rows(logits: Tensor, labels: Tensor, offsets: Tensor) -> Tensor:
    """Return the experts' cross-entropies of each row, each under its own offset, summed.

    Reference: Zhang et al., Self-Supervised Aggregation of Diverse Experts for Test-Agnostic
        Long-Tailed Recognition, NeurIPS 2022, arXiv:2107.09249, Eqns 2-4.
    Departures: none known.

    Args:
        logits: of the experts [B, E, C].
        labels: [B].
        offsets: of each expert [E, C], see ``sade_offsets``.

    Returns:
        Losses [B].
    """
    pairs = zip(logits.unbind(dim=1), offsets, strict=True)
    return torch.stack([logit_adjusted_rows(z, labels, o) for z, o in pairs]).sum(dim=0)


def balpoe_strengths(
    experts: int,
    least: float = 0.0,
    most: float = 2.0,
    spread: Literal["limits", "uniform"] = "limits",
) -> Tensor:
    """Return BalPoE's strengths of the prior, evenly spaced between two values.

    Reference: Sanchez Aimar et al., Balanced Product of Calibrated Experts for Long-Tailed
        Recognition, CVPR 2023, arXiv:2206.05260; the two rules are in the authors' code.
    Departures: none known.

    Args:
        experts: number of experts E, at least 1.
        least: smallest strength.
        most: largest strength, at least ``least``.
        spread: ``limits`` goes from the smallest to the largest, ``uniform`` takes the middles of
            E equal intervals between them. One expert has their mean.

    Returns:
        Strengths [E], float64, in rising order.

    Raises:
        ValueError: a value is out of range, or ``spread`` is unknown.
    """
    if not (experts >= 1 and least <= most):
        raise ValueError(
            f"expected `experts` >= 1 and `least` <= `most`, found {experts}, {least} and {most}"
        )
    if spread not in ("limits", "uniform"):
        raise ValueError(f"`spread`: expected limits or uniform, found {spread}")
    places = torch.arange(experts, dtype=torch.float64)
    if spread == "uniform" or experts == 1:
        shares = (places + 0.5) / experts
    else:
        shares = places / (experts - 1)
    return least + (most - least) * shares


def balpoe_offsets(class_counts: Counts, strengths: Sequence[float] | Tensor) -> Tensor:
    """Return BalPoE's logit offsets of each expert: its strength times the log prior.

    Reference: Sanchez Aimar et al., Balanced Product of Calibrated Experts for Long-Tailed
        Recognition, CVPR 2023, arXiv:2206.05260.
    Departures: the logarithm has the floor 1e-9, as in the authors' code.

    Args:
        class_counts: training images of each class [C].
        strengths: of each expert [E], see ``balpoe_strengths``; negative ones favour the head.

    Returns:
        Offsets [E, C].

    Raises:
        UserError: a count is not positive.
    """
    prior = log_prior(class_counts)
    return torch.as_tensor(strengths).to(prior)[:, None] * prior


def balpoe_rows(logits: Tensor, labels: Tensor, offsets: Tensor) -> Tensor:
    """Return the experts' mean cross-entropy of each row, each expert under its own offset.

    Reference: Sanchez Aimar et al., Balanced Product of Calibrated Experts for Long-Tailed
        Recognition, CVPR 2023, arXiv:2206.05260.
    Departures: none known; the mean over experts is that of the authors' code.

    Args:
        logits: of the experts [B, E, C].
        labels: [B].
        offsets: of each expert [E, C], see ``balpoe_offsets``.

    Returns:
        Losses [B].
    """
    return sade_rows(logits, labels, offsets) / logits.shape[1]


def sade_test_time_similarity(first: Tensor, second: Tensor, raw_weights: Tensor) -> Tensor:
    """Return the mean cosine similarity of the weighted experts' probabilities on two views.

    Reference: Zhang et al., Self-Supervised Aggregation of Diverse Experts for Test-Agnostic
        Long-Tailed Recognition, NeurIPS 2022, arXiv:2107.09249, Eqn 5.
    Departures: cosine instead of the paper's inner product, as in the authors' code.

    Args:
        first: the experts' logits on one view of the images [B, E, C].
        second: on another view [B, E, C].
        raw_weights: of the experts, before their softmax [E].

    Returns:
        Scalar in [0, 1].
    """
    weights = raw_weights.softmax(dim=0)[:, None]
    one, other = ((weights * full(z)).sum(dim=1).softmax(dim=1) for z in (first, second))
    return F.cosine_similarity(one, other, dim=1).mean()


def sade_expert_weights(
    first: Tensor,
    second: Tensor,
    *,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    epochs: int = 5,
    batch_size: int = 128,
    least: float = 0.05,
) -> Tensor:
    """Learn expert weights on unlabelled images, by the similarity of predictions on two views.

    Reference: Zhang et al., Self-Supervised Aggregation of Diverse Experts for Test-Agnostic
        Long-Tailed Recognition, NeurIPS 2022, arXiv:2107.09249, section 5.
    Departures: images are not shuffled, and views are drawn once, by the caller. Learning ends
        after an epoch in which a weight falls below ``least``; the authors round to two decimals
        before that comparison.

    Args:
        first: the experts' logits on one view of the images [N, E, C].
        second: on another view [N, E, C].
        lr: learning rate of SGD with Nesterov momentum.
        momentum: of SGD.
        weight_decay: on the weights before their softmax.
        epochs: passes over the images.
        batch_size: images per step.
        least: weight at which learning ends.

    Returns:
        Weights [E], positive with sum 1; equal ones without images.
    """
    first, second = full(first).detach(), full(second).detach()
    experts = first.shape[1]
    raw = first.new_full((experts,), 1 / experts).requires_grad_()
    optimizer = torch.optim.SGD([raw], lr, momentum, 0.0, weight_decay, nesterov=True)
    for _ in range(epochs if len(first) else 0):
        for start in range(0, len(first), batch_size):
            one, other = (z[start : start + batch_size] for z in (first, second))
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = -sade_test_time_similarity(one, other, raw)
            (raw.grad,) = torch.autograd.grad(loss, raw)
            optimizer.step()
        if raw.detach().softmax(dim=0).min() < least:
            break
    return raw.detach().softmax(dim=0)
