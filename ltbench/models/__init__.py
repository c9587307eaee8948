"""Backbones; importing this package registers ours in timm without importing timm itself."""

from __future__ import annotations

from typing import Any

from ltbench.config.registry import Part, Registry
from ltbench.models import timm_hook

timm_hook.install()

# Ours only; all timm models are accepted as backbones too.
BACKBONES: Registry[Any] = Registry(
    "backbone",
    {
        "resnet20_cifar": Part("ltbench.models.cifar_resnet:resnet20_cifar", title="ResNet-20"),
        "resnet32_cifar": Part("ltbench.models.cifar_resnet:resnet32_cifar", title="ResNet-32"),
        "resnet44_cifar": Part("ltbench.models.cifar_resnet:resnet44_cifar", title="ResNet-44"),
        "resnet56_cifar": Part("ltbench.models.cifar_resnet:resnet56_cifar", title="ResNet-56"),
        "resnet32_tinyimagenet": Part(
            "ltbench.models.tinyimagenet_resnet:resnet32_tinyimagenet",
            title="ResNet-32 (projections)",
        ),
        "efficientnet_lite0": Part(
            "ltbench.models.efficientnet_lite:efficientnet_lite0",
            title="EfficientNet-Lite0",
        ),
        "efficientnet_lite1": Part(
            "ltbench.models.efficientnet_lite:efficientnet_lite1",
            title="EfficientNet-Lite1",
        ),
        "efficientnet_lite2": Part(
            "ltbench.models.efficientnet_lite:efficientnet_lite2",
            title="EfficientNet-Lite2",
        ),
        "resnet34_cifar": Part("ltbench.models.resnet:resnet34_cifar", title="ResNet-34"),
        "resnet10": Part("ltbench.models.resnet:resnet10", title="ResNet-10"),
        "resnet50": Part("ltbench.models.resnet:resnet50", title="ResNet-50"),
        "resnet152": Part("ltbench.models.resnet:resnet152", title="ResNet-152"),
        "resnext50_32x4d": Part("ltbench.models.resnet:resnext50_32x4d", title="ResNeXt-50"),
    },
)
