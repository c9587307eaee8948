"""Evaluation transform of a trained model, for images of any size."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ltbench.data import DATASETS
from ltbench.data.augment import finish
from ltbench.data.base import DatasetConfig
from ltbench.data.codecs import eight_bits
from ltbench.data.decode import resized_centre
from ltbench.data.files import ImageOptions
from ltbench.data.pipelines import ENCODERS, Channels, HostDecoder, Interpolation


@dataclass(frozen=True)
class Preprocessing:
    """Evaluation transform of a model: resize, centre crop, scale to [0, 1], normalise.

    The pixels are those of evaluation on the model's data set, bit for bit, unless images were
    decoded on the GPU there (``data.decode=cuda``). It can be pickled, and
    used as the ``transform`` of a torch or torchvision data set.

    Args:
        image_size: side of the crop in pixels.
        resize: length of the short side before the crop, in pixels, at least ``image_size``.
        mean: mean of each channel of pixels in [0, 1] [3].
        std: standard deviation of each channel [3].
        decode: ``"fast"`` resizes as torch does, ``"pil"`` as Pillow does.
        interpolation: of the resizing, with antialiasing.
    """

    image_size: int
    resize: int
    mean: Channels
    std: Channels
    decode: HostDecoder = "fast"
    interpolation: Interpolation = "bilinear"

    def __call__(self, image: Image.Image) -> Tensor:
        """Return a Pillow image of any size and mode as a normalised tensor.

        Returns:
            float32 [3, image_size, image_size].

        Raises:
            ValueError: the image has 32 bits per channel.
        """
        image.load()
        rgb = eight_bits(image).convert("RGB")
        if self.decode == "pil":
            mode = v2.InterpolationMode(self.interpolation)
            small = v2.functional.resize(rgb, [self.resize], interpolation=mode)
            cut = v2.functional.pil_to_tensor(v2.functional.center_crop(small, [self.image_size]))
            scaled = v2.functional.to_dtype(cut, torch.float32, scale=True)
            normal: Tensor = v2.functional.normalize(scaled, list(self.mean), list(self.std))
            return normal
        pixels = torch.from_numpy(np.array(rgb))
        out = torch.empty(3, self.image_size, self.image_size, dtype=torch.uint8)
        resized_centre(pixels, out, self.resize, self.interpolation)
        return finish(out[None], self.mean, self.std)[0].contiguous()

    def facts(self) -> dict[str, Any]:
        """Return the transform as plain data."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


def preprocessing_of(
    name: str, config: DatasetConfig, mean: Channels, std: Channels
) -> Preprocessing | None:
    """Return the evaluation transform of a data set, or ``None`` if its options name no size.

    Args:
        name: registered name of the data set.
        config: its options.
        mean: mean of each channel [3].
        std: standard deviation of each channel [3].
    """
    options: Any = config
    if isinstance(config, ImageOptions) or getattr(config, "augment", "") in ENCODERS:
        how: HostDecoder = "pil" if getattr(options, "decode", "fast") == "pil" else "fast"
        side, short = options.image_size, round(options.image_size * 256 / 224)
        return Preprocessing(side, short, mean, std, how, options.interpolation)
    size = getattr(config, "image_size", None) or DATASETS.facts(name).side
    return Preprocessing(size, size, mean, std) if size else None
