"""Operations on the pixels of image batches, on any device, exact to the grey level."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def pixel_fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the SHA-256 of shape, pixels and labels.

    Args:
        images: uint8 [N, H, W, 3].
        labels: class of each image [N].
    """
    digest = hashlib.sha256(repr(images.shape[:3]).encode())
    for image in images:
        digest.update(image.tobytes())
    digest.update(np.asarray(labels).astype("<i8").tobytes())
    return digest.hexdigest()


def on_rows(
    images: Tensor,
    rows: Tensor,
    change: Callable[..., Tensor],
    *given: Tensor,
    neutral: bool = False,
) -> Tensor:
    """Return images of which some are changed.

    On an accelerator all images are computed, and the wanted ones kept, because choosing rows there
    would make the host wait.

    Args:
        images: images [B, ...]; on the CPU they are changed in place.
        rows: which images are changed, bool [B].
        change: function of images and parameters, row by row.
        given: parameters of each image [B, ...].
        neutral: whether parameters of the other rows leave these as they are.
    """
    if images.device.type != "cpu" and neutral:
        return change(images, *given)
    if images.device.type != "cpu":
        wide = rows.view(-1, *[1] * (images.dim() - 1))
        return torch.where(wide, change(images, *given), images)
    chosen = rows.nonzero()[:, 0]
    if len(chosen):
        parts = [values.index_select(0, chosen) for values in given]
        images.index_copy_(0, chosen, change(images.index_select(0, chosen), *parts))
    return images


def to_planes(images: Tensor) -> Tensor:
    """Return bytes [B, H, W, 3] as float32 [B, 3, H, W], contiguous."""
    planes = images.permute(0, 3, 1, 2)
    return planes.to(torch.float32, memory_format=torch.contiguous_format)


def to_bytes(planes: Tensor) -> Tensor:
    """Return whole numbers from 0 to 255, float32 [B, 3, H, W], as uint8 [B, H, W, 3]."""
    return planes.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def grey(planes: Tensor) -> Tensor:
    """Return grey levels, rounded down, of whole numbers [B, 3, H, W] as [B, 1, H, W]."""
    red, green, blue = planes[:, :1], planes[:, 1:2], planes[:, 2:]
    return red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()


def blend(planes: Tensor, share: Tensor, rest: Tensor, of_mean: Tensor, of_grey: Tensor) -> Tensor:
    """Return images with another brightness, contrast or saturation, as torchvision's for bytes.

    Each is a blend of the image with black, its mean grey level, or its grey levels.

    Args:
        planes: whole numbers from 0 to 255, float32 [B, 3, H, W].
        share: share of the image, the factor, float32 [B, 1, 1, 1].
        rest: share of the other, 1 - factor, float32 [B, 1, 1, 1].
        of_mean: 1 for contrast, otherwise 0, float32 [B, 1, 1, 1].
        of_grey: 1 for saturation, otherwise 0, float32 [B, 1, 1, 1].
    """
    levels = grey(planes)
    # Sums of integers are exact in double precision, in any order.
    total = levels.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64)
    mean = total.div_(number(levels[0].numel(), planes.device, torch.float64)).to(torch.float32)
    other = torch.addcmul(mean.mul_(of_mean), levels, of_grey)
    mixed = planes.mul(share)
    return torch.addcmul(mixed, other, rest, out=mixed).clamp_(0, 255).floor_()


def shift_hue(planes: Tensor, turn: Tensor) -> Tensor:
    """Return images with another hue, as torchvision's ``adjust_hue`` on bytes.

    Args:
        planes: whole numbers from 0 to 255, float32 [B, 3, H, W].
        turn: shift of the hue in turns, -0.5 to 0.5, float32 [B, 1, 1].
    """
    scaled = planes.mul(1.0 / 255)
    red, green, _ = scaled.unbind(1)
    least, most = torch.aminmax(scaled, dim=1)
    flat = least == most
    spread = most - least
    saturation = spread / most.masked_fill(flat, 1.0)
    divisor = spread.masked_fill(flat, 1.0)[:, None]
    r, g, b = ((most[:, None] - scaled) / divisor).unbind(1)
    is_red = most == red
    is_green = (most == green) & ~is_red
    angle = torch.where(is_red, b - g, torch.where(is_green, (r + 2.0) - b, (g + 4.0) - r))
    hue = (angle.mul_(1.0 / 6.0) + 1.0).fmod_(1.0).add_(turn).remainder_(1.0)
    sector = hue.mul_(6)
    whole = sector.floor()
    part = sector.sub_(whole)
    chroma = saturation * part
    missing = 1.0 - saturation
    falling = (1.0 - chroma).mul_(most).clamp_(0.0, 1.0)
    rising = chroma.add_(missing).mul_(most).clamp_(0.0, 1.0)
    low = missing.mul_(most).clamp_(0.0, 1.0)
    values = torch.stack((most, low, falling, rising), dim=1)
    (sectors,) = constants(_sectors, planes.device)
    which = sectors[whole.to(torch.int64).remainder_(6)]
    return values.gather(1, which.permute(0, 3, 1, 2)).mul_(255 + 1.0 - 1e-3).floor_()


