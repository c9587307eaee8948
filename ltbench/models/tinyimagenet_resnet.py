"""ResNet-32 of public Tiny-ImageNet weights, which differs from the CIFAR ResNets."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from timm.layers.classifier import create_classifier
from torch import nn
from torchvision.models.resnet import BasicBlock

from ltbench.errors import UserError
from ltbench.models.backbone import Backbone
from ltbench.models.stages import Stage

BLOCKS = 4  # of each group, after its first
WIDTHS = (16, 32, 64)


def resnet32_tinyimagenet(
    pretrained: bool = False, num_classes: int = 0, global_pool: str = "avg"
) -> Backbone:
    """ResNet-32 with projection shortcuts (option B) and a biased stem, 0.47 M parameters.

    For 32-pixel images, with the names of the public Tiny-ImageNet weights of L2T-ww, which
    `backbone.weights=FILE` takes as they are. `resnet32_cifar` has other shortcuts.

    Reference: He et al., Deep Residual Learning for Image Recognition, CVPR 2016,
        arXiv:1512.03385; Jang et al., Learning What and Where to Transfer, ICML 2019,
        arXiv:1905.05901, whose code trains it.
    Departures: none known.

    Args:
        pretrained: refused, since the weights are in no package.
        num_classes: must be 0; methods have a classifier of their own.
        global_pool: timm's name of the pooling.

    Raises:
        UserError: public weights are asked for by name.
    """
    if pretrained:
        raise UserError(
            "public weights of backbone `resnet32_tinyimagenet` come as a file only; give "
            "backbone.weights=FILE and leave backbone.pretrained out"
        )
    first, second, third = WIDTHS
    pool, _ = create_classifier(third, num_classes, pool_type=global_pool)
    modules: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(3, first, 3, padding=1),
        "bn1": nn.BatchNorm2d(first),
        "act1": nn.ReLU(),
        "block1": BasicBlock(first, first),
        "blocks2": _blocks(first),
        "block3": _reduced(first, second),
        "blocks4": _blocks(second),
        "block5": _reduced(second, third),
        "blocks6": _blocks(third),
        "pool": pool,
    }
    net = nn.Sequential(OrderedDict(modules))
    net.apply(_initialise)
    stages = (
        Stage("stem", ("conv1", "bn1", "act1")),
        Stage("layer1", ("block1", "blocks2")),
        Stage("layer2", ("block3", "blocks4")),
        Stage("layer3", ("block5", "blocks6", "pool")),
    )
    return Backbone(net, third, stages)


def _blocks(channels: int) -> nn.Sequential:
    return nn.Sequential(*(BasicBlock(channels, channels) for _ in range(BLOCKS)))


def _reduced(in_channels: int, channels: int) -> nn.Module:
    projection = nn.Sequential(
        nn.Conv2d(in_channels, channels, 1, stride=2, bias=False), nn.BatchNorm2d(channels)
    )
    block: nn.Module = BasicBlock(in_channels, channels, 2, projection)
    return block


def _initialise(module: Any) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
