"""Images in files, and the options of data sets of image files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from isal.isal_zlib import crc32 as crc32_of
from pydantic import Field

from ltbench.data.base import DatasetConfig, Source
from ltbench.data.longtail import class_profile, subsample
from ltbench.data.pipelines import Augment, Channels, Decoder, Unreadable, statistics
from ltbench.data.shards import format
from ltbench.data.shards.format import content_of
from ltbench.errors import UserError
from ltbench.seeding import derive

if TYPE_CHECKING:
    from ltbench.data.images import ImageSplit


class FileSource:
    """Image files below a folder; implements ``ltbench.data.base.Source``.

    Args:
        paths: path of each image, relative to ``root`` [N]; paths may repeat.
        root: folder of the images.
    """

    def __init__(self, paths: Sequence[str], root: str | Path) -> None:
        self.root = str(root)
        self._paths = np.array([os.fsencode(path) for path in paths])  # one block, shared on fork

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self._paths)

    @property
    def paths(self) -> list[str]:
        """Path of each image, relative to ``root`` [N]."""
        return [os.fsdecode(path) for path in self._paths.tolist()]

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return _join(self.root, self._paths[index])

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return the bytes of images, uint8 [n] each.

        Raises:
            UserError: a file cannot be read; the message names it.
        """
        return [_read(self.name(index)) for index in indices.tolist()]

    def sizes(self) -> np.ndarray:
        """Return the size of each file in bytes, int64 [N].

        Raises:
            UserError: a file is missing or empty.
        """
        facts = {name: _size(_join(self.root, name)) for name in set(self._paths.tolist())}
        return np.array([facts[name] for name in self._paths.tolist()], dtype=np.int64)

    def fingerprint(self, labels: np.ndarray) -> str:
        """Return ``content_of`` the files, with checksums up to a total of 2 GiB.

        Above that, names and sizes detect a partial or re-encoded copy, but not modified files of
        equal length. Folders are ignored, since public copies differ in path prefixes.

        Args:
            labels: class of each image, int64 [N].

        Raises:
            UserError: a file is missing or empty.
        """
        sizes = self.sizes()
        if int(sizes.sum()) > format.CONTENT_LIMIT:
            return content_of(self.paths, labels, sizes, None)
        names: list[bytes] = self._paths.tolist()
        known = {name: crc32_of(_read(_join(self.root, name)).data) for name in set(names)}
        return content_of(self.paths, labels, sizes, np.array([known[name] for name in names]))


def _join(root: str, name: bytes) -> str:
    return os.path.join(root, os.fsdecode(name))  # noqa: PTH118 (Path is slow here)


def _size(path: str) -> int:
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        raise UserError(f"cannot read image `{path}`: {error.strerror}") from error
    if size == 0:
        raise UserError(f"image `{path}` is empty (0 bytes); copy it again or remove it")
    return size


def _read(path: str) -> np.ndarray:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (Path is slow here)
            return np.frombuffer(bytearray(file.read()), dtype=np.uint8)  # writable, for torch
    except OSError as error:
        raise UserError(f"cannot read image `{path}`: {error.strerror}") from error


class ImageOptions(DatasetConfig):
    """Options of all data sets of image files."""

    root: str | None = Field(
        None, description="folder of the images", json_schema_extra={"digest": False}
    )
    image_size: int = Field(64, ge=8, le=2048, description="side of the network's input in pixels")
    augment: Augment = Field("imagenet", description="name of the training pipeline")
    augment_views: tuple[Augment, ...] = Field(
        (),
        description="pipelines of the second, third, ... view of methods with several views, "
        "normalised as in augment; the last one repeats; empty: all like the first",
    )
    decode: Decoder = Field(
        "fast",
        description="fast: decode and resize with torchvision, and run the pipelines imagenet, "
        "crop, inat, inat_jitter and plain on whole batches; pil: Pillow and torchvision, image "
        "by image",
    )
    unreadable: Unreadable = Field(
        "raise",
        description="treatment of training images that cannot be decoded: raise an error, or "
        "replace them by the next image of their class",
    )

    stream: bool = Field(
        False,
        description="read training shards sequentially instead of by random access, for shards "
        "too large to store; instance sampling only",
    )

    @property
    def statistics(self) -> tuple[Channels, Channels]:
        """Mean and standard deviation of each channel, for normalisation."""
        return statistics(self.augment)

    def files(self, paths: Sequence[str], labels: np.ndarray, root: Path) -> ImageSplit:
        """Return a split of image files with the transforms of this data set.

        Raises:
            UserError: ``stream`` is set.
        """
        if self.stream:
            raise UserError(
                f"data.stream=true needs data.root=SHARDS, made by `ltbench data prepare`; found "
                f"image files in `{root}`"
            )
        return self.split(FileSource(paths, root), labels)

    def split(self, source: Source, labels: np.ndarray) -> ImageSplit:
        """Return a split of images of any source with the transforms of this data set."""
        from ltbench.data.images import ImageSplit

        return ImageSplit(
            source,
            labels,
            augment=self.augment,
            image_size=self.image_size,
            augment_views=self.augment_views,
            decode=self.decode,
            unreadable=self.unreadable,
        )


class LongTail(DatasetConfig):
    """Options of the long-tailed subsampling of a training set."""

    imbalance_ratio: float | None = Field(
        None, ge=1, description="subsample the training set to this largest/smallest class ratio"
    )
    profile: Literal["exp", "step"] = Field("exp", description="shape of the long tail")
    split_seed: int = Field(0, ge=0, description="seed of the draws of images from classes")

    def thinned(self) -> dict[str, str]:
        """Return the record's description of the subsampling; empty without subsampling."""
        if self.imbalance_ratio is None:
            return {}
        return {"subset": f"{self.profile} {self.imbalance_ratio:g} seed {self.split_seed}"}

    def thin(self, labels: np.ndarray) -> np.ndarray:
        """Return the sorted indices to keep [M]: all, or a long tail over classes in label order.

        The profile is the largest one that every class can fill, so that the ratio is exact up to
        rounding even if the classes differ in size.

        Raises:
            UserError: the smallest class would have no image.
        """
        if self.imbalance_ratio is None:
            return np.arange(len(labels))
        available = np.bincount(labels)
        share = np.array(
            class_profile(10**9, len(available), self.imbalance_ratio, self.profile), dtype=float
        )
        n_max = int(np.min(available * (1e9 / np.maximum(share, 1.0))) + 1e-6)
        counts = class_profile(n_max, len(available), self.imbalance_ratio, self.profile)
        if min(counts) < 1:
            raise UserError(
                f"data.imbalance_ratio={self.imbalance_ratio:g} leaves class "
                f"{int(np.argmin(counts))} without a training image: these data can fill the "
                f"profile with at most {n_max} images in its largest class; lower the ratio"
            )
        kept: np.ndarray = subsample(labels, counts, derive(self.split_seed, "longtail"))
        return kept
