from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from ltbench.config import schema
from ltbench.moo._gram import check_gram, check_preference, factor, scaled_gram
from ltbench.moo.base import Solution, Solver
from ltbench.moo.cagrad import certified_gap

_GUARD = 1e-8


class SLSQP(Solver):
    """CAGrad solved as the released PLOT code does, for replication only; prefer `cagrad`.

    SciPy's ``minimize`` with its default tolerance and 1e-8 added under the roots, started at the
    preference. On small gradients it returns that start point, as the reported ``gap`` shows.

    Reference: Zhou et al., PLOT, released training code, CAGrad step; Liu et al., Conflict-Averse
        Gradient Descent for Multi-task Learning, NeurIPS 2021, arXiv:2110.14048.
    Departures: returns the start point, instead of an exception, if the optimiser returns NaN; none
        else known. It is the only solver that depends on the scale of the gradients, on purpose.
    """

    class Config(schema.Config):
        """Options of the released call.

        Args:
            c: radius of the ball in units of |g_0|, in [0, 1).
            rescale: ``sum`` multiplies the direction by K, ``official`` by K / (1 + c^2).
        """

        c: float = Field(default=0.5, ge=0, lt=1)
        rescale: Literal["none", "sum", "official"] = "none"

    config: Config

    def solve(
        self,
        gram: ArrayLike,
        *,
        losses: ArrayLike | None = None,
        preference: ArrayLike | None = None,
        seed: int = 0,
    ) -> Solution:
        """Solve for one step; ``losses`` and ``seed`` have no effect."""
        from scipy.optimize import minimize

        matrix = check_gram(gram)
        size = len(matrix)
        b = check_preference(preference, size)
        slope = self.config.c * _root(float(matrix.mean())) + _GUARD
        linear = matrix @ b
        result = minimize(
            lambda w: float(w @ linear + slope * _root(float(w @ matrix @ w))),
            b,
            bounds=[(0, 1)] * size,
            constraints={"type": "eq", "fun": lambda w: 1 - w.sum()},
        )
        found = np.asarray(result.x, dtype=np.float64)
        weights = found if np.isfinite(found).all() else b
        norm = _root(float(weights @ matrix @ weights)) + _GUARD
        coefficients = np.full(size, 1 / size) + (slope / norm) * weights
        scale = factor(self.config.rescale, size, self.config.c)
        exact = scaled_gram(matrix)
        square = self.config.c * float(np.sqrt(max(exact.mean(), 0.0)))
        gap = certified_gap(exact, exact @ b, square, weights) if square > 0 else 0.0
        return Solution(coefficients * scale, weights, gap)


def _root(square: float) -> float:
    return float(np.sqrt(max(square, 0.0) + _GUARD))
