"""Decoding, cropping and resizing of image files."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ltbench.data.codecs import decode_jpeg, eight_bits, open_image, reason_of
from ltbench.data.pipelines import Interpolation
from ltbench.errors import UserError
from ltbench.seeding import keyed_uniform

Box = tuple[int, int, int, int]  # top, left, height, width
Name = str | Callable[[], str]
Shape = Literal["convex", "linear", "concave"]

TRIES = 10  # boxes drawn before falling back to the centre
AREA = (0.08, 1.0)  # fraction of the image
RATIO = (3 / 4, 4 / 3)  # width / height
_SLOTS = 32  # random numbers reserved for the crop of one image
_TOP, _LEFT, _FIRST_TRY = range(3)


def decode_pixels(data: np.ndarray, name: Name, *, lenient: bool = False) -> Tensor:
    """Return the RGB pixels of an image file of any mode in one of ``codecs.FORMATS``.

    Grey images of 16 bits keep the upper eight, an animation its first frame. Orientation tags are
    ignored, as in the data loaders of the literature.

    Args:
        data: content of the file, uint8 [n].
        name: name of the image in messages; a function is called only for a message.
        lenient: accept a JPEG with damaged data, as the data loaders of the literature do.

    Returns:
        uint8 [H, W, 3].

    Raises:
        UserError: the file is empty, cut, damaged, not an image, has more than 16 bits per
            channel, or a size that ``codecs.check_size`` refuses.
    """
    pixels = _jpeg(data, name, lenient)
    return torch.from_numpy(np.array(_by_pillow(data, name)) if pixels is None else pixels)


def decode_pil(data: np.ndarray, name: Name, *, lenient: bool = False) -> Image.Image:
    """Return the pixels of ``decode_pixels`` as a Pillow image in RGB."""
    pixels = _jpeg(data, name, lenient)
    return _by_pillow(data, name) if pixels is None else Image.fromarray(pixels)


def _jpeg(data: np.ndarray, name: Name, lenient: bool) -> np.ndarray | None:
    if len(data) == 0:
        raise _unreadable(name, "it is empty (0 bytes)")
    try:
        return decode_jpeg(data, lenient=lenient)
    except ValueError as error:
        raise _unreadable(name, reason_of(error)) from error


def _by_pillow(data: np.ndarray, name: Name) -> Image.Image:
    try:
        with open_image(data.data) as image:
            image.load()
            return eight_bits(image).convert("RGB")
    except Exception as error:  # decoders raise anything, from KeyError to struct.error
        raise _unreadable(name, reason_of(error)) from error


def _text(name: Name) -> str:
    return name if isinstance(name, str) else name()


def _unreadable(name: Name, reason: str) -> UserError:
    return UserError(
        f"cannot read image `{_text(name)}`: {reason}; replace it or remove it from the data set"
    )


def crop_draws(key: int, positions: np.ndarray) -> np.ndarray:
    """Return random numbers for ``crop_box``, a function of (key, position) only.

    Args:
        key: seed of a view.
        positions: position of each image in the epoch's order, int64 [B].

    Returns:
        Uniform in [0, 1), float64 [B, 22]: vertical and horizontal position, then area and aspect
        ratio of each try.
    """
    slots = np.arange(_FIRST_TRY + 2 * TRIES)
    return keyed_uniform(key, np.asarray(positions, dtype=np.int64)[:, None] * _SLOTS + slots)


def crop_box(draws: np.ndarray, height: int, width: int) -> Box:
    """Return the box of a random resized crop: area in [0.08, 1], aspect ratio in [3/4, 4/3].

    At most ten boxes are drawn until one lies inside the image; the fallback is the largest
    centred box with an allowed aspect ratio.

    Reference:
        Szegedy et al., Going Deeper with Convolutions, CVPR 2015, arXiv:1409.4842; the
        distribution is that of torchvision's RandomResizedCrop.

    Args:
        draws: one row of ``crop_draws`` [22].
        height: height of the image in pixels.
        width: width of the image in pixels.
    """
    down, right, *tries = draws.tolist()
    spread = math.log(RATIO[1] / RATIO[0])
    for first, second in zip(tries[::2], tries[1::2], strict=True):
        area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * first)
        ratio = RATIO[0] * math.exp(spread * second)
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
            return top, left, tall, wide
    wide = min(width, round(height * RATIO[1]))
    tall = min(height, round(width / RATIO[0]))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def least_area(epoch: int, epochs: int, shape: Shape = "convex") -> float:
    """Return the smallest share of an image's area that a minimalist crop takes, by epoch.

    Reference:
        Shi et al., LIFT+: Lightweight Fine-Tuning for Long-Tail Learning, 2025, arXiv:2504.13282
        (minimalist data augmentation).

    Departures:
        a single epoch counts as the last one; the authors' code divides by zero.

    Args:
        epoch: 0-based epoch.
        epochs: number of epochs, >= 1.
        shape: course from 0.08 in the first to 1 in the last epoch.
    """
    t = epoch / (epochs - 1) if epochs > 1 else 1.0
    done = {
        "linear": t,
        "convex": 1 - math.sqrt(max(0.0, 1 - t**2)),
        "concave": math.sqrt(max(0.0, 1 - (1 - t) ** 2)),
    }[shape]
    return AREA[0] + (AREA[1] - AREA[0]) * done


def square_box(draws: np.ndarray, height: int, width: int, least: float) -> Box:
    """Return the box of a minimalist crop: a square, its area uniform from a bound to the image's.

    Both ends are at most the area of the largest square in the image.

    Reference:
        Shi et al., LIFT+: Lightweight Fine-Tuning for Long-Tail Learning, 2025, arXiv:2504.13282,
        and the authors' code.

    Departures:
        none known.

    Args:
        draws: one row of ``crop_draws`` [22].
        height: height of the image in pixels.
        width: width of the image in pixels.
        least: smallest share of the image's area, see ``least_area``.
    """
    down, right, first, *_ = draws.tolist()
    largest = min(height, width) ** 2 / (height * width)
    low, high = min(least, largest), min(AREA[1], largest)
    side = max(1, round(math.sqrt(height * width * (low + (high - low) * first))))
    top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
    return top, left, side, side


def five_crops(images: Tensor, side: int) -> Tensor:
    """Return the crops of an image at its four corners and in its centre.

    Reference:
        torchvision's ``five_crop``, as in Shi et al., Long-Tail Learning with Foundation Model,
        ICML 2024, arXiv:2309.10019 (LIFT), test-time ensembling.

    Departures:
        none known.

    Args:
        images: pixels [..., H, W].
        side: side S of the crops, at most H and W.

    Returns:
        Upper left, upper right, lower left, lower right, centre [5, ..., S, S].
    """
    down, right = images.shape[-2] - side, images.shape[-1] - side
    middle = round(down / 2), round(right / 2)
    corners = [(0, 0), (0, right), (down, 0), (down, right), middle]
    return torch.stack([images[..., y : y + side, x : x + side] for y, x in corners])


def resized_crop(
    pixels: Tensor, box: Box, out: Tensor, interpolation: Interpolation = "bilinear"
) -> None:
    """Crop an image and resize it with antialiasing.

    Args:
        pixels: uint8 [H, W, 3].
        box: box to crop.
        out: output, uint8 [3, S, S].
        interpolation: of the resizing.
    """
    top, left, tall, wide = box
    crop = pixels[top : top + tall, left : left + wide]
    out.copy_(_resized(crop, out.shape[1], out.shape[2], interpolation))


def resized_centre(
    pixels: Tensor,
    out: Tensor,
    short: int | None = None,
    interpolation: Interpolation = "bilinear",
) -> None:
    """Resize an image to a short side of ``S * 256 / 224`` and crop the centre.

    Args:
        pixels: uint8 [H, W, 3].
        out: output, uint8 [3, S, S].
        short: another length of the short side, at least S.
        interpolation: of the resizing.
    """
    size = out.shape[1]
    small = resized_whole(pixels, short or round(size * 256 / 224), interpolation)
    tall, wide = small.shape[1:]
    top, left = round((tall - size) / 2), round((wide - size) / 2)
    out.copy_(small[:, top : top + size, left : left + size])


def resized_whole(pixels: Tensor, short: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Return an image resized to a short side, uint8 [3, height, width].

    Args:
        pixels: uint8 [H, W, 3].
        short: length of the short side in pixels.
        interpolation: of the resizing.
    """
    height, width = pixels.shape[:2]
    tall, wide = short, short
    if height < width:
        wide = int(short * width / height)
    else:
        tall = int(short * height / width)
    return _resized(pixels, tall, wide, interpolation)


def _resized(pixels: Tensor, height: int, width: int, interpolation: Interpolation) -> Tensor:
    # A batch dimension is added before channels are permuted: torch then recognises channels_last
    # memory and resizes three bytes at a time.
    batch = pixels[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, (height, width), mode=interpolation, antialias=True)[0]
