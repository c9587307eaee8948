"""Small data sets held in memory as bytes, augmented a batch at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from ltbench.errors import UserError
from ltbench.seeding import derive, keyed_bits, keyed_uniform

Augment = Literal["none", "standard", "strong", "sim"]
CUTOUT = 16  # side of the square that the strong augmentation blanks
_SLOTS = 8  # random numbers reserved for one view of one image
_ROW, _COLUMN, _FLIP, _POLICY, _HOLE_ROW, _HOLE_COLUMN = range(6)


class MemorySplit:
    """Images of one size as bytes; implements ``ltbench.data.base.Split``.

    The transforms are torchvision's, for a whole batch at once: crop from a black border of
    ``pad`` pixels, horizontal flip, for ``"strong"`` AutoAugment and Cutout, scale to [0, 1],
    normalise. ``"sim"`` is what contrastive learning does to small images: a crop of 0.2 to 1 of
    the area, resized, flip, colour jitter (0.4, 0.4, 0.4, hue 0.1) with probability 0.8, grey
    with probability 0.2. The random numbers of an image depend on (key, position, view) only, so
    cutting the data into other batches gives the same pixels, bit by bit.

    Reference:
        Cubuk et al., AutoAugment: Learning Augmentation Policies from Data, CVPR 2019,
        arXiv:1805.09501, CIFAR-10 policy; DeVries and Taylor, Improved Regularization of
        Convolutional Neural Networks with Cutout, 2017, arXiv:1708.04552; Chen et al., A Simple
        Framework for Contrastive Learning of Visual Representations, ICML 2020,
        arXiv:2002.05709 (``"sim"``, with the strengths of Cui et al., Parametric Contrastive
        Learning, ICCV 2021, arXiv:2107.12028).

    Departures:
        AutoAugment is torchvision's, on tensors; the long-tail codes use a PIL version whose
        interpolation and fill colour (grey) differ.

    Args:
        images: uint8 [N, H, W, 3].
        labels: class of each image [N].
        mean: mean per channel of pixels in [0, 1] [3].
        std: standard deviation per channel [3].
        augment: ``"none"``, ``"standard"`` (crop and flip), ``"strong"`` or ``"sim"``.
        pad: black border in pixels that a crop may reach into.
        flip: whether mirrored images are of the same class.
        image_size: upsample to this side first, bilinearly; ``None`` keeps the size.
        augment_views: ``augment`` of the second, third, ... view; the last one goes on. Empty:
            all views are like the first.

    Raises:
        UserError: images or labels of another type or shape.
    """

    def __init__(
        self,
        images: np.ndarray | Tensor,
        labels: np.ndarray | Tensor | Sequence[int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Augment = "standard",
        pad: int = 4,
        flip: bool = True,
        image_size: int | None = None,
        augment_views: Sequence[Augment] = (),
    ) -> None:
        pixels = np.asarray(images)
        self.labels = np.asarray(labels).astype(np.int64)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            raise UserError(
                f"images in memory must be uint8 [N, H, W, 3], found {pixels.dtype} "
                f"{list(pixels.shape)}; convert them first"
            )
        if self.labels.shape != pixels.shape[:1]:
            raise UserError(
                f"images in memory need one label each: found {len(pixels)} images and labels of "
                f"shape {list(self.labels.shape)}"
            )
        if image_size is not None:
            pixels = upsample(pixels, image_size)
        self.augment = augment
        self.augment_views = tuple(augment_views)
        self.flip = flip
        self.pad = 0 if {augment, *augment_views} <= {"none", "sim"} else pad
        border = (self.pad, self.pad)
        self._padded = np.pad(pixels, ((0, 0), border, border, (0, 0)))
        self._size = pixels.shape[1], pixels.shape[2]
        # Whole planes, because broadcasting over three innermost values is slow.
        self._mean = torch.tensor(mean, dtype=torch.float32).expand(*self._size, 3).contiguous()
        self._std = torch.tensor(std, dtype=torch.float32).expand(*self._size, 3).contiguous()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        """True: ``load`` is cheap enough to run in the training process."""
        return True

    @property
    def images(self) -> np.ndarray:
        """The images as they are before augmentation, uint8 [N, H, W, 3]."""
        height, width = self._size
        return self._padded[:, self.pad : self.pad + height, self.pad : self.pad + width]

    def load(
        self, indices: np.ndarray, *, key: int | None, positions: np.ndarray, views: int = 1
    ) -> tuple[Tensor, ...]:
        """Return normalised images, one float tensor [B, 3, H, W] per view; see ``Split.load``."""
        keys = [None if key is None else derive(key, "view", v) for v in range(views)]
        return tuple(
            self._normalise(self.load_bytes(indices, key=k, positions=positions, view=v))
            for v, k in enumerate(keys)
        )

    def finish(
        self, views: tuple[Tensor, ...], *, key: int | None, positions: np.ndarray
    ) -> tuple[Tensor, ...]:
        """Return what ``load`` returned, which is finished."""
        return views

    def load_bytes(
        self, indices: np.ndarray, *, key: int | None, positions: np.ndarray, view: int = 0
    ) -> np.ndarray:
        """Return one augmented view before normalisation, uint8 [B, H, W, 3].

        Args:
            indices: which images, int64 [B].
            key: seed of this view's augmentation; ``None`` for none.
            positions: place of each image in the epoch's order, int64 [B].
            view: which view's pipeline is used, from 0.
        """
        augment = (self.augment, *self.augment_views)[min(view, len(self.augment_views))]
        at = np.asarray(positions, dtype=np.int64) * _SLOTS
        if key is None or augment in ("none", "sim"):
            middle = np.full(len(indices), self.pad)
            batch = self._crop(indices, middle, middle)
            if key is not None and augment == "sim":
                _each(_sim(*self._size, self.flip), batch, keyed_bits(key, at + _POLICY))
            return batch
        top = (keyed_uniform(key, at + _ROW) * (2 * self.pad + 1)).astype(np.int64)
        left = (keyed_uniform(key, at + _COLUMN) * (2 * self.pad + 1)).astype(np.int64)
        batch = self._crop(indices, top, left)
        if self.flip:
            mirrored = keyed_uniform(key, at + _FLIP) < 0.5
            whole = batch.view("V3")[..., 0]  # a pixel is one item: reversing them is fast
            whole[mirrored] = whole[mirrored][:, :, ::-1]
        if augment == "strong":
            _each(_policy(), batch, keyed_bits(key, at + _POLICY))
            height, width = self._size
            _cutout(
                batch,
                (keyed_uniform(key, at + _HOLE_ROW) * height).astype(np.int64),
                (keyed_uniform(key, at + _HOLE_COLUMN) * width).astype(np.int64),
            )
        return batch

    def fingerprint(self) -> str:
        """Return a SHA-256 over shape, pixels and labels."""
        digest = hashlib.sha256(repr((len(self), *self._size)).encode())
        for image in self.images:
            digest.update(image.tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def _crop(self, indices: np.ndarray, top: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Cut [B, H, W, 3] out of the padded images, a row of pixels at a time."""
        height, width = self._size
        n, tall, wide, _ = self._padded.shape
        # Item i is the row of `width` pixels that starts at pixel i of the whole store.
        starts = n * tall * wide - width + 1
        rows: np.ndarray = np.ndarray(
            (starts,), dtype=f"V{3 * width}", buffer=self._padded.data, strides=(3,)
        )
        first = (np.asarray(indices, dtype=np.int64) * tall + top) * wide + left
        taken = rows[first[:, None] + np.arange(height) * wide]
        batch: np.ndarray = taken.view(np.uint8).reshape(len(first), height, width, 3)
        return batch

    def _normalise(self, batch: np.ndarray) -> Tensor:
        # Three exactly rounded steps, so that neither batch size nor vector width matters.
        pixels = torch.from_numpy(batch).to(torch.float32).div_(255)
        return pixels.sub_(self._mean).div_(self._std).permute(0, 3, 1, 2)


