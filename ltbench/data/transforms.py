"""Named image pipelines of the literature, from PIL images to normalised float tensors."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import v2

from ltbench.data.pipelines import Augment, Interpolation, statistics

Transform = Callable[[Image.Image], Tensor]

JITTERED = (  # jitter without hue
    *("imagenet", "inat_jitter", "rand", "inat_rand"),
    *("sim", "inat_sim", "sim_rand"),
)
ENDS = 3  # last steps of a pipeline: conversion to a tensor, scale to [0, 1], normalisation
GREY = (124, 116, 104)  # ImageNet's mean colour, fill colour of shifts and rotations


def train_transform(
    augment: Augment,
    image_size: int,
    normalise_as: Augment | None = None,
    interpolation: Interpolation = "bilinear",
) -> Transform:
    """Return the training pipeline ``augment``, which draws from torch's CPU generator only.

    ``"rand"`` and the two ``"sim"`` pipelines are those of contrastive learning on long tails:
    random resized crop and flip, then for ``"rand"`` colour jitter 0.4 without hue and
    RandAugment(2, 10); for ``"sim"`` the same jitter, grey with probability 0.2 and Gaussian blur
    with probability 0.5; for ``"sim_hue"`` jitter with hue 0.1 and probability 0.8, and grey.
    ``"sim_rand"`` and ``"sim_hue_rand"`` end with RandAugment(2, 10) as well.

    Reference:
        Cui et al., Parametric Contrastive Learning, ICCV 2021, arXiv:2107.12028 (``"rand"``,
        ``"sim"``, ``"sim_rand"``); Zhu et al., Balanced Contrastive Learning for Long-Tailed Visual
        Recognition, CVPR 2022, arXiv:2207.09052 (``"rand"``, ``"sim_hue"``, ``"sim_hue_rand"``);
        Cubuk et al., RandAugment, NeurIPS 2020, arXiv:1909.13719 (timm's version, as in both).

    Departures:
        none known.

    Args:
        augment: ``"imagenet"`` (random resized crop, flip, colour jitter 0.4 without hue; also
            used on Places-LT), ``"crop"`` (the same without jitter), ``"inat"`` (random resized
            crop, flip; iNaturalist's normalisation), ``"inat_jitter"`` (the same with colour
            jitter, as in MiSLAS, RSG and Saddle-SAM), ``"plain"`` (resize, centre crop, flip),
            ``"rand"``, ``"inat_rand"`` (the same), ``"sim"``, ``"inat_sim"`` (the same),
            ``"sim_hue"``, ``"sim_rand"``, ``"sim_hue_rand"``, ``"clip"`` or ``"half"`` (``"crop"``
            with the normalisation of CLIP, or of mean and deviation 0.5).
        image_size: side of the output in pixels.
        normalise_as: pipeline whose normalisation is used; ``None`` is that of ``augment``.
        interpolation: of the resizing.

    Returns:
        Function from a PIL image to a float tensor [3, image_size, image_size].
    """
    steps: list[torch.nn.Module]
    mode = v2.InterpolationMode(interpolation)
    if augment == "plain":
        steps = [*_centre(image_size, mode), v2.RandomHorizontalFlip()]
    else:
        crop = v2.RandomResizedCrop(image_size, interpolation=mode)
        steps = [crop, v2.RandomHorizontalFlip()]
    if augment in JITTERED:
        steps.append(v2.ColorJitter(0.4, 0.4, 0.4, 0.0))
    if augment.startswith("sim_hue"):
        steps.append(v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8))
    if augment.removeprefix("inat_").startswith("sim"):
        steps.append(v2.RandomGrayscale(0.2))
    if augment in ("sim", "inat_sim", "sim_rand"):
        steps.append(v2.RandomApply([GaussianBlur(0.1, 2.0)], p=0.5))
    if augment.endswith("rand"):
        steps.append(RandAugment())
    return _finish(steps, normalise_as or augment)


class GaussianBlur(torch.nn.Module):
    """Pillow's Gaussian blur with a uniformly drawn radius.

    Args:
        low: smallest radius (standard deviation) in pixels, >= 0.
        high: largest radius in pixels.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the blurred image."""
        radius = self.low + (self.high - self.low) * float(torch.rand(()))
        return image.filter(ImageFilter.GaussianBlur(radius))


class RandAugment(torch.nn.Module):
    """timm's RandAugment, seeded from torch's CPU generator.

    Args:
        recipe: timm's configuration string: number, magnitude and spread of the operations.
    """

    def __init__(self, recipe: str = "rand-n2-m10-mstd0.5") -> None:
        super().__init__()
        self.augment = rand_augment_transform(recipe, {"img_mean": GREY})

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the augmented image."""
        seed = int(torch.randint(2**32, ()))
        before = random.getstate(), np.random.get_state()
        random.seed(seed)  # timm draws from Python's and NumPy's global generators
        np.random.seed(seed)
        try:
            changed: Image.Image = self.augment(image)
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
        return changed


def with_operations(
    transform: Transform, change: Callable[[Image.Image], Image.Image]
) -> Transform:
    """Return a training pipeline with one more change before the conversion to a tensor.

    Args:
        transform: made by ``train_transform``.
        change: function from the cropped and augmented image to another one of its size.
    """
    steps: list[Callable[[Any], Any]] = transform.transforms  # type: ignore[attr-defined]
    pipeline: Transform = v2.Compose([*steps[:-ENDS], change, *steps[-ENDS:]])
    return pipeline


def eval_transform(
    augment: Augment, image_size: int, interpolation: Interpolation = "bilinear"
) -> Transform:
    """Return the evaluation pipeline: short side to ``image_size * 256 / 224``, centre crop.

    Args:
        augment: name of the training pipeline, which determines the normalisation.
        image_size: side of the output in pixels.
        interpolation: of the resizing.

    Returns:
        Function from a PIL image to a float tensor [3, image_size, image_size].
    """
    return _finish(_centre(image_size, v2.InterpolationMode(interpolation)), augment)


def _centre(image_size: int, mode: v2.InterpolationMode) -> list[torch.nn.Module]:
    short = round(image_size * 256 / 224)
    return [v2.Resize(short, interpolation=mode), v2.CenterCrop(image_size)]


def _finish(steps: list[torch.nn.Module], augment: Augment) -> Transform:
    mean, std = statistics(augment)
    ends = [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(mean), list(std)),
    ]
    pipeline: Transform = v2.Compose([*steps, *ends])
    return pipeline
