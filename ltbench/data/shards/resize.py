from __future__ import annotations

import io

import numpy as np
from PIL import Image

from ltbench.data.codecs import DamagedJPEG, decode_jpeg, eight_bits, open_image, reason_of
from ltbench.errors import UserError

QUALITY = 95  # of the JPEGs; PIL's scale


def shrink(data: bytes, short: int, name: str) -> bytes | None:
    """Return an image as a JPEG whose short side is ``short``; ``None`` if it is not larger.

    Of a JPEG with damaged data ``None`` is returned too, since the damage would be hidden.

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
        with open_image(data) as image:
            factor = short / min(image.size)
            if factor >= 1:
                return None
            width, height = (max(short, round(side * factor)) for side in image.size)
            try:
                pixels = decode_jpeg(np.frombuffer(data, dtype=np.uint8))
            except DamagedJPEG:
                image.load()  # raises where the end is missing
                return None
            if pixels is None:
                image.load()
                whole = eight_bits(image)
            else:
                whole = Image.fromarray(pixels[..., 0] if image.mode == "L" else pixels)
            small = whole.resize((width, height), Image.Resampling.BICUBIC)
        small.save(buffer, "JPEG", quality=QUALITY)
    except Exception as error:  # decoders raise anything, from KeyError to struct.error
        raise UserError(
            f"cannot resize image `{name}`: {reason_of(error)}; replace it, remove it from the "
            "list, or pack without resize_short="
        ) from error
    return buffer.getvalue()
