"""Losses of experts under test priors that are drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ltbench.losses.class_counts import Counts, checked_counts
from ltbench.losses.experts import sade_inverse_prior
from ltbench.losses.precision import full

RATIO_FLOOR = 1e-9  # added to ratios of priors; as in the authors' code


def dirmixe_centres(class_counts: Counts) -> Tensor:
    """Return the centres of DirMixE's test priors: training prior, uniform, training reversed.

    Reference: Yang et al., Harnessing Hierarchical Label Distribution Variations in Test Agnostic
        Long-tail Recognition, ICML 2024, arXiv:2405.07780.
    Departures: none known. Among classes of equal size the lower label counts as the smaller one;
        their order is undefined in the authors' code.

    Args:
        class_counts: training images of each class [C].

    Returns:
        Priors [3, C], each of sum 1.

    Raises:
        UserError: a count is not positive.
    """
    counts = checked_counts(class_counts)
    prior = counts / counts.sum()
    uniform = torch.full_like(prior, 1 / len(prior))
    return torch.stack([prior, uniform, sade_inverse_prior(counts)])


def draw_test_priors(
    centres: Tensor, draws: int, concentration: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return random test priors and the centre that each was drawn around.

    Reference: Yang et al., Harnessing Hierarchical Label Distribution Variations in Test Agnostic
        Long-tail Recognition, ICML 2024, arXiv:2405.07780.
    Departures: none known.

    Args:
        centres: priors [E, C]; one of them is chosen with equal chances for each draw.
        draws: S >= 1.
        concentration: of the Dirichlet distribution, > 0; larger ones keep closer to the centres.
        generator: on the CPU.

    Returns:
        Priors [S, C], float64, and indices of their centres [S], both on the CPU.

    Raises:
        ValueError: ``draws`` or ``concentration`` is not positive.
    """
    if not (draws >= 1 and concentration > 0):
        raise ValueError(
            f"`draws` and `concentration` must be positive, found {draws} and {concentration}"
        )
    around = torch.randint(len(centres), (draws,), generator=generator)
    alpha = concentration * centres.detach().cpu().double()[around]
    gamma = torch._standard_gamma(alpha, generator=generator)
    return gamma / gamma.sum(dim=1, keepdim=True), around


def dirmixe_offsets(priors: Tensor, class_counts: Counts, power: float) -> Tensor:
    """Return log(w^r / pi^r + 1e-9), which DirMixE subtracts from logits under test prior w.

    Reference: Yang et al., Harnessing Hierarchical Label Distribution Variations in Test Agnostic
        Long-tail Recognition, ICML 2024, arXiv:2405.07780.
    Departures: the exponent r and the floor are those of the authors' code.

    Args:
        priors: w [S, C].
        class_counts: training images of each class [C], of shares pi.
        power: r >= 0.

    Returns:
        Offsets [S, C], float64.

    Raises:
        ValueError: ``power`` is negative.
        UserError: a count is not positive.
    """
    if not power >= 0:
        raise ValueError(f"`power` must be >= 0, found {power}")
    counts = checked_counts(class_counts).to(priors.device)
    return ((priors.double() / (counts / counts.sum())) ** power + RATIO_FLOOR).log()


def dirmixe_losses(logits: Tensor, labels: Tensor, offsets: Tensor, experts: Tensor) -> Tensor:
    """Return the cross-entropy of each row under each drawn test prior, by the prior's expert.

    Their mean over draws is a row of DirMixE's loss.

    Reference: Yang et al., Harnessing Hierarchical Label Distribution Variations in Test Agnostic
        Long-tail Recognition, ICML 2024, arXiv:2405.07780.
    Departures: none known.

    Args:
        logits: of the experts [B, E, C].
        labels: [B].
        offsets: of each draw, see ``dirmixe_offsets`` [S, C].
        experts: expert of each draw [S].

    Returns:
        Losses [B, S].
    """
    logits = full(logits)
    adjusted = logits[:, experts] - offsets.to(logits)
    return F.cross_entropy(
        adjusted.flatten(0, 1), labels.repeat_interleave(len(experts)), reduction="none"
    ).view(len(labels), -1)


def upper_semivariance(losses: Tensor) -> Tensor:
    """Return the squared excess of values over their mean, averaged over those above it.

    Reference: Yang et al., Harnessing Hierarchical Label Distribution Variations in Test Agnostic
        Long-tail Recognition, ICML 2024, arXiv:2405.07780.
    Departures: the divisor is the number of values above the mean less 1, at least 1, as in the
        authors' code.

    Args:
        losses: values [S].

    Returns:
        Scalar; gradients flow through values and mean.
    """
    away = losses - losses.mean()
    above = away > 0
    return torch.where(above, away, 0.0).square().sum() / (above.sum() - 1).clamp(min=1)
