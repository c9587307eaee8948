"""AutoAugment's CIFAR-10 policy and Cutout for whole batches of bytes, on any device."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ltbench.data.pixels import (
    blend,
    constants,
    on_rows,
    sharpen,
    take,
    to_bytes,
    to_planes,
)
from ltbench.data.torch_random import TorchRandom

CUTOUT = 16  # side of the square of Cutout
# Operation, probability, magnitude of 0 to 9.
POLICY = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)
MOVED, TONED, BLENDED, SHARPENED = range(1, 5)  # kinds of operations
_KINDS = {
    **dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"), MOVED),
    **dict.fromkeys(("Brightness", "Posterize", "Solarize", "Invert"), TONED),
    **dict.fromkeys(("AutoContrast", "Equalize"), TONED),
    **dict.fromkeys(("Color", "Contrast"), BLENDED),
    "Sharpness": SHARPENED,
}
_SIGNED = ("Color", "Contrast", "Brightness", "Sharpness")  # and what moves
# Code of an operation: 0 none, otherwise 1 + 4 * policy + 2 * which of two + whether negative.
_ALL = [(0, "", 0.0)] + [
    (level, name, sign) for pair in POLICY for name, _, level in pair for sign in (1.0, -1.0)
]
_CHANCE = np.array([[chance for _, chance, _ in pair] for pair in POLICY], dtype=np.float32)
_HAS_SIGN = np.array(
    [[name in _SIGNED or _KINDS[name] == MOVED for name, _, _ in pair] for pair in POLICY]
)


def draw_policy(seeds: np.ndarray) -> np.ndarray:
    """Return the operations that torchvision's AutoAugment chooses after these seeds.

    Args:
        seeds: seed of each image [B].

    Returns:
        Codes of the first and second operation, 0 for none, int64 [B, 2].
    """
    numbers = TorchRandom(seeds, 5)
    policy = numbers.below(len(POLICY))
    codes = np.zeros((len(seeds), 2), dtype=np.int64)
    for which in range(2):
        used = numbers.uniform() <= _CHANCE[policy, which]
        signed = used & _HAS_SIGN[policy, which]
        negative = signed & (numbers.uniform(rows=signed) <= 0.5)
        codes[:, which] = np.where(used, 1 + 4 * policy + 2 * which + negative, 0)
    return codes


def apply_policy(images: Tensor, codes: Tensor) -> Tensor:
    """Return images after the drawn operations, bit for bit torchvision's on bytes on the CPU.

    Args:
        images: uint8 [B, H, W, 3]; on the CPU they are changed in place.
        codes: output of ``draw_policy``, int64 [B, 2].
    """
    height, width = images.shape[1:3]
    tables = _Tables(*constants(_tables, images.device, height, width))
    for code in codes.unbind(1):
        kind = tables.kind[code]
        for which, change in (
            (MOVED, _move),
            (TONED, _tone),
            (BLENDED, _blend),
            (SHARPENED, _sharpen),
        ):
            images = on_rows(images, kind == which, partial(change, tables), code, neutral=True)
    return images


def cut_out(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return images with a black square about a pixel, cut off at the border.

    Args:
        images: uint8 [B, H, W, 3]; changed in place.
        row: row of the pixel, int64 [B].
        column: column of the pixel, int64 [B].
    """
    y, x = (torch.arange(n, device=images.device) for n in images.shape[1:3])
    half = CUTOUT // 2
    tall = (y >= row[:, None] - half) & (y < row[:, None] + half)
    wide = (x >= column[:, None] - half) & (x < column[:, None] + half)
    return images.masked_fill_((tall[:, :, None] & wide[:, None, :])[..., None], 0)


class _Tables(NamedTuple):
    """Operations by code: kind, row of ``moves``, level of each level, and parameters of blends."""

    kind: Tensor
    place: Tensor
    moves: Tensor
    tones: Tensor
    fitted: Tensor
    share: Tensor
    rest: Tensor
    of_mean: Tensor
    of_grey: Tensor
    smooth: Tensor


def _tables(height: int, width: int) -> tuple[np.ndarray, ...]:
    levels = torch.arange(256, dtype=torch.uint8)[None, None]
    kind = np.array([_KINDS.get(name, 0) for _, name, _ in _ALL])
    place = np.zeros(len(_ALL), dtype=np.int64)
    moves: dict[tuple[str, float], int] = {}
    maps = [np.arange(height * width)]
    tones = np.tile(np.arange(256, dtype=np.uint8), (len(_ALL), 1))
    factor, sharpness = np.ones((2, len(_ALL)))
    for code, (level, name, sign) in enumerate(_ALL):
        plain = _magnitude(name, level, height, width)
        size = sign * plain
        if kind[code] == MOVED:
            place[code] = moves.setdefault((name, size), len(maps))
            if place[code] == len(maps):
                maps.append(_map(name, size, height, width))
        elif name == "Brightness":
            tones[code] = F.adjust_brightness(levels, 1.0 + size).numpy()
        elif name == "Posterize":
            tones[code] = F.posterize(levels, int(plain)).numpy()
        elif name == "Solarize":
            tones[code] = F.solarize(levels, 255.0 * plain).numpy()
        elif name == "Invert":
            tones[code] = F.invert(levels).numpy()
        elif kind[code] == BLENDED:
            factor[code] = 1.0 + size
        elif kind[code] == SHARPENED:
            sharpness[code] = 1.0 + size
    of_mean, of_grey = (
        np.array([name == which for _, name, _ in _ALL], dtype=np.float32)
        for which in ("Contrast", "Color")
    )
    fits = {"AutoContrast": 1, "Equalize": 2}
    fitted = np.array([fits.get(name, 0) for _, name, _ in _ALL])
    share, rest, smooth = (v.astype(np.float32) for v in (factor, 1.0 - factor, 1.0 - sharpness))
    return kind, place, np.stack(maps), tones, fitted, share, rest, of_mean, of_grey, smooth


