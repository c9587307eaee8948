from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from ltbench.config import schema
from ltbench.moo._gram import EPS, Rescale, check_losses, check_preference, factor, scaled_gram
from ltbench.moo.base import Solution, Solver, Vector


class EPO(Solver):
    """Exact Pareto-optimal search: go where preference times loss is the same for all objectives.

    While ``r_k L_k`` is uneven, a linear programme picks the direction that evens it out most
    without raising the objectives that are already too high; once it is even, another one picks
    the direction of steepest common descent.

    Reference: Mahapatra and Rajan, Multi-Task Learning with User Preferences: Gradient Descent with
        Controlled Ascent in Pareto Optimization, ICML 2020, Algorithm 1 and Eqns. 20-25.
    Departures: the authors' code fails on a loss of exactly 0; here its share is floored at machine
        epsilon. The Gram matrix is scaled, so the programme's tolerances are relative, and bounds
        of minus infinity are left out. A programme that fails gives the preference, as there.
    """

    class Config(schema.Config):
        """Options of EPO.

        Args:
            eps: non-uniformity above which balance has priority over descent.
            relaxed: drop the bound that keeps descent from undoing the balance.
            rescale: ``sum`` multiplies the direction by K, as in the authors' experiments.
        """

        eps: float = Field(default=1e-4, gt=0)
        relaxed: bool = False
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
        """Solve for one step; ``losses`` [K] are required, ``seed`` has no effect."""
        matrix = scaled_gram(gram)
        size = len(matrix)
        r = check_preference(preference, size)
        values = check_losses(losses, size, "EPO")
        alpha, gap = r, 0.0
        if size > 1 and matrix.any() and (r * values).max() > 0:
            alpha, gap = self._programme(matrix, values, r)
        return Solution(alpha * factor(self.config.rescale, size), alpha, gap)

    def _programme(self, matrix: Vector, losses: Vector, r: Vector) -> tuple[Vector, float]:
        mu, adjust = non_uniformity(losses, r)
        pull = matrix @ adjust
        if mu > self.config.eps:
            weighted = r * losses
            bound = np.where(pull > 0, -np.inf, pull)
            bound[weighted == weighted.max()] = 0.0
            if not (pull > 0).any():
                bound[:] = 0.0
            return _linprog(pull, matrix, bound, r)
        rows, bound = matrix, np.zeros(len(matrix))
        if not self.config.relaxed:
            rows = np.vstack([matrix, pull])
            bound = np.append(bound, min(0.0, float(pull.max())))
        return _linprog(matrix.sum(axis=0), rows, bound, r)


def non_uniformity(losses: Vector, preference: Vector) -> tuple[float, Vector]:
    """Return the non-uniformity of ``r_k L_k`` and the adjustment a [K] that reduces it.

    Args:
        losses: non-negative L [K].
        preference: non-negative r [K].

    Returns:
        The KL divergence of the shares from equal ones (0 if equal), and
        ``a_k = r_k (log(K q_k) - divergence)`` with q the shares.
    """
    weighted = preference * losses
    share = weighted / weighted.sum()
    log = np.log(len(share) * share.clip(EPS))
    mu = float((share * log)[share > EPS].sum())
    return mu, preference * (log - mu)


def _linprog(gain: Vector, rows: Vector, bound: Vector, fallback: Vector) -> tuple[Vector, float]:
    """Maximise ``gain . alpha`` over the simplex with ``rows alpha >= bound``; add the dual gap."""
    from scipy.optimize import linprog

    kept = np.isfinite(bound)
    top = float(np.abs(gain).max())
    ones = np.ones((1, len(gain)))
    if top == 0:
        top = 1.0
    result = linprog(
        -gain / top,
        A_ub=-rows[kept],
        b_ub=-bound[kept],
        A_eq=ones,
        b_eq=[1.0],
        bounds=(0, None),
        method="highs",
    )
    if not result.success:
        return fallback, float("nan")
    alpha = np.asarray(result.x, dtype=np.float64).clip(0)
    alpha /= alpha.sum()
    dual = float(result.ineqlin.marginals @ -bound[kept] + result.eqlin.marginals[0])
    return alpha, abs(float(-gain / top @ alpha) - dual)
