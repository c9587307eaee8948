"""Mirroring, colours and normalisation of whole batches, on whatever device they lie."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltbench.seeding import keyed_uniform

STRENGTH = 0.4  # of the colour jitter: factors are 1 +- this
BRIGHTNESS, CONTRAST, SATURATION = range(3)
_ORDERS = np.array(list(itertools.permutations(range(3))))
_SLOTS = 8  # random numbers reserved for the colours of one image
_FLIP, _ORDER, _FACTORS = 0, 1, slice(2, 5)
_AT_ONCE = {"cpu": 2**19}  # values worked on together: what a cache holds
_AT_ONCE_ELSEWHERE = 2**25


@dataclass(frozen=True)
class Draws:
    """What is done to each image of a batch.

    Args:
        mirrored: whether left and right are exchanged, bool [B].
        factors: of brightness, contrast and saturation, float64 [B, 3].
        order: which of the three comes first, second and third, int64 [B, 3].
    """

    mirrored: np.ndarray
    factors: np.ndarray
    order: np.ndarray


def draw(key: int, positions: np.ndarray) -> Draws:
    """Return random changes of each image, a function of (key, position) only.

    Args:
        key: seed of a view.
        positions: place of each image in the epoch's order, int64 [B].
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
    """Return normalised images, mirrored and with other colours if asked for.

    What becomes of an image does not depend on the others: the batch may be cut anywhere.

    Args:
        images: uint8 [B, 3, H, W].
        mean: what to subtract from each channel of pixels in [0, 1] [3].
        std: what to divide each channel by [3].
        draws: what is done to each image; ``None`` is nothing.
        colours: whether the colours change.

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
    """Return images, some of them with left and right exchanged.

    Args:
        images: [B, 3, H, W].
        mirrored: which, bool [B].
    """
    rows = np.arange(len(images)) + len(images) * np.asarray(mirrored)
    pixels = images.permute(0, 2, 3, 1)
    both = torch.cat([pixels, pixels.flip(2)]).flatten(1)  # copying whole rows is the fast way
    chosen = both.index_select(0, torch.from_numpy(rows).to(images.device))
    return chosen.view(pixels.shape).permute(0, 3, 1, 2)


def jitter(images: Tensor, factors: np.ndarray, order: np.ndarray) -> Tensor:
    """Return images with other brightness, contrast and saturation, one after the other.

    The results are those of torchvision's functions for uint8 images, value by value: each step
    is cut off to whole numbers.

    Args:
        images: uint8 [B, 3, H, W].
        factors: of brightness, contrast and saturation, float64 [B, 3].
        order: which of the three comes first, second and third, int64 [B, 3].

    Returns:
        whole numbers from 0 to 255 as float32 [B, 3, H, W], contiguous.
    """
    # Every step blends the image with another one: black, its mean grey, or itself in grey.
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    ratios = np.take_along_axis(factors, order, axis=1)
    share = _column(ratios, images.device)
    rest = _column(1.0 - ratios, images.device)
    kind = torch.from_numpy(order).to(images.device)[:, :, None, None, None]
    for step in range(order.shape[1]):
        grey = _grey(pixels)
        # Sums of whole numbers are exact in double precision, in whatever order they are taken.
        total = grey.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64)
        mean = (total / grey[0].numel()).to(torch.float32)
        constant = torch.where(kind[:, step] == CONTRAST, mean, 0.0)
        other = torch.where(kind[:, step] == SATURATION, grey, constant)
        pixels.mul_(share[:, step])
        torch.addcmul(pixels, other, rest[:, step], out=pixels)
        pixels.clamp_(0, 255).floor_()
    return pixels


def normalise(images: Tensor, mean: Tensor, std: Tensor, out: Tensor) -> None:
    """Scale images to [0, 1], subtract and divide, in three exactly rounded steps.

    Args:
        images: whole numbers from 0 to 255 [B, 3, H, W].
        mean: what to subtract, float32, broadcast to the images.
        std: what to divide by, float32, broadcast to the images.
        out: where the result goes, float32 [B, 3, H, W].
    """
    out.copy_(images)
    # 255 as a tensor, because by a number some devices multiply with the rounded reciprocal.
    out.div_(out.new_full((1,), 255)).sub_(mean).div_(std)


def _plane(channels: Sequence[float], images: Tensor) -> Tensor:
    """Return a constant for each channel as one image, because broadcasting 3 values is slow."""
    return torch.empty_like(images[:1]).copy_(images.new_tensor(channels)[:, None, None])


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def _column(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(torch.float32).to(device)[:, :, None, None, None]