def upsample(images: np.ndarray, size: int) -> np.ndarray:
    """Enlarge square images bilinearly, with pixel centres aligned as in torch's ``interpolate``.

    Computed in double precision; for factors that are powers of two the result is exact and the
    same on every machine.

    Args:
        images: uint8 [N, S, S, 3].
        size: new side, at least S.

    Returns:
        uint8 [N, size, size, 3], rounded half up.

    Raises:
        UserError: the images are not square or larger than ``size``.
    """
    height, width = images.shape[1:3]
    if height != width or size < height:
        raise UserError(
            f"image_size={size} must be at least the images' side; found images of {height}x{width}"
        )
    centre = np.clip((np.arange(size) + 0.5) * height / size - 0.5, 0, height - 1)
    low = np.minimum(np.floor(centre).astype(np.int64), max(height - 2, 0))
    matrix = np.zeros((size, height))
    matrix[np.arange(size), low] = 1 - (centre - low)
    matrix[np.arange(size), np.minimum(low + 1, height - 1)] += centre - low
    enlarged = np.einsum("yi,nijc,xj->nyxc", matrix, images, matrix, optimize=True)
    result: np.ndarray = np.floor(enlarged + 0.5).astype(np.uint8)
    return result


@lru_cache(maxsize=1)
def _policy() -> v2.AutoAugment:
    return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)


@lru_cache(maxsize=8)
def _sim(height: int, width: int, flip: bool) -> v2.Compose:
    mirror = [v2.RandomHorizontalFlip()] if flip else []
    return v2.Compose(
        [
            v2.RandomResizedCrop((height, width), scale=(0.2, 1.0)),
            *mirror,
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
        ]
    )


def _each(pipeline: v2.Transform | v2.Compose, batch: np.ndarray, seeds: np.ndarray) -> None:
    """Apply a pipeline to each image in place, each with its own seed."""
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global CPU generator
        for image, seed in zip(batch, seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed >> 1)
            changed = pipeline(torch.from_numpy(image).permute(2, 0, 1))
            image[:] = changed.permute(1, 2, 0).numpy()


def _cutout(batch: np.ndarray, row: np.ndarray, column: np.ndarray) -> None:
    """Blank in place a square centred at the given pixels, clipped at the border."""
    y, x = np.arange(batch.shape[1]), np.arange(batch.shape[2])
    tall = (y >= row[:, None] - CUTOUT // 2) & (y < row[:, None] + CUTOUT // 2)
    wide = (x >= column[:, None] - CUTOUT // 2) & (x < column[:, None] + CUTOUT // 2)
    batch[tall[:, :, None] & wide[:, None, :]] = 0
