"""Random numbers of torch's CPU generator, for many seeds at once."""

from __future__ import annotations

import numpy as np
import torch


class TorchRandom:
    """The numbers that torch draws one by one after ``torch.manual_seed``, for a seed per image.

    Args:
        seeds: seed of each image [B], non-negative.
        count: most numbers that are drawn of one seed.
    """

    def __init__(self, seeds: np.ndarray, count: int) -> None:
        pairs = torch.empty((len(seeds), (count + 1) // 2), dtype=torch.int64)
        generator = torch.Generator()
        for row, seed in zip(pairs.unbind(), seeds.tolist(), strict=True):
            generator.manual_seed(seed)
            row.random_(-(2**63), None, generator=generator)  # all 64 bits, first number above
        words = pairs.numpy().astype("<i8", copy=False).view("<u4").reshape(len(seeds), -1, 2)
        self._words = words[:, :, ::-1].reshape(len(seeds), -1)
        self._next = np.zeros(len(seeds), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._next)

    def uniform(
        self, low: float = 0.0, high: float = 1.0, rows: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the next ``torch.empty(1).uniform_(low, high)`` of each image, float32 [B].

        Args:
            low: lower end, a float32.
            high: upper end, a float32.
            rows: images that draw, bool [B]; the values of the others are meaningless. ``None``:
                all.
        """
        unit = (self._take(rows) & 0xFFFFFF) * 2.0**-24
        spread = np.float64(np.float32(high) - np.float32(low))
        return np.asarray((unit * spread + np.float64(np.float32(low))).astype(np.float32))

    def below(self, limit: int | np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the next ``torch.randint(limit, ())`` of each image, int64 [B].

        Args:
            limit: number of values, at least 1, one or for each image [B].
            rows: as for ``uniform``.
        """
        return np.asarray(self._take(rows) % np.maximum(limit, 1))

    def permutation(self, n: int, rows: np.ndarray | None = None) -> np.ndarray:
        """Return the next ``torch.randperm(n)`` of each image, int64 [B, n]."""
        order = np.tile(np.arange(n), (len(self._next), 1))
        each = np.arange(len(order))
        for i in range(n - 1):
            other = i + self.below(n - i, rows)
            order[each, i], order[each, other] = order[each, other], order[each, i].copy()
        return order

    def _take(self, rows: np.ndarray | None) -> np.ndarray:
        last = self._words.shape[1] - 1
        words = self._words[np.arange(len(self._next)), np.minimum(self._next, last)]
        self._next += 1 if rows is None else rows
        return words.astype(np.int64)
