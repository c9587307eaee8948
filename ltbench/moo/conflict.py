from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltbench.moo._gram import scaled_gram
from ltbench.moo.base import Vector


@dataclass(frozen=True)
class Similarity:
    """How far the class gradients of one step agree.

    Args:
        cosine: cosine of each pair [K, K]; 0 where a gradient is zero.
        cosine_with_mean: cosine of each gradient with their average g_0 [K].
        pairs: conflicting pairs i < j, with a negative cosine [*, 2].
        dominated: number of pairs (i, j) with |g_i| < |g_j| and ``cos(g_0, g_i) < 0``: the average
            step raises the loss of i for the sake of longer gradients.
    """

    cosine: Vector
    cosine_with_mean: Vector
    pairs: NDArray[np.int64]
    dominated: int

    @property
    def conflicts(self) -> int:
        """Number of conflicting pairs."""
        return len(self.pairs)


def measure(gram: ArrayLike) -> Similarity:
    """Compute the similarity of gradients from their Gram matrix.

    Reference: Zhou et al., PLOT, Definitions 2.1 (conflict) and 2.2 (dominated conflict).
    Departures: none known.

    Args:
        gram: inner products of the class gradients [K, K].
    """
    matrix = scaled_gram(gram)
    square = matrix.diagonal().clip(0)
    length = np.sqrt(square)
    inverse = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
    cosine = (matrix * inverse) * inverse[:, None]
    mean = float(np.sqrt(max(float(matrix.mean()), 0.0)))
    with_mean = matrix.mean(axis=1) * inverse / mean if mean > 0 else np.zeros_like(length)
    longer = (square[:, None] < square).sum(axis=1)
    return Similarity(
        cosine=cosine.clip(-1, 1),
        cosine_with_mean=with_mean.clip(-1, 1),
        pairs=np.argwhere(np.triu(cosine < 0, k=1)).astype(np.int64),
        dominated=int(longer[with_mean < 0].sum()),
    )
