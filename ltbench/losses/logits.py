"""Losses that reweight, rescale or perturb logits by class, and LADE's regulariser.

Logits are [B, C] of any floating type; half precision is raised to single. Labels are [B], int64.
Quantities derived from class counts are float64 [C].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ltbench.losses.class_counts import Counts, checked_counts, log_prior
from ltbench.losses.precision import full

LADE_FLOOR = 1e-9  # inside the logarithms of priors; as in the authors' code
LADE_COUNT_FLOOR = 1e-8  # added to the images of a class in the batch; as in the authors' code


def focal_rows(logits: Tensor, labels: Tensor, gamma: float = 2.0, detach: bool = False) -> Tensor:
    """Return (1 - p)^gamma times the cross-entropy of each row, p the probability of its label.

    Reference: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, arXiv:1708.02002,
        Eqn 4.
    Departures: p is from a softmax over classes, instead of one sigmoid per class.

    Args:
        logits: [B, C].
        labels: [B].
        gamma: focusing parameter, >= 0; 0 is cross-entropy.
        detach: whether the factor is detached from the gradient.

    Returns:
        Losses [B].

    Raises:
        ValueError: ``gamma`` is negative.
    """
    if not gamma >= 0:
        raise ValueError(f"`gamma` must be >= 0, found {gamma}")
    rows = F.cross_entropy(full(logits), labels, reduction="none")
    miss = -torch.expm1(-(rows.detach() if detach else rows))  # 1 - p, no cancellation
    return miss.clamp(min=torch.finfo(rows.dtype).tiny) ** gamma * rows


def vs_scale(class_counts: Counts, gamma: float) -> Tensor:
    """Return (n_k / n_max)^gamma, the factor of logits in the VS loss.

    Reference: Kini et al., Label-Imbalanced and Group-Sensitive Classification under
        Overparameterization, NeurIPS 2021, arXiv:2103.01550.
    Departures: none known.

    Args:
        class_counts: training images of each class [C].
        gamma: exponent, >= 0; 0 is no scaling.

    Returns:
        Factors [C] in (0, 1], 1 for the largest class.

    Raises:
        ValueError: ``gamma`` is negative.
        UserError: a count is not positive.
    """
    if not gamma >= 0:
        raise ValueError(f"`gamma` must be >= 0, found {gamma}")
    counts = checked_counts(class_counts)
    return (counts / counts.max()) ** gamma


def vs_offset(class_counts: Counts, tau: float) -> Tensor:
    """Return tau log pi_k, the offset of logits in the VS loss; pi is the training prior.

    Reference: Kini et al., Label-Imbalanced and Group-Sensitive Classification under
        Overparameterization, NeurIPS 2021, arXiv:2103.01550.
    Departures: none known.

    Args:
        class_counts: training images of each class [C].
        tau: strength of the prior, >= 0; 0 is no offset.

    Returns:
        Offsets [C], at most 0.

    Raises:
        ValueError: ``tau`` is negative.
        UserError: a count is not positive.
    """
    if not tau >= 0:
        raise ValueError(f"`tau` must be >= 0, found {tau}")
    return tau * log_prior(class_counts, 0.0)


def vs_rows(logits: Tensor, labels: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Return the cross-entropy of each row after scaling and shifting its logits by class.

    Reference: Kini et al., Label-Imbalanced and Group-Sensitive Classification under
        Overparameterization, NeurIPS 2021, arXiv:2103.01550 (the VS loss).
    Departures: none known.

    Args:
        logits: [B, C].
        labels: [B].
        scale: [C], see ``vs_scale``.
        offset: [C], see ``vs_offset``.

    Returns:
        Losses [B].
    """
    logits = full(logits)
    adjusted = logits * scale.to(logits) + offset.to(logits)
    return F.cross_entropy(adjusted, labels, reduction="none")


def lade_regulariser(
    logits: Tensor, labels: Tensor, class_counts: Counts, lam: float = 0.01
) -> Tensor:
    """Return LADE's regulariser of a batch, summed over classes with the prior as weights.

    Reference: Hong et al., Disentangling Label Distribution for Long-Tailed Visual Recognition,
        CVPR 2021, arXiv:2012.00321 (regularised Donsker-Varadhan bound).
    Departures: a class without images in the batch has the second term only, and counts and
        priors have small floors, as in the authors' code.

    Args:
        logits: of the whole batch [B, C]; without rows the result is 0.
        labels: [B].
        class_counts: training images of each class [C].
        lam: weight of the squared second term, >= 0.

    Returns:
        Scalar.

    Raises:
        ValueError: ``lam`` is negative.
        UserError: a count is not positive.
    """
    counts = checked_counts(class_counts)
    logs = log_prior(counts, LADE_FLOOR)
    return lade_bound(logits, labels, counts / counts.sum(), logs, lam)


def lade_bound(
    logits: Tensor, labels: Tensor, prior: Tensor, log_prior: Tensor, lam: float = 0.01
) -> Tensor:
    """Return ``lade_regulariser`` from the prior and its logarithm with the floor [C] each."""
    sums = lade_sums(logits, labels, log_prior)
    return lade_bound_of_sums(*sums, len(logits), prior, lam)


