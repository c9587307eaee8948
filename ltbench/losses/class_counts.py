"""Margins, weights and offsets from the number of training images of each class.

Counts are a sequence or a tensor [C]; results are float64 tensors [C] on the device of the
counts. The row functions convert them to the precision of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ltbench.errors import UserError

Counts = Sequence[int] | Sequence[float] | Tensor
Smoothing = Literal["concave", "linear", "convex", "exponential"]

PRIOR_FLOOR = 1e-12  # keeps log(pi^tau) finite for large tau; the authors' code uses the same
HEAD_FLOOR = 0.01  # keeps the weight of the largest class above zero; as in PLOT's release


def checked_counts(class_counts: Counts) -> Tensor:
    """Return class counts as a float64 tensor [C].

    Raises:
        UserError: there are no classes, or a count is not a positive number.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if counts.dim() != 1 or len(counts) == 0:
        raise UserError(
            f"class_counts: expected one positive number per class, found shape "
            f"{list(counts.shape)}; pass the number of training images of each class"
        )
    wrong = (~(counts > 0) | counts.isinf()).nonzero()[:, 0].tolist()
    if wrong:
        raise UserError(
            f"class_counts: expected positive numbers, found {counts[wrong[0]].item():g} for class "
            f"{wrong[0]} ({len(wrong)} such class(es)); remove classes without training images"
        )
    return counts


def ldam_margins(class_counts: Counts, max_margin: float = 0.5) -> Tensor:
    """Return the margins of LDAM, proportional to n_k^(-1/4).

    Reference: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin
        Loss, NeurIPS 2019, arXiv:1906.07413, section 3.2.
    Departures: scaled so that the rarest class has ``max_margin``, as in the authors' code.

    Args:
        class_counts: training images of each class [C].
        max_margin: margin of the rarest class, >= 0.

    Returns:
        Margins [C].

    Raises:
        ValueError: ``max_margin`` is negative.
        UserError: a count is not positive.
    """
    if not max_margin >= 0:
        raise ValueError(f"`max_margin` must be >= 0, found {max_margin}")
    counts = checked_counts(class_counts)
    return max_margin * (counts.min() / counts) ** 0.25


