"""ResNets for 32-pixel images with timm's interface; importing this registers them in timm."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.layers.classifier import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.errors import UserError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Where the shape changes, the parameter-free shortcut (option A, ``pad``) keeps every second
    pixel and pads the channels with zeros, half on each side; the other (option B,
    ``projection``) is a strided 1x1 convolution and a normalisation.

    Args:
        in_channels: number of input channels.
        channels: number of output channels.
        stride: stride of the first convolution.
        shortcut: ``pad`` or ``projection``.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: str = "pad") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.pad = (channels - in_channels) // 2
        self.shortcut: nn.Module | None = None
        if shortcut == "projection" and (stride > 1 or channels != in_channels):
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, channels, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1 or self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet of the CIFAR experiments: three groups of 16, 32 and 64 channels.

    Reference: He et al., Deep Residual Learning for Image Recognition, CVPR 2016,
        arXiv:1512.03385, section 4.2; initialisation as in Cao et al., NeurIPS 2019 (LDAM-DRW).
    Departures: none known. The ResNet-32 of PLOT and CC-SAM uses 14 blocks, this one 15.

    Args:
        depth: 6 n + 2 weight layers with n blocks per group.
        num_classes: number of classes C; 0 omits the classifier.
        in_chans: number of channels of the images.
        global_pool: timm's name of the pooling.
        widths: channels of the three groups; experts of RIDE and SADE have 16, 24 and 48.
        shortcut: ``pad`` (option A) or ``projection`` (option B), see ``BasicBlock``.
    """

    global_pool: nn.Module

    def __init__(
        self,
        depth: int = 32,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        widths: Sequence[int] = (16, 32, 64),
        shortcut: str = "pad",
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"a CIFAR ResNet has depth 6 n + 2 (20, 32, 44, 56, ...), not {depth}")
        blocks = (depth - 2) // 6
        if len(widths) != 3 or any(b < a or (b - a) % 2 for a, b in pairwise(widths)):
            raise UserError(f"`widths`: expected three even, rising numbers, found {list(widths)}")
        if shortcut not in ("pad", "projection"):
            raise UserError(f"`shortcut`: expected pad or projection, found `{shortcut}`")
        first, second, third = widths
        self.num_features = self.head_hidden_size = third
        self.conv1 = nn.Conv2d(in_chans, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.act1 = nn.ReLU()
        self.layer1 = _group(blocks, first, first, 1, shortcut)
        self.layer2 = _group(blocks, first, second, 2, shortcut)
        self.layer3 = _group(blocks, second, third, 2, shortcut)
        self.apply(_initialise)
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self) -> nn.Module:
        """Return the classifier, or an identity if there is none."""
        classifier: nn.Module = self.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one, and the pooling if given."""
        self.num_classes = num_classes
        pool_type: Any = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=pool_type
        )
        self.fc.apply(_initialise)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return features before pooling [B, 64, H / 4, W / 4]."""
        x = self.act1(self.bn1(self.conv1(x)))
        features: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits [B, C], or pooled features [B, 64] with ``pre_logits``."""
        pooled: Tensor = self.global_pool(x)
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, C] for images [B, in_chans, H, W]."""
        return self.forward_head(self.forward_features(x))


def map_public_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a public CIFAR ResNet under our names.

    A leading ``module.`` is dropped and ``linear`` becomes ``fc``; batch counters missing in old
    files start at zero.

    Args:
        state: state dict of a ResNet with option-A shortcuts, with or without classifier.

    Raises:
        UserError: the names or shapes are not those of such a network.
    """
    renamed = {
        re.sub(r"^linear\.", "fc.", re.sub(r"^(module\.)+", "", name)): tensor
        for name, tensor in state.items()
    }
    blocks = {name.split(".")[1] for name in renamed if re.match(r"layer1\.\d+\.", name)}
    if not blocks or "conv1.weight" not in renamed:
        raise UserError(
            "weights of a CIFAR ResNet must have `conv1.weight` and `layer1.0.conv1.weight`; "
            f"found {', '.join(sorted(renamed)[:3]) or 'nothing'}"
        )
    with torch.device("meta"):
        expected = CifarResNet(
            6 * len(blocks) + 2,
            num_classes=len(renamed["fc.weight"]) if "fc.weight" in renamed else 0,
            in_chans=renamed["conv1.weight"].shape[1],
        ).state_dict()
    for name, like in expected.items():
        if name.endswith("num_batches_tracked"):
            renamed.setdefault(name, torch.zeros((), dtype=torch.int64))
        if name not in renamed:
            raise UserError(f"weights of a CIFAR ResNet-{6 * len(blocks) + 2} lack `{name}`")
        if renamed[name].shape != like.shape:
            raise UserError(
                f"`{name}` must have shape {list(like.shape)}, found {list(renamed[name].shape)}"
            )
    foreign = [name for name in renamed if name not in expected]
    if foreign:
        raise UserError(
            f"`{foreign[0]}` is no part of a CIFAR ResNet with option-A shortcuts "
            f"({len(foreign)} such names); these are weights of another network"
        )
    return renamed


def renumber_appended(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights for our network from one whose shortcuts append new channels after the old.

    Ours put half of them on each side. The two networks are equal up to a permutation of the
    residual channels, which is applied to all layers that read or write these channels.

    Args:
        state: state dict of the other network under our names, with or without classifier.
    """
    found = dict(state)
    order = torch.arange(len(state["conv1.weight"]))  # the other network's channel at each place
    for group in ("layer1", "layer2", "layer3"):
        entering, size = order, len(state[f"{group}.0.conv2.weight"])
        old, pad = len(order), (size - len(order)) // 2
        order = torch.cat([torch.arange(old, old + pad), order, torch.arange(old + pad, size)])
        for name in state:
            if not name.startswith(f"{group}."):
                continue
            _, block, layer, kind = name.split(".")
            if layer == "conv1":
                found[name] = state[name][:, entering if block == "0" else order]
            elif layer in ("conv2", "bn2") and kind != "num_batches_tracked":
                found[name] = state[name][order]
    if "fc.weight" in state:
        found["fc.weight"] = state["fc.weight"][:, order]
    return found


def _group(
    blocks: int, in_channels: int, channels: int, stride: int, shortcut: str
) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)


def _cfg() -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2023, 0.1994, 0.2010),
        "first_conv": "conv1",
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs(
    {f"resnet{depth}_cifar.untrained": _cfg() for depth in (20, 32, 44, 56)}
)


def _create(name: str, depth: int, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    net: nn.Module = build_model_with_cfg(CifarResNet, name, pretrained, depth=depth, **options)
    return net


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20 for 32-pixel images, 0.27 M parameters."""
    return _create("resnet20_cifar", 20, pretrained, kwargs)


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-32 for 32-pixel images, 0.46 M parameters."""
    return _create("resnet32_cifar", 32, pretrained, kwargs)


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-44 for 32-pixel images, 0.66 M parameters."""
    return _create("resnet44_cifar", 44, pretrained, kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-56 for 32-pixel images, 0.85 M parameters."""
    return _create("resnet56_cifar", 56, pretrained, kwargs)
