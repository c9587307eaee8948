from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from ltbench.errors import UserError

QUALITY = 95  # of the JPEGs; PIL's scale


def shrink(data: bytes, short: int, name: str) -> bytes | None:
    """Return an image as a JPEG whose short side is ``short``, ``None`` if it is not larger.

    Resized with PIL's antialiased bicubic filter, proportions kept. Grey images stay grey, all
    others become RGB; orientation tags are ignored, as everywhere in the field's data loaders.

    Args:
        data: the image file's bytes.
        short: length of the shorter side in pixels, at least 1.
        name: of the image, for messages.

    Raises:
        UserError: the bytes are no image, cut, or of more than 16 bits a channel.
    """
    buffer = io.BytesIO()
    try:
        with Image.open(io.BytesIO(data)) as image:
            factor = short / min(image.size)
            if factor >= 1:
                return None
            width, height = (max(short, round(side * factor)) for side in image.size)
            image.load()
            small = eight_bits(image).resize((width, height), Image.Resampling.BICUBIC)
        small.save(buffer, "JPEG", quality=QUALITY)
    except Exception as error:  # decoders raise anything, from KeyError to struct.error
        raise UserError(
            f"cannot resize image `{name}`: {reason_of(error)}; replace it, remove it from the "
            "list, or pack without resize_short="
        ) from error
    return buffer.getvalue()


def eight_bits(image: Image.Image) -> Image.Image:
    """Return an image as RGB, or as it is if it is grey, with the pixels that readers see.

    Raises:
        ValueError: it has 32 bits a channel.
    """
    if image.mode == "L" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a channel")
    through = "RGBA" if "transparency" in image.info else image.mode
    return image.convert(through).convert("RGB")


def reason_of(error: Exception) -> str:
    """Return in a few words why a decoder failed."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image, or a damaged one"
    return f"{error}".split("\n")[0] or type(error).__name__
