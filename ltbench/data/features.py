"""Stored features of images, in the place of the images themselves."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


class FeatureSplit:
    """Features of a split's images; implements ``ltbench.data.base.Split``.

    Args:
        features: features in the order of the split [N, D].
        labels: class of each image, int64 [N].
    """

    in_memory = True

    def __init__(self, features: Tensor, labels: np.ndarray) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.labels)

    def load(
        self, indices: np.ndarray, *, key: int | None, positions: np.ndarray, views: int = 1
    ) -> tuple[Tensor, ...]:
        """Return the features of some images [B, D, 1, 1], the same in every view.

        Args:
            indices: indices of the images, int64 [B].
            key: unused.
            positions: unused.
            views: number of views of each image.
        """
        rows = self.features[torch.from_numpy(indices)]
        return (rows[:, :, None, None],) * views

    def finish(
        self, views: tuple[Tensor, ...], *, key: int | None, positions: np.ndarray
    ) -> tuple[Tensor, ...]:
        """Return the output of ``load`` unchanged."""
        return views

    def fingerprint(self) -> str:
        """Return the SHA-256 of labels and features."""
        digest = hashlib.sha256(self.labels.astype("<i8").tobytes())
        digest.update(self.features.float().contiguous().numpy().tobytes())
        return digest.hexdigest()
