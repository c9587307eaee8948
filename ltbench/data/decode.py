"""Decoding, cropping and resizing of image files."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from ltbench.errors import UserError
from ltbench.seeding import keyed_uniform

Box = tuple[int, int, int, int]  # top, left, height, width
Name = str | Callable[[], str]

try:
    from torchvision.io import decode_jpeg
except ImportError:  # its decoders are deprecated; Pillow gives the same pixels, more slowly
    decode_jpeg = None

TRIES = 10  # boxes drawn before falling back to the centre
AREA = (0.08, 1.0)  # fraction of the image
RATIO = (3 / 4, 4 / 3)  # width / height
_SLOTS = 32  # random numbers reserved for the crop of one image
_TOP, _LEFT, _FIRST_TRY = range(3)
_START, _END = b"\xff\xd8", b"\xff\xd9"  # markers of a complete JPEG


def decode_pixels(data: np.ndarray, name: Name) -> Tensor:
    """Return the RGB pixels of an image file of any mode and format.

    A complete JPEG is decoded by torchvision, with the same library as Pillow and so to the same
    pixels. Everything else is decoded by Pillow: other formats, CMYK, a JPEG without end marker.
    Orientation tags are ignored, as in the data loaders of the literature.

    Args:
        data: content of the file, uint8 [n].
        name: name of the image in messages; a function is called only for a message.

    Returns:
        uint8 [H, W, 3].

    Raises:
        UserError: the file is empty, truncated, not an image, or has more than 16 bits per channel.
    """
    whole = data[:2].tobytes() == _START and data[-2:].tobytes() == _END
    if whole and decode_jpeg is not None:
        try:
            pixels = decode_jpeg(torch.from_numpy(data if data.flags.writeable else data.copy()))
        except RuntimeError:
            pixels = torch.empty(0, 0, 0)
        if pixels.shape[0] in (1, 3):
            rgb: Tensor = pixels.permute(1, 2, 0).expand(-1, -1, 3).contiguous()
            return rgb
    return torch.from_numpy(np.array(decode_pil(data, name)))


def decode_pil(data: np.ndarray, name: Name) -> Image.Image:
    """Return an image file of any mode (grey, palette, CMYK, with or without alpha) as RGB.

    Args:
        data: content of the file, uint8 [n].
        name: name of the image in messages; a function is called only for a message.

    Raises:
        UserError: the file is empty, truncated, not an image, or has more than 16 bits per channel.
    """
    if len(data) == 0:
        raise _unreadable(name, "it is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data.data)) as image:
            image.load()
            if image.mode.startswith("I;16"):
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode not in ("I", "F"):
                through = "RGBA" if "transparency" in image.info else image.mode
                return image.convert(through).convert("RGB")
    except UnidentifiedImageError as error:
        raise _unreadable(name, "it is not an image, or a damaged one") from error
    except Exception as error:  # decoders raise anything, from KeyError to struct.error
        raise _unreadable(name, f"{error}".split("\n")[0] or type(error).__name__) from error
    raise UserError(f"image `{_text(name)}` has 32 bits per channel; convert it to 8 bits")


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


def resized_crop(pixels: Tensor, box: Box, out: Tensor) -> None:
    """Crop an image and resize it, bilinearly with antialiasing.

    Args:
        pixels: uint8 [H, W, 3].
        box: box to crop.
        out: output, uint8 [3, S, S].
    """
    top, left, tall, wide = box
    out.copy_(_resized(pixels[top : top + tall, left : left + wide], *out.shape[1:]))


def resized_centre(pixels: Tensor, out: Tensor) -> None:
    """Resize an image to a short side of ``S * 256 / 224`` and crop the centre.

    Args:
        pixels: uint8 [H, W, 3].
        out: output, uint8 [3, S, S].
    """
    height, width = pixels.shape[:2]
    size = out.shape[1]
    short = round(size * 256 / 224)
    tall, wide = short, short
    if height < width:
        wide = int(short * width / height)
    else:
        tall = int(short * height / width)
    top, left = round((tall - size) / 2), round((wide - size) / 2)
    out.copy_(_resized(pixels, tall, wide)[:, top : top + size, left : left + size])


def _resized(pixels: Tensor, height: int, width: int) -> Tensor:
    # A batch dimension is added before channels are permuted: torch then recognises channels_last
    # memory and resizes three bytes at a time.
    batch = pixels[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, (height, width), mode="bilinear", antialias=True)[0]
