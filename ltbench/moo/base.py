from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltbench.config import schema

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """Solution of a solver for K objectives with gradients g_k.

    Args:
        coefficients: v [K]; the update direction is ``sum_k v_k g_k``.
        weights: w [K], the solver's point of the simplex; ``coefficients`` for solvers without
            one.
        gap: certified duality gap relative to the problem's scale; 0 for a closed-form solution,
            NaN for solvers without a certificate.
    """

    coefficients: Vector
    weights: Vector
    gap: float = 0.0


class Solver:
    """Base class of solvers: from the Gram matrix of gradients to coefficients of a direction."""

    class Config(schema.Config):
        """Options of the solver."""

    def __init__(self, config: schema.Config) -> None:
        self.config = config

    def solve(
        self,
        gram: ArrayLike,
        *,
        losses: ArrayLike | None = None,
        preference: ArrayLike | None = None,
        seed: int = 0,
    ) -> Solution:
        """Solve for one step.

        Args:
            gram: inner products of the class gradients [K, K], symmetric.
            losses: value of each objective [K]; used by EPO and by MGDA with a loss normalisation.
            preference: non-negative importance of each objective [K], any scale; ``None`` is equal.
            seed: for solvers with a random order (PCGrad).
        """
        raise NotImplementedError
