"""Flips, colour jitter and normalisation of whole batches, on any device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltbench.seeding import keyed_uniform

STRENGTH = 0.4  # of the colour jitter: factors are 1 +- STRENGTH
BRIGHTNESS, CONTRAST, SATURATION = range(3)
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
    planes = _plane(mean, out), _plane(std, out)
    limit = _AT_ONCE.get(images.device.type, _AT_ONCE_ELSEWHERE)
    step = max(1, limit // max(1, images[:1].numel()))
    for start in range(0, len(images), step):
        rows = slice(start, start + step)
        part = images[rows]
        if draws is not None:
            part = mirror(part, draws.mirrored[rows])
        if draws is not None and colours:
            part = jitter(part, draws.factors[rows], draws.order[rows])
        normalise(part, *planes, out[rows])
    return out


def mirror(images: Tensor, mirrored: np.ndarray) -> Tensor:
    """Return images, some of them flipped horizontally.

    Args:
        images: images [B, 3, H, W].
        mirrored: images to flip, bool [B].
    """
    rows = np.arange(len(images)) + len(images) * np.asarray(mirrored)
    pixels = images.permute(0, 2, 3, 1)
    both = torch.cat([pixels, pixels.flip(2)]).flatten(1)  # copying whole rows is fast
    chosen = both.index_select(0, torch.from_numpy(rows).to(images.device))
    return chosen.view(pixels.shape).permute(0, 3, 1, 2)


def jitter(images: Tensor, factors: np.ndarray, order: np.ndarray) -> Tensor:
    """Return images with jittered brightness, contrast and saturation, applied in order.

    The results equal those of torchvision's functions for uint8 images exactly: each step
    truncates to integers.

    Args:
        images: uint8 [B, 3, H, W].
        factors: factors of brightness, contrast and saturation, float64 [B, 3].
        order: order of the three, int64 [B, 3].

    Returns:
        Integers from 0 to 255 as float32 [B, 3, H, W], contiguous.
    """
    # Each step blends the image with black, its mean grey level, or its greyscale version.
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    ratios = np.take_along_axis(factors, order, axis=1)
    share = _column(ratios, images.device)
    rest = _column(1.0 - ratios, images.device)
    kind = torch.from_numpy(order).to(images.device)[:, :, None, None, None]
    for step in range(order.shape[1]):
        grey = _grey(pixels)
        # Sums of integers are exact in double precision, in any order.
        total = grey.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64)
        mean = (total / grey[0].numel()).to(torch.float32)
        constant = torch.where(kind[:, step] == CONTRAST, mean, 0.0)
        other = torch.where(kind[:, step] == SATURATION, grey, constant)
        pixels.mul_(share[:, step])
        torch.addcmul(pixels, other, rest[:, step], out=pixels)
        pixels.clamp_(0, 255).floor_()
    return pixels


def normalise(images: Tensor, mean: Tensor, std: Tensor, out: Tensor) -> None:
    """Scale images to [0, 1] and normalise them, in three exactly rounded steps.

    Args:
        images: integers from 0 to 255 [B, 3, H, W].
        mean: mean, float32, broadcast to the images.
        std: standard deviation, float32, broadcast to the images.
        out: output, float32 [B, 3, H, W].
    """
    out.copy_(images)
    # 255 as a tensor: for a Python number some devices multiply by the rounded reciprocal.
    out.div_(out.new_full((1,), 255)).sub_(mean).div_(std)


def _plane(channels: Sequence[float], images: Tensor) -> Tensor:
    """Return per-channel constants as an image, because broadcasting three values is slow."""
    return torch.empty_like(images[:1]).copy_(images.new_tensor(channels)[:, None, None])


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def _column(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(torch.float32).to(device)[:, :, None, None, None]
