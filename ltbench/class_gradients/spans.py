"""Where in a module its own parameters act, if other layers of it come before or after them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.layers.norm_act import BatchNormAct2d
from timm.models.convnext import ConvNeXtBlock
from timm.models.swin_transformer import WindowAttention
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltbench.models.batchnorm import SyncBatchNorm2d, SyncBatchNormAct2d

BATCH_NORMS: tuple[Callable[..., Any], ...] = (
    _BatchNorm.forward,
    SyncBatchNorm2d.forward,
    BatchNormAct2d.forward,
    SyncBatchNormAct2d.forward,
)
"""Forward passes of batch normalisation whose backward pass is known."""


@dataclass(frozen=True)
class Span:
    """Part of a module's forward pass that its own parameters determine.

    Args:
        after: layer whose output the part starts from; ``None`` is the input of the module.
        before: layer that takes the output of the part.
    """

    after: str | None
    before: str


SPANS: dict[Callable[..., Any], Span] = {
    BatchNormAct2d.forward: Span(None, "drop"),
    SyncBatchNormAct2d.forward: Span(None, "drop"),
    ConvNeXtBlock.forward: Span("mlp", "drop_path"),
    WindowAttention.forward: Span("qkv", "softmax"),
}
"""By the module's ``forward``; other modules are their parameters' part as a whole."""


def span_of(module: nn.Module) -> Span | None:
    """Return the part of a module that its parameters determine; ``None`` is all of it."""
    return SPANS.get(type(module).forward)
