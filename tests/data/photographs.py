"""Photographs in small pieces, and a pipeline that changes them one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.datasets import load_sample_images

from ltbench.seeding import keyed_bits

N, HEIGHT, WIDTH = 48, 40, 32
PHOTOS = np.concatenate(
    [
        photo[y : y + 160 : 4, x : x + 128 : 4]
        for photo in load_sample_images().images
        for y in range(0, 240, 80)
        for x in range(0, 512, 64)
    ]
).reshape(N, HEIGHT, WIDTH, 3)
IMAGES = torch.from_numpy(PHOTOS)
SEEDS = keyed_bits(7, np.arange(250)) >> np.uint64(1)
MANY = torch.from_numpy(np.resize(PHOTOS, (len(SEEDS), HEIGHT, WIDTH, 3)).copy())


def image_by_image(pipeline: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return ``MANY`` after a pipeline that draws from torch's generator, a seed for each image."""
    done = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(MANY, SEEDS.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            done.append(pipeline(image.permute(2, 0, 1)).permute(1, 2, 0))
    return torch.stack(done)


def levels_apart(first: torch.Tensor, second: torch.Tensor) -> int:
    """Return the largest difference of grey levels."""
    return int((first.int() - second.int()).abs().max())
