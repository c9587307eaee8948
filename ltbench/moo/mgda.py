from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ltbench.config import schema
from ltbench.moo._gram import EPS, Rescale, check_losses, factor, scaled_gram
from ltbench.moo._simplex import minimise
from ltbench.moo.base import Solution, Solver, Vector


class MGDA(Solver):
    """The minimum-norm point of the convex hull of the gradients (multiple-gradient descent).

    Reference: Désidéri, Multiple-gradient descent algorithm (MGDA) for multiobjective optimization,
        C. R. Acad. Sci. Paris 2012; Sener and Koltun, Multi-Task Learning as Multi-Objective
        Optimization, NeurIPS 2018, arXiv:1810.04650, Eqn. 3.
    Departures: the public solvers clamp the weights of two tasks to 0.001 and 0.999, fail with one
        task and may not terminate; this one is exact. With a normalisation, the public codes apply
        the weights to the raw gradients, which is no longer a common descent direction; here the
        normalisation is part of the coefficients, scaled to sum to 1 so that the step keeps the
        scale of the gradients.
    """

    class Config(schema.Config):
        """Options of MGDA.

        Args:
            normalization: divisor of each gradient before solving: none, its L2 norm (``l2``), its
                loss (``loss``) or both (``loss+``).
            rescale: ``sum`` multiplies the direction by K.
        """

        normalization: Literal["none", "l2", "loss", "loss+"] = "none"
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
        """Solve for one step; ``preference`` and ``seed`` have no effect."""
        matrix = scaled_gram(gram)
        size = len(matrix)
        divisor = self._divisor(matrix, losses)
        zero = matrix.diagonal() <= 0
        if zero.any():  # already the minimum-norm point: Pareto-stationary
            weights = zero / zero.sum()
            return Solution(weights * factor(self.config.rescale, size), weights)
        matrix = scaled_gram(matrix / divisor / divisor[:, None])
        weights, _ = minimise(matrix)
        steep = matrix @ weights
        gap = max(2 * float(weights @ steep - steep.min()), 0.0)
        coefficients = weights * (divisor.min() / divisor)
        coefficients /= coefficients.sum()
        return Solution(coefficients * factor(self.config.rescale, size), weights, gap)

    def _divisor(self, matrix: Vector, losses: ArrayLike | None) -> Vector:
        divisor = np.ones(len(matrix))
        if self.config.normalization.startswith("loss"):
            values = check_losses(losses, len(matrix), "MGDA with a loss normalisation")
            peak = values.max()
            if peak > 0:  # avoids division by a loss of 0
                divisor = (values / peak).clip(EPS)
        if self.config.normalization in ("l2", "loss+"):
            divisor = divisor * np.sqrt(matrix.diagonal().clip(0))
        return divisor
