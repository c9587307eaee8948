from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import field_validator

from ltbench.config.schema import Config
from ltbench.remote.address import without_credentials

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DatasetInfo:
    """Facts about the training data that methods may use.

    Args:
        name: registered name of the data set.
        class_counts: training images of each class, in label order [C].
        class_names: name of each class [C].
        mean: mean of each channel of pixels in [0, 1], used for normalisation [3].
        std: standard deviation of each channel, used for normalisation [3].
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
    """Images and labels with random access; ``load`` is a pure function of its arguments."""

    labels: np.ndarray  # int64 [N]

    def __len__(self) -> int:
        """Return the number of images N."""
        ...

    def load(
        self, indices: np.ndarray, *, key: int | None, positions: np.ndarray, views: int = 1
    ) -> tuple[Tensor, ...]:
        """Return images for ``finish``, one tensor [B, 3, H, W] of float or uint8 per view.

        Args:
            indices: indices of the images, int64 [B].
            key: seed of the augmentation; ``None`` for the evaluation transform.
            positions: position of each image in the epoch's order, int64 [B]; augmentation depends
                on (key, position, view) only, not on the number of ranks or workers.
            views: number of augmented views of each image.
        """
        ...

    def finish(
        self, views: tuple[Tensor, ...], *, key: int | None, positions: np.ndarray
    ) -> tuple[Tensor, ...]:
        """Complete the transforms of a whole batch on the device.

        ``load`` runs in loader processes and may return bytes; ``finish`` runs in the training
        process after the transfer to the device and returns normalised float images.

        Args:
            views: output of ``load``, on any device.
            key: as given to ``load``.
            positions: as given to ``load``.
        """
        ...

    def fingerprint(self) -> str:
        """Return the SHA-256 of the content used in training or evaluation."""
        ...

    @property
    def in_memory(self) -> bool:
        """True if ``load`` is cheap enough to run in the training process."""
        ...


@dataclass(frozen=True)
class Data:
    """Loaded data set: training split, optional validation split, balanced test split."""

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
        """Return the bytes of images, uint8 [n] each; valid until the next call.

        Raises:
            UserError: an image cannot be read, or its bytes differ from the packed ones.
        """
        ...

    def name(self, index: int) -> str:
        """Return the name of an image in messages."""
        ...

    def fingerprint(self, labels: np.ndarray) -> str:
        """Return the SHA-256 of labels and images in order; see ``ImageSplit``."""
        ...


class DatasetConfig(Config):
    """Options of a data set, which ``load`` reads."""

    @field_validator("root", mode="before", check_fields=False)
    @classmethod
    def _without_credentials(cls, root: object) -> object:
        return without_credentials(root) if isinstance(root, str) else root

    def ready(self) -> None:
        """Check quickly that there are data to load, without importing torch.

        Raises:
            UserError: the root is missing or empty.
        """

    def named_classes(self) -> tuple[str, ...]:
        """Return the name of each class [C].

        Raises:
            UserError: the root is missing or empty, or its content does not match the options.
        """
        return self.load().info.class_names

    def load(self) -> Data:
        """Load the data set.

        Raises:
            UserError: the root is missing or empty, or its content does not match the options.
        """
        raise NotImplementedError


def place_options(dataset: Any) -> set[str]:
    """Return the options of a data set that say where it lies, not what it is.

    Args:
        dataset: class of the options, or a part with a ``Config``.
    """
    fields = getattr(dataset, "Config", dataset).model_fields
    extra = {name: info.json_schema_extra for name, info in fields.items()}
    return {n for n, e in extra.items() if isinstance(e, dict) and e.get("digest") is False}
