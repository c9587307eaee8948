"""Sampling probabilities of images and classes as functions of the class counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ltbench.config.registry import registry
from ltbench.errors import UserError

Beta = float | Literal["class_based"]


def image_weights(
    class_counts: Sequence[int] | np.ndarray,
    name: str,
    *,
    beta: Beta = 0.9999,
    progress: float = 0.0,
    exponent: float = 0.5,
) -> np.ndarray:
    """Return the sampling weight of an image of each class.

    Reference:
        Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition,
        ICLR 2020, arXiv:1910.09217, Eqn. 1 (instance, class-balanced, square-root) and Eqn. 2
        (progressive); Zhou et al., BBN, CVPR 2020, arXiv:1912.02413, Section 4.2 (reversed);
        Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019,
        arXiv:1901.05555, Eqn. 2 (effective); Li et al., Long-Tailed Visual Recognition via
        Gaussian Clouded Logit Adjustment, CVPR 2022 (class-based beta).

    Departures:
        none known; GCL's class-based beta is 0.9999 + 1e-5 d_k as in its code, in double
        precision.

    Args:
        class_counts: training images of each class [C]; classes without images get weight 0.
        name: ``"instance"``, ``"class_aware"``, ``"square_root"``, ``"power"``, ``"reversed"``,
            ``"progressive"``, ``"effective"``, ``"deferred"`` (after its first phase), or
            ``"weighted"`` and ``"subset"`` with their default options.
        beta: beta of the effective number, in [0, 1]: 0 is instance sampling, 1 inverse counts;
            ``"class_based"`` is GCL's rule.
        progress: progress of progressive sampling, in [0, 1]: 0 is instance sampling, 1
            class-balanced sampling.
        exponent: exponent of power sampling: the probability of a class is proportional to its
            count to this power.

    Returns:
        Weights up to a common factor, float64 [C].

    Raises:
        UserError: the name is unknown.
    """
    counts = np.asarray(class_counts, dtype=np.float64)
    present = counts > 0
    n = counts[present]
    if name in ("instance", "subset"):
        weights = np.ones_like(n)
    elif name in ("class_aware", "weighted"):
        weights = 1 / n
    elif name == "power":
        weights = n ** (exponent - 1)
    elif name == "square_root":
        weights = 1 / np.sqrt(n)
    elif name == "reversed":
        weights = n.max() / n**2
    elif name == "progressive":
        weights = (1 - progress) / n.sum() + progress / (len(n) * n)
    elif name in ("effective", "deferred"):
        weights = _effective(n, beta)
    else:
        raise UserError(
            f"unknown sampler `{name}`; known: {', '.join(registry('SAMPLERS').names())}"
        )
    result = np.zeros_like(counts)
    result[present] = weights
    return result


def class_probabilities(
    class_counts: Sequence[int] | np.ndarray, name: str, **options: Any
) -> np.ndarray:
    """Return the class probabilities of a sampler.

    Args:
        class_counts: training images of each class [C].
        name: name of the sampler, as for ``image_weights``.
        options: further options of ``image_weights``.

    Returns:
        Probabilities with sum 1, float64 [C].

    Raises:
        UserError: the name is unknown.
    """
    share = np.asarray(class_counts, dtype=np.float64) * image_weights(
        class_counts, name, **options
    )
    return np.asarray(share / share.sum())


def _effective(n: np.ndarray, beta: Beta) -> np.ndarray:
    if beta == "class_based":
        fall = np.log(n.max()) - np.log(n)
        betas = 0.9999 + 1e-5 * fall / max(float(fall.max()), 1e-300)
        return np.asarray((1 - betas) / -np.expm1(n * np.log(betas)))
    value = float(beta)
    if value == 1:
        return np.asarray(1 / n)
    return np.asarray((1 - value) / (1 - value**n))
