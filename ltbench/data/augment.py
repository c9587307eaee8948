"""Flips, colour jitter and normalisation of whole batches, on any device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ltbench.data.pixels import CONTRAST, SATURATION, blend, number, to_planes
from ltbench.seeding import keyed_uniform

STRENGTH = 0.4  # of the colour jitter: factors are 1 +- STRENGTH
_ORDERS = np.array(list(itertools.permutations(range(3))))
_SLOTS = 8  # random numbers reserved per image
_FLIP, _ORDER, _FACTORS = 0, 1, slice(2, 5)
_AT_ONCE = {"cpu": 2**19}  # values processed at once, so that they fit in cache
_AT_ONCE_ELSEWHERE = 2**25


@dataclass(frozen=True)
class Draws:
    """Random augmentation parameters of a batch.

    Args:
        mirrored: images to flip horizontally, bool [B].
        factors: factors of brightness, contrast and saturation, float64 [B, 3].
        order: order of the three, int64 [B, 3].
    """

    mirrored: np.ndarray
    factors: np.ndarray
    order: np.ndarray


def draw(key: int, positions: np.ndarray) -> Draws:
    """Return random augmentation parameters, a function of (key, position) only.

    Args:
        key: seed of a view.
        positions: position of each image in the epoch's order, int64 [B].
    """
    at = np.asarray(positions, dtype=np.int64)[:, None] * _SLOTS + np.arange(_SLOTS)
    uniform = keyed_uniform(key, at)
    return Draws(
        mirrored=uniform[:, _FLIP] < 0.5,
        factors=1 + STRENGTH * (2 * uniform[:, _FACTORS] - 1),
        order=_ORDERS[(uniform[:, _ORDER] * len(_ORDERS)).astype(np.int64)],
    )


def finish(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    draws: Draws | None = None,
    *,
    colours: bool = False,
) -> Tensor:
    """Return normalised images, optionally flipped and with colour jitter.

    The result for an image does not depend on the rest of the batch.

    Args:
        images: uint8 [B, 3, H, W].
        mean: mean of each channel of pixels in [0, 1] [3].
        std: standard deviation of each channel [3].
        draws: augmentation parameters; ``None`` for no augmentation.
        colours: whether to apply colour jitter.

    Returns:
        float32 [B, 3, H, W] in channels_last.
    """
    out = torch.empty(
        images.shape, device=images.device, memory_format=torch.channels_last, dtype=torch.float32
    )
    scale = _scale(tuple(mean), tuple(std), tuple(images.shape[2:]), images.device)
    table = None if draws is None else _table(draws, images.device)
    limit = _AT_ONCE.get(images.device.type, _AT_ONCE_ELSEWHERE)
    step = max(1, limit // max(1, images[:1].numel()))
    for start in range(0, len(images), step):
        rows = slice(start, start + step)
        part = images[rows]
        if table is not None:
            part = mirror(part, table[rows, 0])
        if table is not None and colours:
            part = jitter(part, table[rows, 1:])
        normalise(part, *scale, out[rows])
    return out


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Return images, some of them flipped horizontally.

    Args:
        images: images [B, 3, H, W].
        mirrored: 1 for images to flip, otherwise 0, float32 [B].
    """
    pixels = images.permute(0, 2, 3, 1)
    if images.device.type != "cpu":
        chosen = torch.where(mirrored[:, None, None, None] == 1, pixels.flip(2), pixels)
        return chosen.permute(0, 3, 1, 2)
    rows = torch.arange(len(images)) + len(images) * mirrored.to(torch.int64)
    both = torch.cat([pixels, pixels.flip(2)]).flatten(1)  # copying whole rows is fast
    return both.index_select(0, rows).view(pixels.shape).permute(0, 3, 1, 2)


def jitter(images: Tensor, table: Tensor) -> Tensor:
    """Return images with jittered brightness, contrast and saturation, applied in order.

    The results equal those of torchvision's functions for uint8 images exactly: each step
    truncates to integers.

    Args:
        images: uint8 [B, 3, H, W].
        table: parameters of ``blend`` in each of the three steps, float32 [B, 12].

    Returns:
        Integers from 0 to 255 as float32 [B, 3, H, W], contiguous.
    """
    planes = to_planes(images.permute(0, 2, 3, 1))
    for given in torch.split(table[:, :, None, None], 4, 1):
        planes = blend(planes, *given[:, :, None].unbind(1))
    return planes


def normalise(images: Tensor, whole: Tensor, mean: Tensor, std: Tensor, out: Tensor) -> None:
    """Scale images to [0, 1] and normalise them, in three exactly rounded steps.

    Args:
        images: integers from 0 to 255 [B, 3, H, W].
        whole: 255, float32 [1].
        mean: mean, float32, broadcast to the images.
        std: standard deviation, float32, broadcast to the images.
        out: output, float32 [B, 3, H, W].
    """
    out.copy_(images)
    out.div_(whole).sub_(mean).div_(std)


@lru_cache(maxsize=16)
def _scale(
    mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return 255, mean and deviation; images, because broadcasting three values is slow."""
    planes = [
        torch.tensor(values, dtype=torch.float32).expand(1, *size, 3).contiguous().to(device)
        for values in (mean, std)
    ]
    return number(255, device), planes[0].permute(0, 3, 1, 2), planes[1].permute(0, 3, 1, 2)


def _table(draws: Draws, device: torch.device) -> Tensor:
    """Return which images to flip and parameters of three blends, float32 [B, 13].

    They go to a device as one block, which the host does not wait for.
    """
    factors = np.take_along_axis(draws.factors, draws.order, axis=1)
    kinds = [draws.order == kind for kind in (CONTRAST, SATURATION)]
    steps = np.stack([factors, 1.0 - factors, *kinds], axis=2).reshape(len(factors), 12)
    table = np.hstack([draws.mirrored[:, None], steps]).astype(np.float32)
    block = torch.from_numpy(table)
    if device.type == "cuda":
        block = block.pin_memory()
    return block.to(device, non_blocking=True)
