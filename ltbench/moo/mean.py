from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ltbench.moo._gram import check_gram
from ltbench.moo.base import Solution, Solver


class Mean(Solver):
    """The average of the gradients: no conflict is resolved.

    Reference: the usual baseline of multi-task learning, called linear scalarisation with equal
        weights.
    Departures: none known.
    """

    def solve(
        self,
        gram: ArrayLike,
        *,
        losses: ArrayLike | None = None,
        preference: ArrayLike | None = None,
        seed: int = 0,
    ) -> Solution:
        """Return 1/K for each objective; ``losses``, ``preference`` and ``seed`` have no effect."""
        size = len(check_gram(gram))
        equal = np.full(size, 1 / size)
        return Solution(equal, equal)
