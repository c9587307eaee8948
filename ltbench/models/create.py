"""Untrained classifiers by name."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from torch import nn

from ltbench.errors import UserError, brief
from ltbench.models.backbone import create_backbone
from ltbench.models.heads import CosineHead, LinearHead


def create_model(name: str, *, num_classes: int, head: str = "linear", **args: Any) -> nn.Module:
    """Return an untrained classifier: images [B, 3, H, W] to logits [B, C].

    Args:
        name: a registered backbone or any timm model name.
        num_classes: number of classes C.
        head: ``linear`` or ``cosine``.
        args: ``pretrained``, ``weights`` and further arguments of timm's ``create_model``.

    Raises:
        UserError: the name or head is unknown, or the number of classes is not positive.
    """
    heads: dict[str, type[nn.Module]] = {"linear": LinearHead, "cosine": CosineHead}
    if head not in heads:
        raise UserError(f"`head`: expected linear or cosine, found `{head}`")
    if not isinstance(num_classes, Integral) or num_classes < 1:
        raise UserError(f"`num_classes`: expected a whole number >= 1, found {brief(num_classes)}")
    backbone = create_backbone(name, **args)
    return nn.Sequential(backbone, heads[head](backbone.num_features, num_classes))
