"""Similarity of representations: canonical correlations, SVCCA and linear CKA."""

from __future__ import annotations

from typing import Any

import numpy as np


def canonical_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the canonical correlations of two sets of variables, in descending order.

    Reference: Hotelling, Relations Between Two Sets of Variates, Biometrika 1936; computed as in
        Björck and Golub, Numerical Methods for Computing Angles Between Linear Subspaces, 1973.
    Departures: none known; directions without variance are ignored.

    Args:
        x: observations in rows [N, P].
        y: the same observations in rows [N, Q].

    Returns:
        Values in [0, 1], as many as the smaller rank.

    Raises:
        ValueError: the numbers of rows differ.
    """
    if len(x) != len(y):
        raise ValueError(f"expected as many rows, found {len(x)} and {len(y)}")
    found = np.linalg.svd(_principal(x)[0].T @ _principal(y)[0], compute_uv=False)
    result: np.ndarray = found.clip(0, 1)
    return result


def svcca(x: np.ndarray, y: np.ndarray, variance: float = 0.99) -> float:
    """Return the mean canonical correlation of the principal directions of two representations.

    Reference: Raghu et al., SVCCA: Singular Vector Canonical Correlation Analysis for Deep
        Learning Dynamics and Interpretability, NeurIPS 2017, arXiv:1706.05806.
    Departures: none known.

    Args:
        x: observations in rows [N, P].
        y: the same observations in rows [N, Q].
        variance: fraction of the variance of each that is kept.

    Returns:
        Value in [0, 1]; 0 if one of them is constant.
    """
    found = canonical_correlations(main_directions(x, variance), main_directions(y, variance))
    return float(found.mean()) if len(found) else 0.0


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return the linear centred kernel alignment (CKA) of two representations.

    Reference: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML
        2019, arXiv:1905.00414.
    Departures: none known.

    Args:
        x: observations in rows [N, P].
        y: the same observations in rows [N, Q].

    Returns:
        Value in [0, 1]; 0 if one of them is constant.
    """
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    between = np.linalg.norm(x.T @ y) ** 2
    within = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(between / within) if within > 0 else 0.0


def main_directions(x: np.ndarray, variance: float) -> np.ndarray:
    """Return the fewest principal scores with a given fraction of the variance [N, k]."""
    left, values = _principal(x)
    share = np.cumsum(values**2) / max(float((values**2).sum()), np.finfo(float).tiny)
    kept = min(int((share < variance - 1e-12).sum()) + 1, len(values))
    scores: np.ndarray = left[:, :kept] * values[:kept]
    return scores


def principal_scores(x: np.ndarray) -> np.ndarray:
    """Return all principal scores [N, rank]: the representation, centred and rotated."""
    left, values = _principal(x)
    scores: np.ndarray = left * values
    return scores


def channel_similarity(a: np.ndarray, b: np.ndarray, variance: float = 0.99) -> dict[str, Any]:
    """Return the similarity of two sets of images in feature space, paired by channel.

    Args:
        a: features of the first images [N, D].
        b: features of the second images [M, D].
        variance: see ``svcca``.

    Returns:
        ``svcca`` and ``cka``, the canonical ``correlations``, and the numbers of directions kept
        (``first``, ``second``).
    """
    first, second = ((one - one.mean(axis=0)).T for one in (a, b))
    x, y = main_directions(first, variance), main_directions(second, variance)
    found = canonical_correlations(x, y)
    return {
        "svcca": float(found.mean()) if len(found) else 0.0,
        "cka": linear_cka(first, second),
        "correlations": found,
        "first": x.shape[1],
        "second": y.shape[1],
    }


def rotation(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random orthogonal matrix, uniformly distributed [D, D]."""
    q, r = np.linalg.qr(rng.normal(size=(size, size)))
    result: np.ndarray = q * np.sign(r.diagonal())
    return result


def _principal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return left singular vectors and singular values of centred data above rounding errors."""
    centred = np.asarray(x, dtype=np.float64) - np.mean(x, axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    scale = max(float(np.abs(x).max(initial=0)) * np.sqrt(x.size), 1e-300)
    kept = values > max(x.shape) * np.finfo(np.float64).eps * max(
        scale, float(values.max(initial=0))
    )
    return left[:, kept], values[kept]
