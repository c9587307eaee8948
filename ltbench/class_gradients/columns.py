"""Sampled columns of a weight, and the layer inputs that they multiply."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn import functional as F

Weighted = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Columns:
    """Sampled columns of a weight [C, D, ...] whose class gradients are computed.

    A column belongs to one input channel at one tap of the kernel. Inner products of class
    gradients over the sampled columns, times ``scale``, approximate those over all: neighbouring
    taps of a kernel see nearly the same features, and many input channels are alike.

    Args:
        step: stride over the input channels of a group.
        taps: whether all taps of the kernel are used, or only its centre.
        scale: number of columns per sampled column.
    """

    step: int
    taps: bool
    scale: float

    @classmethod
    def choose(cls, layer: Weighted, limit: int | None) -> Columns:
        """Sample at most ``limit`` columns of a layer, evenly spaced; ``None`` is all of them."""
        depth, places = layer.weight.shape[1], layer.weight[0, 0].numel()
        if limit is None:
            return cls(1, True, 1.0)
        step = math.ceil(depth / limit)
        return cls(step, places == 1, depth * places / len(range(0, depth, step)))

    def inputs(self, layer: Weighted, x: Tensor, size: torch.Size) -> Tensor:
        """Return the inputs that the columns multiply, by output position [B, P, G, columns].

        Args:
            layer: with G groups of channels; 1 for a linear layer.
            x: input of the layer [B, D, height, width], or [B, ..., D].
            size: shape of its output, with P positions.
        """
        if isinstance(layer, nn.Linear):
            places = math.prod(x.shape[1:-1])
            return x.reshape(len(x), places, 1, x.shape[-1])[..., :: self.step]
        if isinstance(layer, Conv2dSame) or getattr(layer, "same_pad", False):  # `padding` is 0
            sides = layer.kernel_size, layer.stride, layer.dilation
            x = pad_same(x, *sides)  # type: ignore[arg-type]
        if self.taps and layer.weight[0, 0].numel() > 1:
            options = layer.kernel_size, layer.dilation, layer.padding, layer.stride
            patches = F.unfold(x, *options)  # type: ignore[arg-type]
            split: Tensor = torch.unflatten(patches, 1, (layer.groups, -1))
            return split.permute(0, 3, 1, 2)
        seen = _at_centre(layer, x, size).permute(0, 2, 3, 1)
        places = math.prod(seen.shape[1:3])
        split = seen.reshape(len(x), places, layer.groups, layer.weight.shape[1])
        return split[..., :: self.step]


def outputs(layer: Weighted, z: Tensor) -> Tensor:
    """Reshape a tensor of the output's shape to [B, positions, G, C / G]."""
    if isinstance(layer, nn.Linear):
        return z.reshape(len(z), math.prod(z.shape[1:-1]), 1, z.shape[-1])
    places, groups = math.prod(z.shape[2:]), layer.groups
    return z.permute(0, 2, 3, 1).reshape(len(z), places, groups, z.shape[1] // groups)


def _centre(places: int) -> int:
    return (places - 1) // 2


def _at_centre(layer: nn.Conv2d, x: Tensor, size: torch.Size) -> Tensor:
    """Return the input under the kernel's centre at each output position [B, D, ...]."""
    padding = layer.padding
    assert not isinstance(padding, str)
    for axis in (0, 1):
        at = _centre(layer.kernel_size[axis]) * layer.dilation[axis] - padding[axis]
        step, count = layer.stride[axis], size[2 + axis]
        beyond = at + (count - 1) * step + 1 - x.shape[2 + axis]
        if at < 0 or beyond > 0:
            edge = (max(-at, 0), max(beyond, 0))
            x = F.pad(x, edge if axis == 1 else (0, 0, *edge))
            at = max(at, 0)
        x = x.narrow(2 + axis, at, (count - 1) * step + 1)
    return x[:, :, :: layer.stride[0], :: layer.stride[1]]
