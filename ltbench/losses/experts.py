"""Losses of networks with several experts: RIDE, SADE and BalPoE.

Logits of E experts are [B, E, C] of any floating type; half precision is raised to single. Labels
are [B], int64. Quantities derived from class counts are float64 [C].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ltbench.losses.class_counts import Counts, checked_counts, log_prior
from ltbench.losses.precision import full
from ltbench.losses.rows import ldam_rows, logit_adjusted_rows


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
