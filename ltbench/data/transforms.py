"""Named image pipelines of the literature: PIL image in, normalised float tensor out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

Transform = Callable[[Image.Image], Tensor]
Channels = tuple[float, float, float]
Augment = Literal["imagenet", "inat", "inat_jitter", "plain"]

IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INAT_STATS = ((0.466, 0.471, 0.380), (0.195, 0.194, 0.192))


def train_transform(augment: Augment, image_size: int) -> Transform:
    """Return the training pipeline called ``augment``; it draws from torch's CPU generator only.

    Args:
        augment: ``"imagenet"`` (random resized crop, flip, colour jitter 0.4 without hue; also
            used on Places-LT), ``"inat"`` (random resized crop, flip), ``"inat_jitter"`` (the same
            with the colour jitter, as MiSLAS, RSG and ResLT do) or ``"plain"`` (whole image,
            centre crop, flip).
        image_size: side of the output in pixels.

    Returns:
        a function from a PIL image to a float tensor [3, image_size, image_size].
    """
    steps: list[torch.nn.Module]
    if augment == "plain":
        steps = [*_centre(image_size), v2.RandomHorizontalFlip()]
    else:
        steps = [v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip()]
    if augment in ("imagenet", "inat_jitter"):
        steps.append(v2.ColorJitter(0.4, 0.4, 0.4, 0.0))
    return _finish(steps, augment)


def eval_transform(augment: Augment, image_size: int) -> Transform:
    """Return the evaluation pipeline: short side to ``image_size * 256 / 224``, centre crop.

    Args:
        augment: name of the training pipeline, which fixes the normalisation.
        image_size: side of the output in pixels.

    Returns:
        a function from a PIL image to a float tensor [3, image_size, image_size].
    """
    return _finish(_centre(image_size), augment)


def statistics(augment: Augment) -> tuple[Channels, Channels]:
    """Return mean and standard deviation per channel that go with a training pipeline."""
    return INAT_STATS if augment.startswith("inat") else IMAGENET_STATS


def _centre(image_size: int) -> list[torch.nn.Module]:
    return [v2.Resize(round(image_size * 256 / 224)), v2.CenterCrop(image_size)]


def _finish(steps: list[torch.nn.Module], augment: Augment) -> Transform:
    mean, std = statistics(augment)
    ends = [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(list(mean), list(std)),
    ]
    pipeline: Transform = v2.Compose([*steps, *ends])
    return pipeline