def _magnitude(name: str, level: int, height: int, width: int) -> float:
    """Return a magnitude without sign, in single precision as in torchvision."""
    if name == "Posterize":
        return float((8 - (torch.arange(10) / (9 / 4))).round()[level])
    largest = {
        **dict.fromkeys(("ShearX", "ShearY"), 0.3),
        "TranslateX": 150.0 / 331.0 * width,
        "TranslateY": 150.0 / 331.0 * height,
        "Rotate": 30.0,
    }
    if name == "Solarize":
        return float(torch.linspace(1.0, 0.0, 10)[level])
    return float(torch.linspace(0.0, largest.get(name, 0.9), 10)[level])


def _map(name: str, size: float, height: int, width: int) -> np.ndarray:
    """Return the pixel that torchvision moves to each pixel, -1 for black, int64 [H * W]."""
    pixels = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, height, width)
    shear, shift = [0.0, 0.0], [0, 0]
    if name.startswith("Shear"):
        shear[name == "ShearY"] = math.degrees(math.atan(size))
        moved = F.affine(pixels, 0.0, [0, 0], 1.0, shear, center=[0, 0])
    elif name.startswith("Translate"):
        shift[name == "TranslateY"] = int(size)
        moved = F.affine(pixels, 0.0, shift, 1.0, shear)
    else:
        moved = F.rotate(pixels, size)
    return np.asarray(moved.flatten().to(torch.int64).numpy() - 1)


def _move(tables: _Tables, images: Tensor, code: Tensor) -> Tensor:
    return take(images, tables.moves[tables.place[code]]).view(images.shape)


def _blend(tables: _Tables, images: Tensor, code: Tensor) -> Tensor:
    wide = code.view(-1, 1, 1, 1)
    given = (tables.share, tables.rest, tables.of_mean, tables.of_grey)
    return to_bytes(blend(to_planes(images), *(values[wide] for values in given)))


def _sharpen(tables: _Tables, images: Tensor, code: Tensor) -> Tensor:
    return sharpen(images, tables.smooth[code.view(-1, 1, 1, 1)])


def _tone(tables: _Tables, images: Tensor, code: Tensor) -> Tensor:
    """Return images with other levels: those of a table, or fitted to each channel's levels."""
    n, height, width, channels = images.shape
    first = torch.arange(n * channels, device=images.device).view(n, 1, channels) * 256
    at = (images.view(n, -1, channels) + first).flatten()
    which = tables.fitted[code][:, None, None]
    table = torch.where(which == 1, _stretched(images), tables.tones[code][:, None])
    table = torch.where(which == 2, _equalised(at, n * channels, height * width, n), table)
    return table.flatten().index_select(0, at).view(images.shape)


def _stretched(images: Tensor) -> Tensor:
    """Return the tables that stretch each channel's levels to 0 to 255, uint8 [B, 3, 256]."""
    least, most = (
        part.to(torch.float32)[:, :, None] for part in torch.aminmax(images.flatten(1, 2), dim=1)
    )
    same = most == least
    scale = (most - least).mul_(1.0 / 255).masked_fill_(same, 1.0)
    least = least.masked_fill(same, 0.0)
    levels = torch.arange(256, device=images.device, dtype=torch.float32)
    return (levels - least).div_(scale).clamp_(0, 255).to(torch.uint8)


def _equalised(at: Tensor, tables: int, pixels: int, n: int) -> Tensor:
    """Return the tables that equalise each channel's histogram as Pillow does [B, 3, 256]."""
    counts = torch.zeros(tables * 256, dtype=torch.int32, device=at.device)
    counts = counts.index_add_(0, at, counts.new_ones(1).expand_as(at)).view(tables, 256)
    summed = counts.cumsum(1, dtype=torch.int32)
    last = counts.gather(1, summed.argmax(1, keepdim=True))  # at the highest level
    step = (pixels - last).div_(255, rounding_mode="floor")
    below = torch.nn.functional.pad(summed[:, :-1], (1, 0))
    safe = step.clamp(min=1)
    table = (below + step // 2).div_(safe, rounding_mode="floor").clamp_(0, 255)
    levels = torch.arange(256, device=at.device, dtype=torch.int32)
    return torch.where(step == 0, levels, table).to(torch.uint8).view(n, -1, 256)
