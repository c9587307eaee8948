"""Images that lie in files: reading, augmenting and fingerprinting them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from ltbench.data.base import DatasetConfig
from ltbench.data.longtail import class_profile, subsample
from ltbench.data.transforms import (
    Augment,
    Channels,
    Transform,
    eval_transform,
    statistics,
    train_transform,
)
from ltbench.errors import UserError
from ltbench.seeding import derive, keyed_bits

CONTENT_LIMIT = 2 * 2**30  # bytes; larger splits are fingerprinted by names and sizes


class FileSplit:
    """A split whose images are read from files when they are asked for.

    Orientation tags are ignored, as everywhere in the field's data loaders.

    Args:
        paths: one path per image, relative to ``root`` [N].
        labels: class of each image, int64 [N].
        root: folder of the images.
        train_transform: PIL image to tensor [3, H, W], drawing from torch's CPU generator.
        eval_transform: PIL image to tensor [3, H, W], without randomness.
        view_transforms: ``train_transform`` of the second, third, ... view; the last one goes
            on. Empty: all views are like the first.
    """

    in_memory = False

    def __init__(
        self,
        paths: Sequence[str],
        labels: np.ndarray,
        root: str | Path,
        train_transform: Transform,
        eval_transform: Transform,
        view_transforms: Sequence[Transform] = (),
    ) -> None:
        self.labels = np.asarray(labels, dtype=np.int64)
        self.root = str(root)
        self._paths = np.array([os.fsencode(path) for path in paths])  # one block, shared on fork
        self._train_transform = train_transform
        self._eval_transform = eval_transform
        self._view_transforms = (train_transform, *view_transforms)
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.labels)

    def load(
        self, indices: np.ndarray, *, key: int | None, positions: np.ndarray, views: int = 1
    ) -> tuple[Tensor, ...]:
        """Return normalised float images, one tensor [B, 3, H, W] per view.

        Args:
            indices: which images, int64 [B].
            key: seed of the augmentation; ``None`` gives the evaluation transform.
            positions: place of each image in the epoch's order, int64 [B].
            views: how many augmented views of each image.

        Raises:
            UserError: an image cannot be read; the message names the file.
        """
        if key is None:
            images = [self._eval_transform(self._read(index)) for index in indices]
            return (torch.stack(images),) * views
        augmented: list[list[Tensor]] = [[] for _ in range(views)]
        last = len(self._view_transforms) - 1
        transforms = [self._view_transforms[min(view, last)] for view in range(views)]
        seeds = [keyed_bits(derive(key, "view", view), positions) >> 1 for view in range(views)]
        with torch.random.fork_rng(devices=[]):
            for row, index in enumerate(indices):
                image = self._read(index)
                for view in range(views):
                    torch.default_generator.manual_seed(int(seeds[view][row]))  # CPU only
                    augmented[view].append(transforms[view](image))
        return tuple(torch.stack(view) for view in augmented)

    def fingerprint(self) -> str:
        """Return ``"content:"`` or ``"listing:"`` and a SHA-256 over the split, in its order.

        Up to 2 GiB of files the hash covers the label and all bytes of each image, above that the
        label, size and name of each file, which find a partial or re-encoded copy but not files
        altered at equal length. Folders do not count: public copies differ in path prefixes.

        Raises:
            UserError: a file is missing or empty.
        """
        if self._fingerprint is None:
            self._fingerprint = self._hash()
        return self._fingerprint

    def _read(self, index: int) -> Image.Image:
        return read_image(_join(self.root, self._paths[index]))

    def _hash(self) -> str:
        names: list[bytes] = self._paths.tolist()  # a list may name one file many times
        facts = {name: _size(_join(self.root, name)) for name in set(names)}
        content = sum(facts[name] for name in names) <= CONTENT_LIMIT
        parts = {
            name: _sha256(_join(self.root, name))
            if content
            else f"{size} {os.fsdecode(name).rpartition('/')[2]}"
            for name, size in facts.items()
        }
        total = hashlib.sha256()
        for name, label in zip(names, self.labels.tolist(), strict=True):
            total.update(f"{label} {parts[name]}\n".encode("utf-8", "surrogateescape"))
        return f"{'content' if content else 'listing'}:{total.hexdigest()}"


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


def _sha256(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read image `{path}`: {error.strerror}") from error


def read_image(path: str) -> Image.Image:
    """Return an image file as RGB, whatever its mode: grey, palette, CMYK, with or without alpha.

    Raises:
        UserError: the file is missing, cut, not an image, or has more than 16 bits a channel.
    """
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode.startswith("I;16"):
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode not in ("I", "F"):
                through = "RGBA" if "transparency" in image.info else image.mode
                return image.convert(through).convert("RGB")
    except Exception as error:  # decoders raise anything, from KeyError to struct.error
        reason = f"{error}".split("\n")[0] or type(error).__name__
        raise UserError(
            f"cannot read image `{path}`: {reason}; replace it or remove it from the data set"
        ) from error
    raise UserError(f"image `{path}` has 32 bits a channel; convert it to 8 bits")


class ImageOptions(DatasetConfig):
    """Options that every data set of image files has."""

    root: str | None = Field(
        None, description="folder of the images", json_schema_extra={"digest": False}
    )
    image_size: int = Field(64, ge=8, le=2048, description="side of the network's input in pixels")
    augment: Augment = Field("imagenet", description="name of the training pipeline")
    augment_views: tuple[Augment, ...] = Field(
        (),
        description="pipelines of the second, third, ... view of methods that have several, "
        "normalised as in augment; the last goes on, none: all like the first",
    )

    @property
    def statistics(self) -> tuple[Channels, Channels]:
        """Mean and standard deviation per channel that images are normalised with."""
        return statistics(self.augment)

    def files(self, paths: Sequence[str], labels: np.ndarray, root: Path) -> FileSplit:
        """Return a split with this data set's transforms."""
        return FileSplit(
            paths,
            labels,
            root,
            train_transform(self.augment, self.image_size),
            eval_transform(self.augment, self.image_size),
            [train_transform(view, self.image_size, self.augment) for view in self.augment_views],
        )


class LongTail(DatasetConfig):
    """Options that turn a data set's training part into a long tail."""

    imbalance_ratio: float | None = Field(
        None, ge=1, description="thin the training part to this largest/smallest class ratio"
    )
    profile: Literal["exp", "step"] = Field("exp", description="shape of the long tail")
    split_seed: int = Field(0, ge=0, description="seed of every draw of images from a class")

    def thinned(self) -> dict[str, str]:
        """Return what the record says about the subsampling, nothing if there is none."""
        if self.imbalance_ratio is None:
            return {}
        return {"subset": f"{self.profile} {self.imbalance_ratio:g} seed {self.split_seed}"}

    def thin(self, labels: np.ndarray) -> np.ndarray:
        """Return the sorted indices to keep [M]: all, or a long tail over classes in label order.

        The largest profile is taken that every class can fill, so that the ratio is exact up to
        rounding even where the classes differ in size.

        Raises:
            UserError: the smallest class would be left without an image.
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
