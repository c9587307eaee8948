"""Small data sets held in memory as bytes and augmented batch by batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ltbench.data.autoaugment import apply_policy, cut_out, draw_policy
from ltbench.data.pipelines import MemoryAugment
from ltbench.data.pixels import pixel_fingerprint, rotate, rotations
from ltbench.data.sim_views import apply_sim, draw_sim
from ltbench.data.strengths import operate_on_bytes
from ltbench.data.torch_random import TorchRandom
from ltbench.errors import UserError
from ltbench.seeding import derive, keyed_bits, keyed_uniform

TURN = 15  # largest rotation in degrees, to either side
HOLED = ("cutout", "strong")  # pipelines that end with Cutout
RESIDENT = 2**30  # bytes of padded images that fit on a device; larger sets stay in main memory
_SLOTS = 8  # random numbers reserved for one view of one image
_ROW, _COLUMN, _FLIP, _POLICY, _HOLE_ROW, _HOLE_COLUMN = range(6)


class MemorySplit:
    """Images of one size as bytes; implements ``ltbench.data.base.Split``.

    The transforms are torchvision's, bit for bit, but made for whole batches: crop with a black
    border of ``pad`` pixels, horizontal flip, for ``"rotate"`` a rotation by up to 15 degrees, for
    ``"cutout"`` Cutout, for ``"autoaugment"`` AutoAugment, for ``"strong"`` both, scale to [0, 1],
    normalise. ``"sim"`` is the one of contrastive learning for small images: resized crop of 0.2 to
    1 of the area, flip, colour jitter (0.4, 0.4, 0.4, hue 0.1) with probability 0.8, greyscale with
    probability 0.2, Gaussian blur with probability 0.5; ``"sim_hue"`` has no blur. Random numbers
    depend on (key, position, view) only, so that pixels are bitwise independent of the batch size.
    On an accelerator the loader uses ``resident``, which does all but the drawing there. Operations
    of a strength by class come before Cutout, by Pillow, in the training process; see
    ``ltbench.data.strengths``.

    Reference:
        Cubuk et al., AutoAugment: Learning Augmentation Policies from Data, CVPR 2019,
        arXiv:1805.09501, CIFAR-10 policy; DeVries and Taylor, Improved Regularization of
        Convolutional Neural Networks with Cutout, 2017, arXiv:1708.04552; Chen et al., A Simple
        Framework for Contrastive Learning of Visual Representations, ICML 2020,
        arXiv:2002.05709 (``"sim"``, with the strengths of Cui et al., Parametric Contrastive
        Learning, ICCV 2021, arXiv:2107.12028).

    Departures:
        AutoAugment is torchvision's, on tensors; the long-tail codes use a PIL version with another
        interpolation and fill colour (grey).

    Args:
        images: uint8 [N, H, W, 3].
        labels: class of each image [N].
        mean: mean per channel of pixels in [0, 1] [3].
        std: standard deviation per channel [3].
        augment: ``"none"``, ``"standard"`` (crop and flip), ``"cutout"``, ``"rotate"``,
            ``"autoaugment"``, ``"strong"``, ``"sim"`` or ``"sim_hue"``.
        pad: black border in pixels for random crops.
        flip: whether to flip horizontally.
        image_size: side to which images are first upsampled bilinearly; ``None`` keeps the size.
        augment_views: ``augment`` of the second, third, ... view; the last one repeats. Empty:
            all views are like the first.

    Raises:
        UserError: images or labels have the wrong type or shape.
    """

    def __init__(
        self,
        images: np.ndarray | Tensor,
        labels: np.ndarray | Tensor | Sequence[int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augment: MemoryAugment = "standard",
        pad: int = 4,
        flip: bool = True,
        image_size: int | None = None,
        augment_views: Sequence[MemoryAugment] = (),
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
        self.pad = 0 if {augment, *augment_views} <= {"none", "sim", "sim_hue"} else pad
        border = (self.pad, self.pad)
        self._padded = np.pad(pixels, ((0, 0), border, border, (0, 0)))
        self._size = pixels.shape[1], pixels.shape[2]
        # Whole planes, since broadcasting three innermost values is slow; 255 as a tensor, since
        # for a Python number some devices multiply by the rounded reciprocal.
        planes = [torch.tensor(v, dtype=torch.float32).expand(*self._size, 3) for v in (mean, std)]
        self._scale = torch.full((1,), 255.0), planes[0].contiguous(), planes[1].contiguous()
        self._copies: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        """True: ``load`` is cheap enough to run in the training process."""
        return True

    @property
    def images(self) -> np.ndarray:
        """Images before augmentation, uint8 [N, H, W, 3]."""
        height, width = self._size
        return self._padded[:, self.pad : self.pad + height, self.pad : self.pad + width]

    def load(
        self,
        indices: np.ndarray,
        *,
        key: int | None,
        positions: np.ndarray,
        views: int = 1,
        strengths: np.ndarray | None = None,
    ) -> tuple[Tensor, ...]:
        """Return normalised images, one float tensor [B, 3, H, W] per view; see ``Split.load``."""
        made = (
            self.load_bytes(indices, key=k, positions=positions, view=v, strengths=strengths)
            for v, k in enumerate(_view_keys(key, views))
        )
        return tuple(_normalise(torch.from_numpy(view), self._scale) for view in made)

    def finish(
        self, views: tuple[Tensor, ...], *, key: int | None, positions: np.ndarray
    ) -> tuple[Tensor, ...]:
        """Return the output of ``load`` unchanged."""
        return views

    def load_bytes(
        self,
        indices: np.ndarray,
        *,
        key: int | None,
        positions: np.ndarray,
        view: int = 0,
        strengths: np.ndarray | None = None,
    ) -> np.ndarray:
        """Return one augmented view before normalisation, uint8 [B, H, W, 3].

        Args:
            indices: indices of the images, int64 [B].
            key: seed of the augmentation of this view; ``None`` for no augmentation.
            positions: position of each image in the epoch's order, int64 [B].
            view: index of the view, which selects the pipeline.
            strengths: strength of the operations on each image, int64 [B]; ``None`` is none.
        """
        drawn = self.draw(indices, key=key, positions=positions, view=view)
        index, top, left, mirrored = drawn[:, :4].astype(np.int64, copy=False).T
        batch = self._crop(index, top, left)
        turned = mirrored == 1
        if turned.any():
            whole = batch.view("V3")[..., 0]  # one item per pixel, for a fast flip
            whole[turned] = whole[turned][:, :, ::-1]
        augment, parameters = self.pipeline(key, view), torch.from_numpy(drawn)
        made = _change(augment, torch.from_numpy(batch), parameters)
        if strengths is not None and key is not None:
            operate_on_bytes(made.numpy(), strengths, derive(key, "operations"), positions)
        return _cut_out(augment, made, parameters).numpy()

    def draw(
        self, indices: np.ndarray, *, key: int | None, positions: np.ndarray, view: int = 0
    ) -> np.ndarray:
        """Return the random parameters of a view.

        Args:
            indices: indices of the images, int64 [B].
            key: as for ``load_bytes``.
            positions: as for ``load_bytes``.
            view: as for ``load_bytes``.

        Returns:
            Image, first row and first column in the padded image, 1 if flipped, then those of the
            pipeline: nothing, centre of the hole (``"cutout"``), operations (``"autoaugment"``) and
            centre of the hole (``"strong"``), ``rotations``, or ``draw_sim``. int64 or float64
            [B, 4 or more].
        """
        drawn = np.full((len(indices), 4), self.pad, dtype=np.int64)
        drawn[:, 0], drawn[:, 3] = indices, 0
        augment = self.pipeline(key, view)
        if key is None or augment == "none":
            return drawn
        at = np.asarray(positions, dtype=np.int64) * _SLOTS
        seeds = keyed_bits(key, at + _POLICY) >> np.uint64(1)
        if augment in ("sim", "sim_hue"):
            more = draw_sim(seeds, *self._size, flip=self.flip, blurs=augment == "sim")
            return np.hstack([drawn, more])
        drawn[:, 1] = keyed_uniform(key, at + _ROW) * (2 * self.pad + 1)
        drawn[:, 2] = keyed_uniform(key, at + _COLUMN) * (2 * self.pad + 1)
        if self.flip:
            drawn[:, 3] = keyed_uniform(key, at + _FLIP) < 0.5
        if augment == "rotate":
            degrees = TorchRandom(seeds, 1).uniform(-TURN, TURN)
            return np.hstack([drawn, rotations(degrees, *self._size)])
        if augment == "autoaugment":
            return np.hstack([drawn, draw_policy(seeds)])
        if augment in HOLED:
            slots = np.array([_HOLE_ROW, _HOLE_COLUMN])
            hole = (keyed_uniform(key, at[:, None] + slots) * self._size).astype(np.int64)
            policy = [draw_policy(seeds)] if augment == "strong" else []
            return np.hstack([drawn, *policy, hole])
        return drawn

    def pipeline(self, key: int | None, view: int) -> MemoryAugment:
        """Return the pipeline of a view; ``"none"`` without a key."""
        if key is None:
            return "none"
        return (self.augment, *self.augment_views)[min(view, len(self.augment_views))]

    def subset(self, indices: np.ndarray) -> MemorySplit:
        """Return a split of some of the images, int64 [M], in this order."""
        part = copy.copy(self)
        part.labels, part._padded, part._copies = self.labels[indices], self._padded[indices], {}
        return part

    def resident(self, device: torch.device) -> ResidentSplit:
        """Return a split of the same images that crops and normalises on a device.

        Args:
            device: any device; on the CPU the results are the same, but slower.
        """
        return ResidentSplit(self, device)

    def fingerprint(self) -> str:
        """Return the SHA-256 of shape, pixels and labels."""
        return pixel_fingerprint(self.images, self.labels)

    def _crop(self, indices: np.ndarray, top: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Crop [B, H, W, 3] from the padded images, row by row."""
        height, width = self._size
        n, tall, wide, _ = self._padded.shape
        # Item i is the row of `width` pixels that starts at pixel i of the flattened images.
        starts = n * tall * wide - width + 1
        rows: np.ndarray = np.ndarray(
            (starts,), dtype=f"V{3 * width}", buffer=self._padded.data, strides=(3,)
        )
        first = (np.asarray(indices, dtype=np.int64) * tall + top) * wide + left
        taken = rows[first[:, None] + np.arange(height) * wide]
        batch: np.ndarray = taken.view(np.uint8).reshape(len(first), height, width, 3)
        return batch

    def _copy(self, device: torch.device) -> Tensor:
        """Return all padded images on a device (cached), uint8 [N * tall * wide, 3]."""
        if device not in self._copies:
            self._copies[device] = torch.from_numpy(self._padded).view(-1, 3).to(device)
        return self._copies[device]


