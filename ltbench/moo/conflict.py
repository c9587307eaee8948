from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ltbench.moo._gram import scaled_gram
from ltbench.moo.base import Vector


@dataclass(frozen=True)
class Similarity:
    """Pairwise similarity of the gradients of one step.

    Args:
        cosine: cosine of each pair [K, K]; 0 where a gradient is zero.
        cosine_with_mean: cosine of each gradient with their average g_0 [K].
        pairs: conflicting pairs i < j, with a negative cosine [*, 2].
        dominated: number of pairs (i, j) with |g_i| < |g_j| and ``cos(g_0, g_i) < 0``: the average
            step raises the loss of i in favour of longer gradients.
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
    return compare(np.pad(scaled_gram(gram), (0, 1)))


def compare(products: Vector) -> Similarity:
    """Compute the similarity of gradients, with an average that includes further gradients.

    Args:
        products: inner products of K gradients and, in the last row, of the sum of all others
            [K + 1, K + 1]; zeros where there are no others.
    """
    gram, with_sum = products[:-1, :-1], products.sum(axis=1)[:-1]
    square = gram.diagonal().clip(0)
    norm = np.sqrt(square)
    inverse = np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)
    cosine = (gram * inverse) * inverse[:, None]
    total = float(np.sqrt(max(float(products.sum()), 0.0)))
    with_mean = with_sum * inverse / total if total > 0 else np.zeros_like(norm)
    longer = (square[:, None] < square).sum(axis=1)
    return Similarity(
        cosine=cosine.clip(-1, 1),
        cosine_with_mean=with_mean.clip(-1, 1),
        pairs=np.argwhere(np.triu(cosine < 0, k=1)).astype(np.int64),
        dominated=int(longer[with_mean < 0].sum()),
    )