def effective_number_weights(class_counts: Counts, beta: float = 0.9999) -> Tensor:
    """Return class weights (1 - beta) / (1 - beta^n_k), scaled to sum to C.

    Reference: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019,
        arXiv:1901.05555, Eqn 2.
    Departures: none known.

    Args:
        class_counts: training images of each class [C].
        beta: in [0, 1); 0 gives equal weights, towards 1 they approach 1/n_k.

    Returns:
        Weights [C].

    Raises:
        ValueError: ``beta`` is out of range.
        UserError: a count is not positive.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"`beta` must be in [0, 1), found {beta}")
    counts = checked_counts(class_counts)
    effective = -torch.expm1(counts * counts.new_tensor(beta).log())  # 1 - beta^n, no cancellation
    return len(counts) / effective / (1 / effective).sum()


def logit_adjustment_offset(class_counts: Counts, tau: float = 1.0) -> Tensor:
    """Return log(pi_k^tau + 1e-12), with pi the training prior.

    Reference: Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021,
        arXiv:2007.07314, Eqn 9-10.
    Departures: the floor 1e-12 is that of the public code; it matters for large tau only.

    Args:
        class_counts: training images of each class [C].
        tau: strength of the prior, >= 0.

    Returns:
        Offset [C]: added to logits in training, subtracted from them post hoc.

    Raises:
        ValueError: ``tau`` is negative.
        UserError: a count is not positive.
    """
    if not tau >= 0:
        raise ValueError(f"`tau` must be >= 0, found {tau}")
    counts = checked_counts(class_counts)
    return ((counts / counts.sum()) ** tau + PRIOR_FLOOR).log()


def log_prior(class_counts: Counts, floor: float = 1e-9) -> Tensor:
    """Return log(pi_k + floor), with pi the training prior.

    Reference: LADE (CVPR 2021, arXiv:2012.00321), PaCo (ICCV 2021, arXiv:2107.12028) and SADE
        (NeurIPS 2022, arXiv:2107.09249), whose released codes have this floor.
    Departures: none known.

    Args:
        class_counts: training images of each class [C].
        floor: keeps the logarithm finite, >= 0.

    Returns:
        Logarithms [C].

    Raises:
        UserError: a count is not positive.
    """
    counts = checked_counts(class_counts)
    return (counts / counts.sum() + floor).log()


def label_aware_smoothing(
    class_counts: Counts,
    head: float,
    tail: float,
    shape: Smoothing = "concave",
    power: float | None = None,
) -> Tensor:
    """Return the label smoothing of each class: highest for the head, lowest for the tail.

    Reference: Zhong et al., Improving Calibration for Long-Tailed Recognition, CVPR 2021,
        arXiv:2104.00466 (label-aware smoothing).
    Departures: with equal counts, which the formulas leave undefined, every class gets ``tail``.

    Args:
        class_counts: training images of each class [C].
        head: smoothing of the largest class, in [tail, 1].
        tail: smoothing of the smallest class, in [0, 1].
        shape: growth from tail to head.
        power: exponent > 0 of the shape ``exponential``.

    Returns:
        Smoothing [C].

    Raises:
        ValueError: a value is out of range, or ``power`` does not go with ``shape``.
        UserError: a count is not positive.
    """
    if not 0 <= tail <= head <= 1:
        raise ValueError(f"expected 0 <= `tail` <= `head` <= 1, found {tail} and {head}")
    if (shape == "exponential") != (power is not None) or (power is not None and not power > 0):
        raise ValueError(f"`power` > 0 is for shape `exponential`, found {power} with `{shape}`")
    counts = checked_counts(class_counts)
    spread = counts.max() - counts.min()
    t = (counts - counts.min()) / spread.clamp(min=torch.finfo(counts.dtype).tiny)  # in [0, 1]
    if shape == "concave":
        grown = (t * math.pi / 2).sin()
    elif shape == "linear":
        grown = t
    elif shape == "convex":
        grown = 1 + (1.5 * math.pi + t * math.pi / 2).sin()
    elif shape == "exponential" and power is not None:
        grown = t**power
    else:
        raise ValueError(f"`shape`: expected concave, linear, convex or exponential, found {shape}")
    return tail + (head - tail) * grown


def plot_class_weights(class_counts: Counts, div: float = 2.0) -> Tensor:
    """Return omega_k = log(n_max / n_k + 0.01) / div, PLOT's preference and stage-2 weights.

    Reference: Zhou et al., Pareto Deep Long-Tailed Recognition: A Conflict-Averse Solution,
        ICLR 2024; the formula is in the released code only.
    Departures: none known.

    Args:
        class_counts: training images of each class [C].
        div: divisor, > 0.

    Returns:
        Weights [C], log(1.01) / div for the largest class.

    Raises:
        ValueError: ``div`` is not positive.
        UserError: a count is not positive.
    """
    if not div > 0:
        raise ValueError(f"`div` must be > 0, found {div}")
    counts = checked_counts(class_counts)
    return (counts.max() / counts + HEAD_FLOOR).log() / div


def focal_sam_shares(class_counts: Counts, gamma: float, sharpness: float) -> Tensor:
    """Return sharpness (1 - n_k / n)^gamma, the share of a class's loss under Focal-SAM.

    It is taken at the perturbed weights, the rest at the weights themselves.

    Reference: Li et al., Focal-SAM: Focal Sharpness-Aware Minimization for Long-Tailed
        Classification, ICML 2025, arXiv:2505.01660.
    Departures: none known.

    Args:
        class_counts: training images of each class [C].
        gamma: exponent, >= 0; 0 gives all classes the same share.
        sharpness: lambda >= 0, the limit for rare classes; it may exceed 1.

    Returns:
        Shares [C] in [0, ``sharpness``].

    Raises:
        ValueError: ``gamma`` or ``sharpness`` is negative.
        UserError: a count is not positive.
    """
    if not (gamma >= 0 and sharpness >= 0):
        raise ValueError(f"`gamma` and `sharpness` must be >= 0, found {gamma} and {sharpness}")
    counts = checked_counts(class_counts)
    return sharpness * ((counts.sum() - counts) / counts.sum()) ** gamma
