"""Images in files, and the options of data sets of image files."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from isal.isal_zlib import crc32 as crc32_of
from pydantic import Field, model_validator

from ltbench.config.schema import ADDED
from ltbench.data.base import DatasetConfig, Source
from ltbench.data.codecs import LENIENT
from ltbench.data.longtail import class_profile, subsample
from ltbench.data.pipelines import (
    BATCHED,
    MINIMALIST,
    Augment,
    Channels,
    Decoder,
    Interpolation,
    Unreadable,
    statistics,
)
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
        empty: accept empty files, which are replaced in training.
    """

    def __init__(self, paths: Sequence[str], root: str | Path, *, empty: bool = False) -> None:
        self.root, self._empty = str(root), empty
        how = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
        self._paths = np.array([path.encode(*how) for path in paths])  # one block, shared on fork
        self._facts: np.ndarray | None = None  # sizes and times at the first look
        self.contents: np.ndarray | None = None  # see ``fingerprint``

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

    def subset(self, rows: np.ndarray) -> FileSource:
        """Return a source of some of these images, int64 [M], in this order."""
        part = copy.copy(self)
        part._paths, part._facts, part.contents = self._paths[rows], None, None
        return part

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
        return self._look()[:, 0]

    def fingerprint(self, labels: np.ndarray) -> str:
        """Return ``content_of`` the files, with checksums up to a total of 2 GiB.

        Above that, names and sizes detect a partial or re-encoded copy, but not modified files of
        equal length. Folders are ignored, since public copies differ in path prefixes. Size and
        checksum of each file stay in ``contents``, int64 [N], if there are checksums.

        Args:
            labels: class of each image, int64 [N].

        Raises:
            UserError: a file is missing or empty.
        """
        self._facts = self._look()
        sizes = self._facts[:, 0]
        if int(sizes.sum()) > format.CONTENT_LIMIT:
            return content_of(self.paths, labels, sizes, None)
        names: list[bytes] = self._paths.tolist()
        known = {name: crc32_of(_read(_join(self.root, name)).data) for name in set(names)}
        crc32 = np.array([known[name] for name in names])
        self.contents = sizes << 32 | crc32
        return content_of(self.paths, labels, sizes, crc32)

    def check_unchanged(self) -> None:
        """Check that sizes and times of the files are those at the time of ``fingerprint``.

        Raises:
            UserError: a file has changed, or is missing.
        """
        if self._facts is None:
            return
        changed = np.flatnonzero((self._look() != self._facts).any(axis=1))
        if len(changed):
            raise UserError(
                f"images that changed while they were in use: {len(changed):,} (first: "
                f"`{self.name(int(changed[0]))}`), so that a record cannot say what they were; put "
                f"the old ones back and run this again, or start a new run with another out="
            )

    def _look(self) -> np.ndarray:
        """Return size in bytes and time of modification in ns of each file, int64 [N, 2]."""
        names: list[bytes] = self._paths.tolist()
        facts = {name: _status(_join(self.root, name), self._empty) for name in set(names)}
        return np.array([facts[name] for name in names], dtype=np.int64).reshape(-1, 2)


def _join(root: str, name: bytes) -> str:
    return os.path.join(root, os.fsdecode(name))  # noqa: PTH118 (Path is slow here)


def _status(path: str, empty: bool) -> tuple[int, int]:
    try:
        status = os.stat(path)  # noqa: PTH116 (Path is slow here)
    except OSError as error:
        raise UserError(f"cannot read image `{path}`: {error.strerror}") from error
    if status.st_size == 0 and not empty:
        raise UserError(f"image `{path}` is empty (0 bytes); copy it again or remove it")
    return status.st_size, status.st_mtime_ns


def _read(path: str) -> np.ndarray:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (Path is slow here)
            return np.frombuffer(bytearray(file.read()), dtype=np.uint8)  # writable, for torch
    except OSError as error:
        raise UserError(f"cannot read image `{path}`: {error.strerror}") from error


class ImageOptions(DatasetConfig):
    """Options of all data sets of image files."""

    lenient: ClassVar[bool] = False  # accept JPEGs with damaged data

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
        description="fast: decode and resize as tensors, and run the pipelines imagenet, "
        "crop, inat, inat_jitter and plain on whole batches; pil: Pillow and torchvision, image "
        "by image; cuda: decode and resize JPEGs on the GPU by nvJPEG, to pixels close to those of "
        "fast, in its whole-batch pipelines only",
    )
    interpolation: Interpolation = Field(
        "bilinear",
        description="interpolation of the resizing; bicubic is that of most pretrained encoders",
        json_schema_extra=ADDED,
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

    @model_validator(mode="after")
    def _batched(self) -> ImageOptions:
        found = [name for name in (self.augment, *self.augment_views) if name in MINIMALIST]
        if found and self.decode == "pil":
            raise ValueError(f"`{found[0]}` runs with decode fast only; leave decode out")
        single = [name for name in (self.augment, *self.augment_views) if name not in BATCHED]
        if single and self.decode == "cuda":
            raise ValueError(
                f"`{single[0]}` augments Pillow images one by one, so it cannot run with decode "
                f"cuda; leave decode out, or choose one of {', '.join(BATCHED)}"
            )
        return self

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
        source = FileSource(paths, root, empty=self.unreadable == "replace")
        return self.split(source, labels)

    def split(self, source: Source, labels: np.ndarray) -> ImageSplit:
        """Return a split of images of any source with the transforms of this data set."""
        from ltbench.data.encoded import EncodedSplit
        from ltbench.data.images import ImageSplit
        from ltbench.data.shards.reader import ShardSource

        kind = EncodedSplit if self.decode == "cuda" else ImageSplit
        packed = source.manifest.dataset if isinstance(source, ShardSource) else ""
        return kind(
            source,
            labels,
            augment=self.augment,
            image_size=self.image_size,
            augment_views=self.augment_views,
            decode="fast" if self.decode == "cuda" else self.decode,
            unreadable=self.unreadable,
            lenient=self.lenient or packed in LENIENT,
            interpolation=self.interpolation,
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