def sharpen(images: Tensor, rest: Tensor) -> Tensor:
    """Return images moved away from, or towards, their smoothed version, inside the border.

    Args:
        images: uint8 [B, H, W, 3].
        rest: share of the smoothed image, 1 - factor, float32 [B, 1, 1, 1].
    """
    pixels = images.to(torch.float32)
    if min(images.shape[1:3]) <= 2:
        return images
    inner = pixels[:, 1:-1, 1:-1]
    rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    sums = (rows[:, :, :-2] + rows[:, :, 1:-1]).add_(rows[:, :, 2:]).add_(inner, alpha=4)
    smooth = sums.div_(number(13, images.device)).round_()  # no sum of integers is on a tie
    inner.copy_(torch.addcmul(inner, smooth.sub_(inner), rest))
    return pixels.clamp_(0, 255).to(torch.uint8)


def take(images: Tensor, index: Tensor) -> Tensor:
    """Return images whose pixels come from other places of the same image.

    Args:
        images: uint8 [B, H, W, 3].
        index: pixel of each pixel of the result, row by row; below 0: black. int64 [B, h * w].

    Returns:
        uint8 [B, h * w, 3].
    """
    n, height, width, _ = images.shape
    first = torch.arange(n, device=images.device)[:, None] * (height * width)
    chosen = (index.clamp(min=0) + first).flatten()
    found = images.reshape(-1, 3).index_select(0, chosen).view(*index.shape, 3)
    return found.mul_((index >= 0)[:, :, None])