class ResidentSplit:
    """Images resident on a device, where whole batches are cropped, flipped and normalised.

    ``load`` draws random parameters without waiting for the device, and ``finish`` applies them.
    All views of sets larger than ``RESIDENT`` bytes are computed by ``load``; ``finish`` then only
    normalises the transferred bytes. Pixels are bitwise those of the split.

    Args:
        split: the images.
        device: device of the images.
    """

    def __init__(self, split: MemorySplit, device: torch.device) -> None:
        self.split, self.device, self.labels = split, device, split.labels
        self._scale = tuple(tensor.to(device) for tensor in split._scale)
        self._rows, self._columns = (torch.arange(n, device=device) for n in split._size)
        self._mirrored = self._columns.flip(0)
        self._fits = split._padded.nbytes <= RESIDENT

    def __len__(self) -> int:
        return len(self.split)

    @property
    def in_memory(self) -> bool:
        """True: ``load`` is cheap enough to run in the training process."""
        return True

    def load(
        self,
        indices: np.ndarray,
        *,
        key: int | None,
        positions: np.ndarray,
        views: int = 1,
        strengths: np.ndarray | None = None,
    ) -> tuple[Tensor, ...]:
        """Return per view the output of ``MemorySplit.draw``, or bytes [B, H, W, 3]."""
        make = self.split.draw
        if strengths is not None:
            make = partial(self.split.load_bytes, strengths=strengths)
        elif not self._fits:
            make = self.split.load_bytes
        return tuple(
            torch.from_numpy(make(indices, key=own, positions=positions, view=view))
            for view, own in enumerate(_view_keys(key, views))
        )

    def finish(
        self, views: tuple[Tensor, ...], *, key: int | None, positions: np.ndarray
    ) -> tuple[Tensor, ...]:
        """Return normalised float32 images [B, 3, H, W] of each view, in channels_last.

        Args:
            views: output of ``load``, on the device.
            key: as given to ``load``.
            positions: unused.
        """
        return tuple(
            _normalise(self._pixels(drawn, key, view), self._scale)
            for view, drawn in enumerate(views)
        )

    def fingerprint(self) -> str:
        """Return the fingerprint of the split."""
        return self.split.fingerprint()

    def _pixels(self, drawn: Tensor, key: int | None, view: int) -> Tensor:
        """Return bytes [B, H, W, 3] made from parameters of ``MemorySplit.draw``."""
        if drawn.dtype == torch.uint8:  # made already
            return drawn
        augment = self.split.pipeline(key, view)
        return _cut_out(augment, _change(augment, self._cut(drawn), drawn), drawn)

    def _cut(self, drawn: Tensor) -> Tensor:
        """Apply crops and flips drawn by ``MemorySplit.draw``; return uint8 [B, H, W, 3]."""
        tall, wide = self.split._padded.shape[1:3]
        index, top, left, mirrored = drawn[:, :4, None].to(torch.int64).unbind(1)
        rows = (index * tall + top + self._rows) * wide + left
        columns = torch.where(mirrored == 1, self._mirrored, self._columns)
        pixels = (rows[:, :, None] + columns[:, None, :]).flatten()
        shape = (len(drawn), *self.split._size, 3)
        return self.split._copy(self.device).index_select(0, pixels).view(shape)


