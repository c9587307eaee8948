from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ltbench.schema import Config

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DatasetInfo:
    """What a method may know about the training data.

    Args:
        name: registered name of the data set.
        class_counts: training images of each class, in the data set's own label order [C].
        class_names: one name per class [C].
        mean: what was subtracted from each channel of pixels in [0, 1] [3].
        std: what each channel was divided by [3].
    """

    name: str
    class_counts: tuple[int, ...]
    class_names: tuple[str, ...]
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_counts)


class Split(Protocol):
    """Images and labels that can be read in any order; a pure function of its arguments."""

    labels: np.ndarray  # int64 [N]

    def __len__(self) -> int:
        """Return the number of images N."""
        ...

    def load(
        self, indices: np.ndarray, *, key: int | None, positions: np.ndarray, views: int = 1
    ) -> tuple[Tensor, ...]:
        """Return images for ``finish``, one tensor [B, 3, H, W] of float or uint8 per view.

        Args:
            indices: which images, int64 [B].
            key: seed of the augmentation; ``None`` gives the evaluation transform.
            positions: place of each image in the epoch's order, int64 [B]; augmentation depends
                on (key, position, view) only, so any number of ranks or
                workers sees the same pixels.
            views: how many augmented views of each image.
        """
        ...

    def finish(
        self, views: tuple[Tensor, ...], *, key: int | None, positions: np.ndarray
    ) -> tuple[Tensor, ...]:
        """Do on the device what ``load`` leaves to it, for a whole batch at once.

        ``load`` runs in loader processes and may return bytes; this runs in the training process
        after they were moved, and returns normalised float images.

        Args:
            views: what ``load`` returned, on any device.
            key: as given to ``load``.
            positions: as given to ``load``.
        """
        ...

    def fingerprint(self) -> str:
        """Return a SHA-256 over the content that training or evaluation reads."""
        ...

    @property
    def in_memory(self) -> bool:
        """Whether ``load`` is cheap enough to run in the training process."""
        ...


@dataclass(frozen=True)
class Data:
    """A loaded data set: training split, optional validation split, balanced test split."""

    info: DatasetInfo
    train: Split
    test: Split
    val: Split | None
    manifest: dict[str, str]  # facts for the record: protocol, list hashes, source kind


class Source(Protocol):
    """Image files as bytes, from a folder or from shards."""

    def __len__(self) -> int:
        """Return the number of images N."""
        ...

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return the bytes of some images, uint8 [n] each; they may change at the next call.

        Raises:
            UserError: an image cannot be read, or its bytes are not those that were packed.
        """
        ...

    def name(self, index: int) -> str:
        """Return how messages call an image."""
        ...

    def fingerprint(self, labels: np.ndarray) -> str:
        """Return a SHA-256 over labels and images in their order; see ``ImageSplit``."""
        ...


class DatasetConfig(Config):
    """Options of a data set; ``load`` reads it."""

    def load(self) -> Data:
        """Read the data set.

        Raises:
            UserError: the root is missing or empty, or its content is not what the options need.
        """
        raise NotImplementedError
