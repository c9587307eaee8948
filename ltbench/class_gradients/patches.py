"""Weight gradients of convolutions, of all samples or of each class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from ltbench.class_gradients.segments import Segments

FEW = 512  # positions of a class below which one matrix product beats a call for a convolution


def weight_gradient(layer: nn.Conv2d, x: Tensor, z: Tensor) -> Tensor:
    """Return the weight gradient for inputs [B, ...] and output gradients [B, C', ...].

    C' may be any multiple of the layer's groups; the result is [C', D, height, width].
    """
    shape = (z.shape[1], *layer.weight.shape[1:])
    options: Any = (layer.stride, layer.padding, layer.dilation, layer.groups)
    found: Tensor = conv2d_weight(x, shape, z, *options)  # type: ignore[no-untyped-call]
    return found


def inputs(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Return what each output position sees, for each group of channels [G, B * positions, D]."""
    options: Any = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    u = F.unfold(x, *options)
    return u.view(len(x), layer.groups, -1, u.shape[2]).permute(1, 0, 3, 2).flatten(1, 2)


def outputs(layer: nn.Conv2d, z: Tensor) -> Tensor:
    """Return output gradients [B, C, ...] by group and position [G, B * positions, C / G]."""
    grouped: Tensor = torch.unflatten(z.flatten(2), 1, (layer.groups, -1))
    return grouped.permute(1, 0, 3, 2).flatten(1, 2)


def by_class(layer: nn.Conv2d, x: Tensor, z: Tensor, segments: Segments) -> Tensor:
    """Return the weight gradient of each class [K, C, D, height, width].

    Args:
        layer: the convolution.
        x: inputs, sorted by class.
        z: output gradients, sorted by class.
        segments: the classes.
    """
    positions = z.shape[2] * z.shape[3]
    if len(z) * positions < FEW * len(segments.bounds):
        return _by_products(layer, x, z, segments)
    rows = z.new_zeros((segments.size, *layer.weight.shape))
    for k, a, b in segments.bounds:
        rows[k] = weight_gradient(layer, x[a:b], z[a:b])
    return rows


def _by_products(layer: nn.Conv2d, x: Tensor, z: Tensor, segments: Segments) -> Tensor:
    """One matrix product per class; in memory, a weight is [C, height, width, D]."""
    channels, depth, height, width = layer.weight.shape
    groups, options = layer.groups, layer.padding
    assert not isinstance(options, str)
    last = F.pad(x.permute(0, 2, 3, 1), (0, 0, options[1], options[1], options[0], options[0]))
    last = last.contiguous()
    sample, row, column, one = last.stride()
    size = (len(x), *z.shape[2:], height, width, groups, depth)
    step_y, step_x = row * layer.stride[0], column * layer.stride[1]
    apart_y, apart_x = row * layer.dilation[0], column * layer.dilation[1]
    seen = last.as_strided(size, (sample, step_y, step_x, apart_y, apart_x, depth, one))
    seen = seen.permute(5, 0, 1, 2, 3, 4, 6)  # [G, B, ..., height, width, D]
    grouped: Tensor = torch.unflatten(z.permute(0, 2, 3, 1), 3, (groups, -1))
    left = grouped.permute(3, 0, 1, 2, 4).contiguous()
    rows = z.new_zeros((segments.size, groups, channels // groups, height * width * depth))
    for k, a, b in segments.bounds:
        u = seen[:, a:b].reshape(groups, -1, rows.shape[3])
        torch.bmm(left[:, a:b].flatten(1, 3).mT, u, out=rows[k])
    return rows.view(-1, channels, height, width, depth).permute(0, 1, 4, 2, 3)