def _view_keys(key: int | None, views: int) -> list[int | None]:
    return [None if key is None else derive(key, "view", view) for view in range(views)]


def _change(augment: MemoryAugment, images: Tensor, drawn: Tensor) -> Tensor:
    """Return cropped images [B, H, W, 3] after the rest of a pipeline, drawn by ``draw``.

    Only holes are not yet cut out.
    """
    more = drawn[:, 4:]
    if augment in ("autoaugment", "strong"):
        return apply_policy(images, more[:, :2])
    if augment == "rotate":
        return rotate(images, more)
    if augment in ("sim", "sim_hue"):
        return apply_sim(images, more, blurs=augment == "sim")
    return images


def _cut_out(augment: MemoryAugment, images: Tensor, drawn: Tensor) -> Tensor:
    """Return images [B, H, W, 3] with their holes, where a pipeline has any."""
    return cut_out(images, drawn[:, -2], drawn[:, -1]) if augment in HOLED else images


def _normalise(pixels: Tensor, scale: tuple[Tensor, ...]) -> Tensor:
    """Normalise bytes [B, H, W, 3] to float32 [B, 3, H, W]."""
    # In three exactly rounded steps, independent of batch size and vector width.
    whole, mean, std = scale
    return pixels.to(torch.float32).div_(whole).sub_(mean).div_(std).permute(0, 3, 1, 2)


def upsample(images: np.ndarray, size: int) -> np.ndarray:
    """Enlarge square images bilinearly, with pixel centres aligned as in torch's ``interpolate``.

    Computed in double precision; for factors that are powers of two, the result is exact and the
    same on all machines.

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