def rotations(degrees: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return Pillow's fixed-point map of rotations about the centre, for ``rotate``.

    Args:
        degrees: angles, counter-clockwise [B].
        height: height of the images in pixels.
        width: width of the images in pixels.

    Returns:
        int64 [B, 6]: of column and row of the source in 1 / 65536 pixel, the step to the right, the
        step down, and the value of the first pixel.
    """
    angle = -np.radians(degrees.astype(np.float64) % 360.0)
    cos, sin = np.cos(angle).round(15), np.sin(angle).round(15)
    x, y = width / 2, height / 2
    across, down = (cos, sin), (-sin, cos)
    made = []
    for (right, below), centre in ((across, x), (down, y)):
        start = right * -x + below * -y + 0.0 + centre
        made += [right, below, start + right * 0.5 + below * 0.5]
    return np.floor(np.stack(made, axis=1) * 65536.0 + 0.5).astype(np.int64)


def rotate(images: Tensor, maps: Tensor) -> Tensor:
    """Return rotated images, of the nearest pixel and black outside, as Pillow rotates.

    Args:
        images: uint8 [B, H, W, 3].
        maps: output of ``rotations``, int64 [B, 6].
    """
    n, height, width, _ = images.shape
    y = torch.arange(height, device=images.device)[:, None]
    x = torch.arange(width, device=images.device)
    right, below, start, right_, below_, start_ = maps[:, :, None, None].unbind(1)
    column = (start + y * below + x * right) >> 16
    row = (start_ + y * below_ + x * right_) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = torch.where(inside, row * width + column, -1)
    return take(images, index.view(n, -1)).view(images.shape)


def enlarge(images: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """Return boxes of images resized to the whole size, bilinearly, as torch resizes bytes.

    Args:
        images: uint8 [B, H, W, 3].
        boxes: top, left, height and width of each box, int64 [B, 4].
        mirrored: 1 for images to flip afterwards, int64 [B].
    """
    n, height, width, _ = images.shape
    top, left, tall, wide = boxes.unbind(1)
    device = images.device
    columns = torch.arange(width, device=device)
    columns = torch.where(mirrored[:, None] == 1, width - 1 - columns, columns)
    low, high, *weights = (part[wide[:, None], columns] for part in constants(_taps, device, width))
    lines = torch.arange(n * height, device=device).view(n, height, 1) * width
    flat = images.reshape(-1, 3)
    near, far = (
        flat.index_select(0, (lines + (left[:, None] + at)[:, None]).flatten())
        for at in (low, high)
    )
    shape = n, height, width, 3
    made = _mix(near.view(shape), far.view(shape), [w[:, None, :, None] for w in weights])
    low, high, *weights = (part[tall] for part in constants(_taps, device, height))
    lines = torch.arange(n, device=device)[:, None] * height + top[:, None]
    flat = made.view(n * height, width * 3)
    near, far = (flat.index_select(0, (lines + at).flatten()) for at in (low, high))
    return _mix(near.view(shape), far.view(shape), [w[:, :, None, None] for w in weights])


def _mix(near: Tensor, far: Tensor, weights: list[Tensor]) -> Tensor:
    first, second, half, unit = weights
    # Whole numbers below 2**24: exact in single precision.
    mixed = torch.addcmul(near.to(torch.float32).mul_(first), far.to(torch.float32), second)
    return mixed.add_(half).mul_(unit).floor_().clamp_(0, 255).to(torch.uint8)


def box_blurs(radius: np.ndarray) -> np.ndarray:
    """Return Pillow's weights of the box filters, three in a row, of Gaussian blurs.

    Args:
        radius: standard deviations in pixels, float32 [B], 0 to 2.

    Returns:
        int64 [B, 3]: weights of a pixel and of its first and second neighbours, of 2**24.
    """
    variance = (radius * radius / np.float32(3)).astype(np.float32)
    length = np.sqrt(12.0 * variance + 1.0).astype(np.float32)
    whole = np.floor((length - 1.0) / 2.0).astype(np.float32)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    size = whole + part / (6 * (variance - (whole + 1) * (whole + 1)))
    inside = size.astype(np.int64)
    middle = (np.float32(2**24) / (size * 2 + 1)).astype(np.int64)
    edge = (2**24 - (inside * 2 + 1) * middle) // 2
    wide = inside >= 1
    return np.stack([middle, np.where(wide, middle, edge), np.where(wide, edge, 0)], axis=1)


def blur(images: Tensor, weights: Tensor) -> Tensor:
    """Return blurred images: three box filters across, then three down, as Pillow blurs.

    Args:
        images: uint8 [B, H, W, 3].
        weights: output of ``box_blurs``, int64 [B, 3].
    """
    own, first, second = weights.to(torch.int32)[:, :, None, None, None].unbind(1)
    # Levels less 128, so that sums fit 32 bits; the weights add up to 2**24 or one less.
    offset = (own + 2 * (first + second) - 2**24) * 128 + 2**23
    pixels = images.to(torch.int32) - 128
    for axis in (2, 1):
        size = images.shape[axis]
        for _ in range(3):
            start, end = pixels.narrow(axis, 0, 1), pixels.narrow(axis, size - 1, 1)
            wide = torch.cat([start, start, pixels, end, end], dim=axis)
            at = [wide.narrow(axis, shift, size) for shift in range(5)]
            sums = torch.addcmul(at[2] * own, at[1] + at[3], first)
            pixels = (
                torch.addcmul(sums, at[0] + at[4], second).add_(offset).bitwise_right_shift_(24)
            )
    return (pixels + 128).to(torch.uint8)


def _sectors() -> tuple[np.ndarray, ...]:
    """Return which of (most, low, falling, rising) red, green and blue are by sector of hue."""
    return (np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]]),)


def _taps(size: int) -> tuple[np.ndarray, ...]:
    """Return the two pixels, from the start of a box, and their weights, as torch resizes bytes.

    Args:
        size: size of the result in pixels.

    Returns:
        For boxes of 0 to ``size`` pixels and each pixel of the result [size + 1, size]: first
        pixel, second pixel, their weights, one half and one over the unit of the weights [., 1].
    """
    length = np.arange(size + 1)[:, None]
    centre = length / size * (np.arange(size) + 0.5)
    low = np.maximum((centre - 0.5).astype(np.int64), 0)
    high = np.minimum(low + 1, np.maximum(length - 1, 0))
    weights = [np.maximum(1 - np.abs(at - centre + 0.5), 0) for at in (low, low + 1)]
    weights[1] = np.where(low + 1 < length, weights[1], 0.0)
    total = np.where(weights[0] + weights[1] == 0, 1.0, weights[0] + weights[1])
    first, second = (weight / total for weight in weights)
    largest = np.maximum(first, second).max(axis=1, keepdims=True)
    bits = np.zeros_like(largest)
    for more in range(22):  # as many bits as fit 16 with a sign
        bits += (bits == more) & ((0.5 + largest * 2.0 ** (more + 1)).astype(np.int64) < 2**15)
    unit = 2.0**bits
    parts = np.floor(first * unit + 0.5), np.floor(second * unit + 0.5)
    rest = unit / 2 + 0 * first, 1 / unit + 0 * first
    return low, high, *(values.astype(np.float32) for values in (*parts, *rest))


@lru_cache(maxsize=64)
def constants(
    make: Callable[..., tuple[np.ndarray, ...]], device: torch.device, *size: int
) -> tuple[Tensor, ...]:
    """Return the arrays that ``make(*size)`` makes on a device, where they stay."""
    return tuple(torch.from_numpy(values).to(device) for values in make(*size))


@lru_cache(maxsize=64)
def number(value: float, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a number as a tensor [1], to divide by.

    For a Python number some devices multiply by the rounded reciprocal.
    """
    return torch.full((1,), value, dtype=dtype, device=device)
