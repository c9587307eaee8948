"""Names and statistics of image pipelines, without importing torch."""

from __future__ import annotations

from typing import Literal

Channels = tuple[float, float, float]
Augment = Literal[
    "imagenet",
    "crop",
    "inat",
    "inat_jitter",
    "plain",
    "rand",
    "inat_rand",
    "sim",
    "sim_hue",
    "sim_rand",
    "sim_hue_rand",
]
MemoryAugment = Literal["none", "standard", "rotate", "strong", "sim", "sim_hue"]
Decoder = Literal["fast", "pil"]
Unreadable = Literal["raise", "replace"]

IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INAT_STATS = ((0.466, 0.471, 0.380), (0.195, 0.194, 0.192))


def statistics(augment: Augment) -> tuple[Channels, Channels]:
    """Return mean and standard deviation of each channel for a training pipeline."""
    return INAT_STATS if augment.startswith("inat") else IMAGENET_STATS
