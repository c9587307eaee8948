"""Agreement of class gradients, from their inner products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltbench.data.shots import GROUPS
from ltbench.moo.conflict import compare

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """Norms and cosines of class gradients.

    Args:
        norm: L2 norm of each [n].
        ratio: norm divided by that of the average gradient g_0 [n].
        cosine: of each pair [n, n]; 0 where a gradient is zero.
        with_mean: cosine of each with g_0 [n].
        conflicts: pairs with a negative cosine.
        dominated: ordered pairs (i, j) with ``|g_i| < |g_j|`` and ``cos(g_0, g_i) < 0``.
        mean_norm: L2 norm of g_0.
    """

    norm: Numbers
    ratio: Numbers
    cosine: Numbers
    with_mean: Numbers
    conflicts: int
    dominated: int
    mean_norm: float

    @property
    def pairs(self) -> int:
        """Number of pairs, the maximum of ``conflicts`` and of ``dominated``."""
        return len(self.norm) * (len(self.norm) - 1) // 2


def agreement(products: ArrayLike, count: int | None = None) -> Agreement:
    """Compute the agreement of class gradients, some of which may be known only in sum.

    Reference: Zhou et al., PLOT, ICLR 2024, Definitions 2.1 (conflict) and 2.2 (dominated
        conflict).
    Departures: none known.

    Args:
        products: inner products of n gradients and, in the last row, of the sum of all others
            [n + 1, n + 1]; zeros where there are no others.
        count: number of gradients averaged in g_0; n by default.
    """
    table = np.asarray(products, dtype=np.float64)
    norm = np.sqrt(table.diagonal()[:-1].clip(0))
    mean = float(np.sqrt(max(float(table.sum()), 0.0)))
    mean /= max(1, len(norm) if count is None else count)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = compare(table)
        ratio = norm / mean if mean > 0 else np.full_like(norm, np.nan)
    return Agreement(
        norm=norm,
        ratio=ratio,
        cosine=found.cosine,
        with_mean=found.cosine_with_mean,
        conflicts=found.conflicts,
        dominated=found.dominated,
        mean_norm=mean,
    )


def between_groups(cosine: ArrayLike, groups: Sequence[str]) -> dict[tuple[str, str], float]:
    """Return the mean cosine of different classes within and between shot groups.

    Args:
        cosine: of each pair of classes [n, n].
        groups: shot group of each class [n].

    Returns:
        Mean of each pair of groups, in the order of ``GROUPS``; NaN without a pair of classes.
    """
    table, names = np.asarray(cosine, dtype=np.float64), np.asarray(groups)
    upper = np.triu(np.ones(table.shape, dtype=bool), k=1)
    found = {}
    for i, a in enumerate(GROUPS):
        for b in GROUPS[i:]:
            one = np.outer(names == a, names == b)
            values = table[upper & (one | one.T)]
            found[a, b] = float(values.mean()) if len(values) else float("nan")
    return found
