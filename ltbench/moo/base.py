from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltbench import schema

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Solution:
    """What a solver decided for K objectives with gradients g_k.

    Args:
        coefficients: v [K]; the update direction is ``sum_k v_k g_k``.
        weights: w [K], the point of the simplex the solver found; ``coefficients`` for solvers
            that have none.
        gap: certified duality gap relative to the problem's scale; 0 where the solution is in
            closed form, NaN where the solver gives no certificate.
    """

    coefficients: Vector
    weights: Vector
    gap: float = 0.0


class Solver:
    """Turns the Gram matrix of class gradients into the coefficients of one direction."""

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
            losses: value of each objective [K]; used by EPO only.
            preference: non-negative importance of each objective [K], any scale; ``None`` is equal.
            seed: for solvers with a random order (PCGrad).
        """
        raise NotImplementedError
