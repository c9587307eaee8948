"""Layers that treat the samples of a batch independently, and are run on each by itself."""

from __future__ import annotations

from timm.layers import evo_norm, filter_response_norm, norm, norm_act
from timm.layers.grn import GlobalResponseNorm
from timm.layers.layer_scale import LayerScale, LayerScale2d
from timm.models import fastvit, metaformer
from torch import nn

from ltbench.models.adapters import Scale
from ltbench.models.heads import CosineHead, ScaledHead

PER_SAMPLE: set[type[nn.Module]] = {
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.Conv1d,
    nn.PReLU,
    CosineHead,
    ScaledHead,
    Scale,
    metaformer.Scale,
    fastvit.LayerScale2d,
    LayerScale,
    LayerScale2d,
    norm.LayerNorm,
    norm.LayerNorm2d,
    norm.LayerNormFp32,
    norm.LayerNorm2dFp32,
    norm.LayerNormExp2d,
    norm_act.LayerNormAct,
    norm_act.LayerNormAct2d,
    norm_act.LayerNormActFp32,
    norm_act.LayerNormAct2dFp32,
    norm.GroupNorm,
    norm.GroupNorm1,
    norm_act.GroupNormAct,
    norm_act.GroupNorm1Act,
    norm.RmsNorm,
    norm.RmsNorm2d,
    norm.RmsNormFp32,
    norm.RmsNorm2dFp32,
    norm_act.RmsNormAct,
    norm_act.RmsNormAct2d,
    norm.SimpleNorm,
    norm.SimpleNorm2d,
    GlobalResponseNorm,
    evo_norm.EvoNorm2dS0,
    evo_norm.EvoNorm2dS0a,
    evo_norm.EvoNorm2dS1,
    evo_norm.EvoNorm2dS1a,
    evo_norm.EvoNorm2dS2,
    evo_norm.EvoNorm2dS2a,
    filter_response_norm.FilterResponseNormTlu2d,
    filter_response_norm.FilterResponseNormAct2d,
}
"""Layers that treat samples independently; add your own here."""


def alone(module: nn.Module) -> bool:
    """Return True for a layer of ``PER_SAMPLE`` that can be run again.

    That takes a layer which keeps its input as it is and draws no random numbers.
    """
    if type(module) not in PER_SAMPLE or getattr(module, "inplace", False) is True:
        return False
    drop = getattr(module, "drop", None)
    return not module.training or drop is None or isinstance(drop, nn.Identity)