def lade_sums(logits: Tensor, labels: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what LADE's regulariser needs of a batch, by class.

    Args:
        logits: [B, C].
        labels: [B].
        log_prior: with the floor [C].

    Returns:
        Number of images, sum of their own logit, and the logarithm of the sum over all images of
        the exponential of the class's shifted logit [C] each.
    """
    logits = full(logits)
    num_classes = logits.shape[1]
    own = logits.gather(1, labels[:, None])[:, 0]  # z_i of the label
    zeros = logits.new_zeros(num_classes)
    present = zeros.index_add(0, labels, torch.ones_like(own))
    shift = math.log(1 / num_classes + LADE_FLOOR) - log_prior.to(logits)
    return present, zeros.index_add(0, labels, own), (logits + shift).logsumexp(dim=0)


def lade_bound_of_sums(
    present: Tensor, own: Tensor, spread: Tensor, images: int, prior: Tensor, lam: float = 0.01
) -> Tensor:
    """Return ``lade_regulariser`` from ``lade_sums`` of the whole batch, of so many images."""
    if not lam >= 0:
        raise ValueError(f"`lam` must be >= 0, found {lam}")
    if images == 0:
        return own.sum()
    first = own / (present + LADE_COUNT_FLOOR)
    second = spread - math.log(images)
    return -(prior.to(own) * (first - second - lam * second**2)).sum()


def cloud_sizes(class_counts: Counts) -> Tensor:
    """Return GCL's cloud sizes d_k: log(n_max / n_k), scaled to a maximum of 1.

    Reference: Li et al., Long-Tailed Visual Recognition via Gaussian Clouded Logit Adjustment,
        CVPR 2022, arXiv:2305.11733.
    Departures: with equal counts, which the formula leaves undefined, there is no noise.

    Args:
        class_counts: training images of each class [C].

    Returns:
        Sizes [C], 0 for the largest class and 1 for the smallest.

    Raises:
        UserError: a count is not positive.
    """
    counts = checked_counts(class_counts)
    sizes = (counts.max() / counts).log()
    return sizes / sizes.max().clamp(min=torch.finfo(sizes.dtype).tiny)


def gcl_rows(
    logits: Tensor,
    labels: Tensor,
    noise: Tensor,
    scale: float = 30.0,
    margin: float = 0.0,
    focus: float = 0.0,
) -> Tensor:
    """Return the cross-entropy of each row after noise lowers the cosine of every class.

    Reference: Li et al., Long-Tailed Visual Recognition via Gaussian Clouded Logit Adjustment,
        CVPR 2022, arXiv:2305.11733.
    Departures: takes logits that carry the scale already, where the authors' code scales inside.

    Args:
        logits: scale times cosine [B, C].
        labels: [B].
        noise: subtracted from each cosine [B, C], >= 0: eta |e_ik| d_k.
        scale: that of the logits, > 0.
        margin: lowers the label's cosine further, >= 0.
        focus: exponent of the detached factor (1 - p), >= 0; 0 is no factor.

    Returns:
        Losses [B].

    Raises:
        ValueError: ``scale`` is not positive, or ``margin`` or ``focus`` is negative.
    """
    if not scale > 0:
        raise ValueError(f"`scale` must be > 0, found {scale}")
    if not margin >= 0:
        raise ValueError(f"`margin` must be >= 0, found {margin}")
    if not focus >= 0:
        raise ValueError(f"`focus` must be >= 0, found {focus}")
    logits = full(logits)
    lowered = logits - scale * noise.to(logits)
    own = torch.full_like(lowered[:, :1], -scale * margin)
    lowered = lowered.scatter_add(1, labels[:, None], own)
    return focal_rows(lowered, labels, focus, detach=True)


def disalign_logits(
    logits: Tensor, confidence: Tensor, scale: Tensor, bias: Tensor, form: str = "code"
) -> Tensor:
    """Return DisAlign's calibrated logits.

    Reference: Zhang et al., Distribution Alignment: A Unified Framework for Long-Tail Visual
        Recognition, CVPR 2021, arXiv:2103.16370.
    Departures: none known; both published forms are available.

    Args:
        logits: z [B, C].
        confidence: c of each row, in [0, 1] [B, 1].
        scale: a of each class [C].
        bias: b of each class [C].
        form: ``paper`` is c (a z + b) + (1 - c) z, ``code`` is (1 + c a) z + c b.

    Returns:
        Logits [B, C].

    Raises:
        ValueError: ``form`` is unknown.
    """
    if form == "paper":
        return confidence * (scale * logits + bias) + (1 - confidence) * logits
    if form == "code":
        return (1 + confidence * scale) * logits + confidence * bias
    raise ValueError(f"`form`: expected paper or code, found {form}")


def generalised_weights(class_counts: Counts, rho: float = 1.2) -> Tensor:
    """Return class weights pi_k^(-rho), scaled to sum to C.

    Reference: Zhang et al., Distribution Alignment: A Unified Framework for Long-Tail Visual
        Recognition, CVPR 2021, arXiv:2103.16370 (generalised re-weighting).
    Departures: none known.

    Args:
        class_counts: training images of each class [C].
        rho: exponent, >= 0; 0 gives equal weights, 1 inverse counts.

    Returns:
        Weights [C].

    Raises:
        ValueError: ``rho`` is negative.
        UserError: a count is not positive.
    """
    if not rho >= 0:
        raise ValueError(f"`rho` must be >= 0, found {rho}")
    counts = checked_counts(class_counts)
    weights = (counts.min() / counts) ** rho
    return len(counts) * weights / weights.sum()
