"""ResNets of the ImageNet type, as in the long-tailed literature."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

# The literature initialises like torchvision: the last norm of a block starts at 1, not at 0.
_INIT: dict[str, Any] = {"zero_init_last": False}

default_cfgs = generate_default_cfgs(
    {
        "resnet10_lt.untrained": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "conv1",
            "classifier": "fc",
        },
        "resnet34_cifar.untrained": {
            "url": "",
            "num_classes": 100,
            "input_size": (3, 32, 32),
            "pool_size": (4, 4),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2023, 0.1994, 0.2010),
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }
)


@register_model
def resnet10_lt(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-10: one basic block per group, 4.9 M parameters without classifier."""
    options = {"block": BasicBlock, "layers": (1, 1, 1, 1), **_INIT, **kwargs}
    net: nn.Module = build_model_with_cfg(ResNet, "resnet10_lt", pretrained, **options)
    return net


class SmallImageResNet(ResNet):
    """ResNet whose stem keeps the resolution: one 3x3 convolution of stride 1 and no pooling.

    Reference: the network of Alshammari et al., Long-Tailed Recognition via Weight Balancing, CVPR
        2022, arXiv:2203.14197, and of LOS on CIFAR.
    Departures: none known; the first convolution has PyTorch's default initial weights, as there.

    Args:
        options: of timm's ``ResNet``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        first: Any = self.conv1
        channels = first.in_channels, first.out_channels
        stem = nn.Conv2d(*channels, kernel_size=3, stride=1, padding=1, bias=False)
        self.add_module("conv1", stem)
        self.add_module("maxpool", nn.Identity())


@register_model
def resnet34_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 for 32-pixel images, 21.3 M parameters without classifier."""
    options = {"block": BasicBlock, "layers": (3, 4, 6, 3), **_INIT, **kwargs}
    net: nn.Module = build_model_with_cfg(SmallImageResNet, "resnet34_cifar", pretrained, **options)
    return net


def resnet10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-10 of the ImageNet-LT experiments, `resnet10_lt` in timm (its `resnet10t` differs)."""
    net: nn.Module = resnet10_lt(pretrained, **kwargs)
    return net


def resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50; pretrained weights are torchvision's first (`tv_in1k`), as in the literature."""
    return _timm("resnet50.tv_in1k", pretrained, kwargs)


def resnet152(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-152 of Places-LT; pretrained weights are torchvision's first (`tv_in1k`).

    Part of the literature starts from a conversion of Caffe's weights instead; published
    differences on Places-LT trace back to that choice.
    """
    return _timm("resnet152.tv_in1k", pretrained, kwargs)


def resnext50_32x4d(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNeXt-50 (32x4d); pretrained weights are torchvision's first (`tv_in1k`)."""
    return _timm("resnext50_32x4d.tv_in1k", pretrained, kwargs)


def _timm(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    net: nn.Module = timm.create_model(name, pretrained=pretrained, **{**_INIT, **options})
    return net
