from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from ltbench.config import schema
from ltbench.moo._gram import check_preference, factor, is_rounding, length, scaled_gram
from ltbench.moo._simplex import minimise
from ltbench.moo.base import Solution, Solver, Vector


class CAGrad(Solver):
    """Conflict-averse gradient: the best worst case within ``c |g_0|`` of the average gradient.

    With g_0 the average of the gradients and b the preference, w minimises
    ``g_w . g_b + c |g_0| |g_w|`` over the simplex and the direction is
    ``g_0 + c |g_0| g_w / |g_w|``. Where g_w = 0 (Pareto-stationary) it is g_0.

    Reference: Liu, Liu, Jin, Stone and Liu, Conflict-Averse Gradient Descent for Multi-task
        Learning, NeurIPS 2021, arXiv:2110.14048, Algorithm 1; as used by PLOT (Zhou et al.).
    Departures: the paper has no preference (b is equal); the released PLOT code puts its class
        weights in b, which here is `preference` and, as there, leaves g_0 an equal average. The
        released codes add 1e-8 under their roots, which is not negligible for small gradients,
        and solve with SciPy's SLSQP, which then returns its start point; this solver is exact at
        any scale (see `slsqp` for the released call).
    """

    class Config(schema.Config):
        """Options of CAGrad.

        Args:
            c: radius of the ball in units of |g_0|, in [0, 1); 0 is the average gradient.
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
        matrix = scaled_gram(gram)
        size = len(matrix)
        b = check_preference(preference, size)
        mean = np.full(size, 1 / size)
        scale = factor(self.config.rescale, size, self.config.c)
        square = float(matrix.mean())  # |g_0|^2
        if self.config.c == 0 or is_rounding(matrix, mean, square):
            return Solution(mean * scale, b)
        slope = self.config.c * float(np.sqrt(square))
        weights, witness = _minimiser(matrix, matrix @ b, slope)
        gap = certified_gap(matrix, matrix @ b, slope, weights, witness)
        norm = length(matrix, weights)
        if is_rounding(matrix, weights, norm**2):
            return Solution(mean * scale, weights, gap)
        return Solution((mean + (slope / norm) * weights) * scale, weights, gap)


def certified_gap(
    matrix: Vector, linear: Vector, slope: float, weights: Vector, witness: Vector | None = None
) -> float:
    """Return the duality gap of ``weights`` for CAGrad's F, in units of c^2 |g_0|^2.

    Args:
        matrix: Gram matrix G [K, K].
        linear: G b [K].
        slope: c |g_0|, positive.
        weights: point of the simplex [K].
        witness: u [K] with ``|g_u| <= slope``, for which ``min_k (G b + G u)_k`` is a lower bound
            of F; the weights give one too.
    """
    square = float(weights @ matrix @ weights)
    bounds = []
    if is_rounding(matrix, weights, square):
        value = float(linear @ weights)
        bounds.append(float(linear.min()))
    else:
        norm = float(np.sqrt(square))
        value = float(linear @ weights) + slope * norm
        bounds.append(float((linear + (slope / norm) * (matrix @ weights)).min()))
    if witness is not None:
        inside = witness * (slope / max(slope, length(matrix, witness)))
        bounds.append(float((linear + matrix @ inside).min()))
    return max(value - max(bounds), 0.0) / slope**2


def _minimiser(matrix: Vector, linear: Vector, slope: float) -> tuple[Vector, Vector]:
    """Minimise F; a zero gradient has F = 0 and is optimal unless the others attain F < 0."""
    zero = matrix.diagonal() <= 0
    if not zero.any():
        return minimise(matrix, linear, slope)
    live = np.flatnonzero(~zero)
    part = matrix[np.ix_(live, live)]
    w, u = minimise(part, linear[live], slope)
    weights, witness = np.zeros(len(matrix)), np.zeros(len(matrix))
    witness[live] = u
    if float(linear[live] @ w) + slope * length(part, w) < 0:
        weights[live] = w
    else:
        weights[zero] = 1 / zero.sum()
    return weights, witness
