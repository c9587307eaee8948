"""Names and statistics of image pipelines, without importing torch."""

from __future__ import annotations

from typing import Literal, get_args

Channels = tuple[float, float, float]
Augment = Literal[
    "imagenet",
    "crop",
    "inat",
    "inat_jitter",
    "plain",
    "rand",
    "inat_rand",
    "inat_sim",
    "sim",
    "sim_hue",
    "sim_rand",
    "sim_hue_rand",
    "clip",
    "half",
    "clip_minimalist",
    "half_minimalist",
]
EncoderAugment = Literal["clip", "half", "clip_minimalist", "half_minimalist"]
MemoryAugment = Literal[
    "none",
    "standard",
    "cutout",
    "rotate",
    "autoaugment",
    "strong",
    "sim",
    "sim_hue",
]
SmallAugment = Literal[MemoryAugment, EncoderAugment]  # of small images, enlarged by the latter
HostDecoder = Literal["fast", "pil"]
Decoder = Literal[HostDecoder, "cuda"]
Unreadable = Literal["raise", "replace"]
Interpolation = Literal["bilinear", "bicubic"]

ENCODERS = get_args(EncoderAugment)  # pipelines with the statistics of pretrained encoders
MINIMALIST = tuple(name for name in ENCODERS if name.endswith("minimalist"))
BATCHED = (  # also in ``augment``, batched
    *("imagenet", "crop", "inat", "inat_jitter", "plain"),
    *ENCODERS,
)
ENCODER_SIDE = 224  # of their images in pixels

IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INAT_STATS = ((0.466, 0.471, 0.380), (0.195, 0.194, 0.192))
CLIP_STATS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF_STATS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def statistics(augment: Augment) -> tuple[Channels, Channels]:
    """Return mean and standard deviation of each channel for a training pipeline."""
    if augment in ENCODERS:
        return CLIP_STATS if augment.startswith("clip") else HALF_STATS
    return INAT_STATS if augment.startswith("inat") else IMAGENET_STATS
