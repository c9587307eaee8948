from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltbench.config import schema
from ltbench.moo._gram import Rescale, factor, scaled_gram
from ltbench.moo.base import Solution, Solver, Vector


class PCGrad(Solver):
    """Project each gradient off every gradient it conflicts with, in random order, then average.

    Reference: Yu, Kumar, Gupta, Levine, Hausman and Finn, Gradient Surgery for Multi-Task Learning,
        NeurIPS 2020, arXiv:2001.06782, Algorithm 1.
    Departures: the paper sums the projected gradients, many codes average them; here the average,
        and the sum with ``rescale: sum``. All is computed on the Gram matrix; the orders depend on
        ``seed`` only.
    """

    class Config(schema.Config):
        """Options of PCGrad.

        Args:
            rescale: ``sum`` multiplies the direction by K, which is the paper's sum.
        """

        rescale: Rescale = "none"

    config: Config

    def solve(
        self,
        gram: ArrayLike,
        *,
        losses: ArrayLike | None = None,
        preference: ArrayLike | None = None,
        seed: int = 0,
    ) -> Solution:
        """Solve for one step; ``losses`` and ``preference`` have no effect."""
        matrix = scaled_gram(gram)
        size = len(matrix)
        mixed = project(matrix, random_orders(size, seed)).mean(axis=0)
        mixed *= factor(self.config.rescale, size)
        return Solution(mixed, mixed)


def random_orders(size: int, seed: int) -> NDArray[np.int64]:
    """Return one random order of all tasks per task [K, K]."""
    from ltbench.seeding import derive, keyed_bits

    bits = keyed_bits(derive(seed, "pcgrad"), np.arange(size * size)).reshape(size, size)
    return np.argsort(bits, axis=1, kind="stable").astype(np.int64)


def project(gram: ArrayLike, orders: ArrayLike) -> Vector:
    """Return the projected gradients as coefficients over the original ones.

    Args:
        gram: inner products of the gradients [K, K].
        orders: order in which each task is projected against the others [K, K], or one order for
            all [K].

    Returns:
        Coefficients [K, K]: row i holds those of the projected gradient i over the g_k.
    """
    matrix = scaled_gram(gram)
    size = len(matrix)
    visits = np.broadcast_to(np.asarray(orders, dtype=np.int64), (size, size))
    rows = np.eye(size)
    inner = matrix.copy()  # [i, k]: projected gradient i with original gradient k
    squares = matrix.diagonal()
    for others in visits.T:
        products = inner[np.arange(size), others]
        hit = np.flatnonzero((products < 0) & (others != np.arange(size)) & (squares[others] > 0))
        if hit.size:
            met = others[hit]
            amount = products[hit] / squares[met]
            rows[hit, met] -= amount
            inner[hit] -= amount[:, None] * matrix[met]
    return rows
