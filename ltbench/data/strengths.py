"""Augmentation whose strength depends on the class: 22 operations, each at one of 31 strengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from ltbench.seeding import derive, keyed_uniform

STRONGEST = 30  # strength at which an operation has the upper end of its range
_SLOTS = 2 * (STRONGEST + 2)  # random numbers reserved per image: two for each operation


@dataclass(frozen=True)
class Strengths:
    """Augmentation strength of each class, which loaders read at the start of an epoch.

    Args:
        by_class: strength of each class, 0 (none) to 30, int64 [C].
        probability: share of a class's images that are augmented with it, in [0, 1].
    """

    by_class: np.ndarray
    probability: float = 1.0

    def of(self, labels: np.ndarray, key: int, positions: np.ndarray) -> np.ndarray:
        """Return the strength of each image, int64 [B], a function of (key, position, label).

        Args:
            labels: class of each image, int64 [B].
            key: seed of the augmentation of an epoch.
            positions: position of each image in the epoch's order, int64 [B].
        """
        chosen = keyed_uniform(derive(key, "strength"), positions) < self.probability
        drawn: np.ndarray = np.where(chosen, self.by_class[labels], 0)
        return drawn


def operate(image: Image.Image, strength: int, key: int, position: int) -> Image.Image:
    """Return an image after as many random operations as its strength, each of that strength.

    Reference: Ahn et al., CUDA: Curriculum of Data Augmentation for Long-Tailed Recognition,
        ICLR 2023, arXiv:2302.05499, Algorithm 1.
    Departures: images of odd height or width keep their size.

    Args:
        image: RGB image.
        strength: 0 to 30.
        key: seed of a view.
        position: position of the image in the epoch's order.
    """
    numbers = keyed_uniform(key, position * _SLOTS + np.arange(2 * strength)).reshape(-1, 2)
    for choice, sign in numbers.tolist():
        operation = OPERATIONS[int(choice * len(OPERATIONS))]
        value = operation.value(strength)
        image = operation.change(image, -value if operation.signed and sign < 0.5 else value)
    return image


def operate_on_bytes(
    images: np.ndarray, strengths: np.ndarray, key: int, positions: np.ndarray
) -> None:
    """Change a batch of images in place; see ``operate``.

    Args:
        images: uint8 [B, H, W, 3].
        strengths: strength of each image, int64 [B].
        key: seed of a view.
        positions: position of each image in the epoch's order, int64 [B].
    """
    for row in np.flatnonzero(strengths).tolist():
        picture = Image.fromarray(np.ascontiguousarray(images[row]))
        images[row] = operate(picture, int(strengths[row]), key, int(positions[row]))


class Operation(NamedTuple):
    """One operation on an image, with the range of its argument.

    Args:
        name: its name in the authors' code.
        low: argument at strength 0.
        high: argument at strength 30.
        change: function of image and argument.
        signed: whether the argument has a random sign.
    """

    name: str
    low: float
    high: float
    change: Callable[[Image.Image, float], Image.Image]
    signed: bool = False

    def value(self, strength: int) -> float:
        """Return the argument at a strength of 0 to 30."""
        return self.low + strength / STRONGEST * (self.high - self.low)


def _resize_crop(image: Image.Image, factor: float) -> Image.Image:
    width, height = image.size
    wide, tall = int(width * factor), int(height * factor)
    left, top = wide // 2 - width // 2, tall // 2 - height // 2
    large = image.resize((wide, tall), Image.Resampling.LANCZOS)
    return large.crop((left, top, left + width, top + height))


def _solarize_add(image: Image.Image, addition: float) -> Image.Image:
    lighter = np.clip(np.asarray(image).astype(np.int64) + addition, 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(lighter), 128)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


OPERATIONS = (
    Operation("Flip", 0, 1, lambda image, _: ImageOps.flip(image)),  # upside down
    Operation("Mirror", 0, 1, lambda image, _: ImageOps.mirror(image)),
    Operation("EdgeEnhance", 0, 1, lambda image, _: image.filter(ImageFilter.EDGE_ENHANCE)),
    Operation("Detail", 0, 1, lambda image, _: image.filter(ImageFilter.DETAIL)),
    Operation("Smooth", 0, 1, lambda image, _: image.filter(ImageFilter.SMOOTH)),
    Operation("AutoContrast", 0, 1, lambda image, _: ImageOps.autocontrast(image)),
    Operation("Equalize", 0, 1, lambda image, _: ImageOps.equalize(image)),
    Operation("Invert", 0, 1, lambda image, _: ImageOps.invert(image)),
    Operation("GaussianBlur", 0, 2, lambda image, v: image.filter(ImageFilter.GaussianBlur(v))),
    Operation("ResizeCrop", 1, 1.5, _resize_crop),
    Operation("Rotate", 0, 30, lambda image, v: image.rotate(v), signed=True),
    Operation("Posterize", 0, 4, lambda image, v: ImageOps.posterize(image, max(1, int(v)))),
    Operation("Solarize", 0, 256, lambda image, v: ImageOps.solarize(image, v)),  # type: ignore[arg-type]
    Operation("SolarizeAdd", 0, 110, _solarize_add),
    Operation("Color", 0.1, 1.9, lambda image, v: ImageEnhance.Color(image).enhance(v)),
    Operation("Contrast", 0.1, 1.9, lambda image, v: ImageEnhance.Contrast(image).enhance(v)),
    Operation("Brightness", 0.1, 1.9, lambda image, v: ImageEnhance.Brightness(image).enhance(v)),
    Operation("Sharpness", 0.1, 1.9, lambda image, v: ImageEnhance.Sharpness(image).enhance(v)),
    Operation("ShearX", 0.0, 0.3, lambda im, v: _affine(im, 1, v, 0, 0, 1, 0), signed=True),
    Operation("ShearY", 0.0, 0.3, lambda im, v: _affine(im, 1, 0, 0, v, 1, 0), signed=True),
    Operation("TranslateXabs", 0, 100, lambda im, v: _affine(im, 1, 0, v, 0, 1, 0), signed=True),
    Operation("TranslateYabs", 0, 100, lambda im, v: _affine(im, 1, 0, 0, 0, 1, v), signed=True),
)
