"""Correction of approximate Gram matrices by exact products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ltbench.moo.base import Vector


def with_products(
    gram: ArrayLike, points: Sequence[ArrayLike], products: Sequence[ArrayLike]
) -> Vector:
    """Return the Gram matrix corrected to satisfy ``G s = y`` for known pairs of s and y.

    G is replaced on the span of the points: ``G - G S (S'GS)^-1 S'G + Y (S'Y)^-1 Y'``.
    It stays positive semidefinite.

    Reference: the multi-secant form of the Davidon-Fletcher-Powell and BFGS updates; Nocedal and
        Wright, Numerical Optimization, 2006, Eqn 6.19.
    Departures: none known.

    Args:
        gram: approximation of G [K, K].
        points: s [K] each.
        products: exact ``G s`` [K] each.
    """
    g = np.asarray(gram, dtype=np.float64)
    s, y = (np.stack([np.asarray(v, np.float64) for v in vs], axis=1) for vs in (points, products))
    gs = g @ s
    return np.asarray(g - gs @ _inverse(s.T @ gs) @ gs.T + y @ _inverse(s.T @ y) @ y.T)


def _inverse(matrix: Vector) -> Vector:
    """Return the pseudoinverse of a symmetric matrix."""
    return np.asarray(np.linalg.pinv((matrix + matrix.T) / 2, rcond=1e-12, hermitian=True))


def with_exact_sum(products: ArrayLike) -> Vector:
    """Return a Gram matrix whose row sums are the known inner products with the sum of gradients.

    Args:
        products: inner products of approximate gradients and, in the last row, of the exact sum
            of all [K + 1, K + 1].
    """
    known = np.asarray(products, dtype=np.float64)
    approximate, rows, square = known[:-1, :-1], known[-1, :-1], float(known[-1, -1])
    found = float(rows.sum())  # the approximate sum times the exact one
    if not found > square / 4:  # nearly unrelated, or no gradient
        return approximate
    return with_products(approximate, [np.ones(len(rows))], [rows * (square / found)])
