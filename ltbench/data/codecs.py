"""Formats of image files: the ones that are read, their size limit, and damage in JPEGs."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

try:
    import simplejpeg
except ImportError:  # no wheel for this platform; Pillow returns the same pixels, but misses damage
    simplejpeg = None

# Pillow's other readers start external programs (EPS) or read what no data set holds.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff",
)  # fmt: skip
MAX_PIXELS = 178_956_970  # per image; the limit above which Pillow refuses one
MAX_RATIO = 1000  # of the long to the short side, which evaluation resizes to a fixed length
# Published results on these were computed from whatever a decoder makes of damaged images.
LENIENT = (
    *("imagenet_lt", "places_lt", "inat18", "isic2019_lt", "isic_archive_lt"),
    *("semi_aves", "semi_fungi", "semi_inat"),
)
_DAMAGE = ("Premature end", "Corrupt JPEG data")  # libjpeg's other warnings are harmless
_PADDING = 16  # bytes before the end marker that some cameras fill up


class DamagedJPEG(ValueError):
    """The compressed data of a JPEG are damaged, so that part of its pixels are arbitrary."""


def open_image(file: bytes | memoryview) -> Image.Image:
    """Return an image whose pixels are still to be loaded.

    Args:
        file: content of an image file.

    Raises:
        ValueError: see ``check_size``.
        Exception: anything that Pillow raises; see ``reason_of``.
    """
    image = Image.open(io.BytesIO(file), formats=FORMATS)
    check_size(*image.size)
    return image


def decode_jpeg(data: np.ndarray, *, lenient: bool = False) -> np.ndarray | None:
    """Return the RGB pixels of a JPEG, or ``None`` if Pillow has to judge the file.

    The pixels are those of Pillow, which uses the same library. ``None`` stands for other formats,
    CMYK, files without a valid header and those with harmless irregularities.

    Args:
        data: content of the file, uint8 [n].
        lenient: leave damaged data to Pillow, which accepts them if the file has an end.

    Returns:
        uint8 [H, W, 3], writable.

    Raises:
        DamagedJPEG: the compressed data are cut, or inconsistent.
        ValueError: see ``check_size``.
    """
    if simplejpeg is None or data[:2].tobytes() != b"\xff\xd8":
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # KeyError: an unknown colour space
        return None
    check_size(width, height)
    cmyk = space in ("CMYK", "YCCK")
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "CMYK" if cmyk else "RGB")
    except ValueError as error:
        reason = str(error)
        if not lenient and reason.startswith(_DAMAGE) and not _is_harmless(data, reason):
            raise DamagedJPEG(reason) from error
        return None
    return None if cmyk else pixels


def sound_jpeg(data: np.ndarray) -> tuple[int, int] | None:
    """Return the size of a JPEG that any decoder reads alike, by its header and its end.

    ``None`` stands for other formats, colours that are neither grey nor YCbCr, sizes that
    ``check_size`` refuses, invalid headers and files that do not end with the end marker. Damage
    between header and end is not seen.

    Args:
        data: content of the file, uint8 [n].

    Returns:
        Height and width in pixels.
    """
    tail = data[-2 - _PADDING :].tobytes().rstrip(b"\0")
    if simplejpeg is None or data[:2].tobytes() != b"\xff\xd8" or not tail.endswith(b"\xff\xd9"):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        check_size(width, height)
    except (ValueError, KeyError):
        return None
    return (height, width) if space in ("Gray", "YCbCr") else None


def _is_harmless(data: np.ndarray, reason: str) -> bool:
    """True if only a profile is bad, or a few surplus bytes precede the end marker."""
    if reason.endswith("bad ICC marker"):
        return True
    words = reason.removeprefix("Corrupt JPEG data: ").split()
    if words[1:] != ["extraneous", "bytes", "before", "marker", "0xd9"]:
        return False
    tail = data[-2 - int(words[0]) : -2]
    return len(tail) <= _PADDING and bool(np.isin(tail, (0, 255)).all())


def is_deep(image: Image.Image) -> bool:
    """True if a loaded image is grey with 16 bits per pixel."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def eight_bits(image: Image.Image) -> Image.Image:
    """Return a loaded image as grey or RGB with 8 bits per channel.

    Of 16 bits the upper eight are kept; transparency and palettes are resolved by Pillow.

    Raises:
        ValueError: the image has 32 bits per channel.
    """
    if image.mode == "L" and "transparency" not in image.info:
        return image
    if is_deep(image):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits per channel; convert it to 8 bits")
    through = "RGBA" if "transparency" in image.info else image.mode
    return image.convert(through).convert("RGB")


def reason_of(error: Exception) -> str:
    """Return the reason why an image could not be decoded, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is not an image ({', '.join(FORMATS)}), or a damaged one"
    if isinstance(error, DamagedJPEG):
        return f"its compressed data are damaged ({error})"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS:,} pixels"
    return f"{error}".split("\n")[0] or type(error).__name__


def check_size(width: int, height: int) -> None:
    """Check the size of an image before its pixels take memory.

    Raises:
        ValueError: there are more than ``MAX_PIXELS`` pixels or none, or one side is more than
            ``MAX_RATIO`` times the other.
    """
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"it has {width:,} x {height:,} pixels, more than the allowed {MAX_PIXELS:,}"
        )
    if not 0 < max(width, height) <= MAX_RATIO * min(width, height):
        raise ValueError(
            f"it has {width:,} x {height:,} pixels, where one side may be at most {MAX_RATIO:,} "
            f"times the other"
        )
