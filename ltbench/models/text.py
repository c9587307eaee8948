"""Text features of image-text encoders, by OpenCLIP (`pip install 'ltbench[text]'`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ltbench.errors import UserError, did_you_mean, visible
from ltbench.remote.hub import offline_unless_reachable

ENCODERS = {  # image encoders of timm, and OpenCLIP's names of model and weights
    "vit_base_patch32_clip_quickgelu_224.openai": ("ViT-B-32-quickgelu", "openai"),
    "vit_base_patch16_clip_quickgelu_224.openai": ("ViT-B-16-quickgelu", "openai"),
    "vit_large_patch14_clip_quickgelu_224.openai": ("ViT-L-14-quickgelu", "openai"),
    "vit_large_patch14_clip_quickgelu_336.openai": ("ViT-L-14-336-quickgelu", "openai"),
    "vit_base_patch16_clip_224.laion2b": ("ViT-B-16", "laion2b_s34b_b88k"),
}
BATCH = 256  # sentences per forward pass


@torch.no_grad()
def text_features(
    sentences: Sequence[str], encoder: str, *, weights: str | None = None, device: str = "cpu"
) -> Tensor:
    """Return the text features of sentences in the space that they share with images.

    Args:
        sentences: one for each class [C].
        encoder: name of the image encoder in timm, one of ``ENCODERS``.
        weights: file of OpenCLIP's weights; ``None`` fetches the public ones.
        device: device of the text encoder.

    Returns:
        float32 [C, E], on the CPU.

    Raises:
        UserError: the encoder is not known, OpenCLIP is not installed, or its weights cannot be
            loaded.
    """
    if encoder not in ENCODERS:
        raise UserError(
            f"`encoder`: no text encoder is known for `{visible(encoder)}`"
            f"{did_you_mean(encoder, ENCODERS)}; known are {', '.join(ENCODERS)}"
        )
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            f"text features need OpenCLIP ({error}): pip install 'ltbench[text]'"
        ) from error
    name, tag = ENCODERS[encoder]
    try:
        with offline_unless_reachable():
            model = open_clip.create_model(name, pretrained=weights or tag, device=device).eval()
    except Exception as error:  # errors of its clients have no common base
        cause = visible(str(error).strip().partition("\n")[0], 200)
        raise UserError(
            f"OpenCLIP's weights {name}/{tag} could not be loaded ({cause}); they need a network "
            "or a filled cache: check it, or give weights=FILE"
        ) from error
    tokens = open_clip.get_tokenizer(name)(list(sentences))
    parts = [model.encode_text(part.to(device)).float().cpu() for part in tokens.split(BATCH)]
    return torch.cat(parts)
