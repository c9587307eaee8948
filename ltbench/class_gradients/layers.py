"""Class gradients of single layers, from what entered and the gradient of what left.

With batch statistics as constants the samples of a batch are independent, so class k's gradient
of a layer's parameter is that of the samples of class k alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from timm.layers.norm import LayerNorm as TimmLayerNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltbench import dist
from ltbench.backbones.batchnorm import SyncBatchNorm2d
from ltbench.class_gradients import patches
from ltbench.class_gradients.recorder import Call, normalises_by_batch
from ltbench.class_gradients.rows import ClassRows, Explicit, NormTerms, Products
from ltbench.class_gradients.segments import Segments
from ltbench.heads import CosineHead

PER_SAMPLE: set[type[nn.Module]] = {
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Conv1d,
    TimmLayerNorm,
    CosineHead,
}
"""Layers that treat samples independently; add your own to make them known."""

MEMORY_COST = 24  # multiplications in the time that it takes to write and read one number

Found = Iterator[tuple[Tensor, ClassRows]]  # a parameter and its class gradients
Rule = Callable[[Call, "Backward", bool], Found]


class Backward:
    """One backward pass in which samples are independent.

    Args:
        gradients: of what left each call, in at least single precision.
        segments: objectives of the samples.
    """

    def __init__(self, gradients: Mapping[Call, Tensor], segments: Segments) -> None:
        self.gradients, self.segments = gradients, segments
        self._norms: dict[Call, tuple[Tensor, Tensor]] = {}

    def norm_gradients(self, call: Call) -> tuple[Tensor, Tensor]:
        """Return this rank's class gradients of shift and scale of a batch normalisation [K, C]."""
        if call not in self._norms:
            assert call.statistics is not None
            z = self.gradients[call]
            spread = z * call.statistics.normalised
            bias, weight = (t.reshape(*t.shape[:2], -1).sum(2) for t in (z, spread))
            self._norms[call] = self.segments.sum(bias), self.segments.sum(weight)
        return self._norms[call]

    def norm_terms(self, norm: Call, means: Tensor, slopes: Tensor) -> NormTerms:
        """Return what a batch normalisation takes from the weight gradients of the layer before.

        Args:
            norm: the call of the batch normalisation.
            means: weight gradient of an output gradient of ones [C, ...].
            slopes: weight gradient of the normalised output [C, ...].
        """
        statistics = norm.statistics
        assert statistics is not None
        bias, weight = self.norm_gradients(norm)
        if statistics.synchronised:
            bias, weight = dist.sum_(bias.clone()), dist.sum_(weight.clone())
        share = statistics.slope / statistics.positions
        return NormTerms(bias * share, weight * share, means, slopes)


def rule_of(module: nn.Module) -> Rule | None:
    """Return how a layer's class gradients are found, or ``None`` for an unknown layer."""
    run = type(module).forward
    if run is nn.Conv2d.forward:
        plain = isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"
        return _conv if plain and not isinstance(module.padding, str) else None
    if run is nn.Linear.forward:
        return _linear
    if run in (_BatchNorm.forward, SyncBatchNorm2d.forward):
        return _norm if normalises_by_batch(module) else _local
    return _local if type(module) in PER_SAMPLE else None


def _conv(call: Call, backward: Backward, explicit: bool) -> Found:
    layer, z, segments = call.module, backward.gradients[call], backward.segments
    assert isinstance(layer, nn.Conv2d)
    norm, weight = call.normalised_by, layer.weight
    if weight.requires_grad:
        x, terms = call.x.to(z.dtype), None
        if norm is not None:
            same = z.new_ones((1, layer.groups, *z.shape[2:]))  # for all samples and channels
            means = patches.weight_gradient(layer, x.sum(0, keepdim=True), same)
            means = means.repeat_interleave(layer.out_channels // layer.groups, dim=0)
            slopes = patches.weight_gradient(layer, x, _normalised(norm).to(z.dtype))
            terms = backward.norm_terms(norm, means, slopes)
        positions = z[0, 0].numel()
        if not explicit and _products_pay(z.shape[0] * positions, layer, segments.size):
            u, grouped = patches.inputs(layer, x), patches.outputs(layer, z)
            members = segments.members(positions, like=z)
            yield weight, Products(u, grouped, members, terms, weight.shape)
        else:
            rows = patches.by_class(layer, x[segments.order], z[segments.order], segments)
            if terms is not None:
                terms.subtract_from(rows)
            yield weight, _over_ranks(rows)
    if layer.bias is not None and layer.bias.requires_grad:
        yield layer.bias, _bias(z.sum((2, 3)), norm, segments)


def _linear(call: Call, backward: Backward, explicit: bool) -> Found:
    layer, z, segments = call.module, backward.gradients[call], backward.segments
    assert isinstance(layer, nn.Linear)
    norm = call.normalised_by if z.dim() == 2 else None  # channels last, otherwise
    x = call.x.to(z.dtype)
    z, x = z.reshape(len(z), -1, z.shape[-1]), x.reshape(len(x), -1, x.shape[-1])
    shape = layer.weight.shape
    if layer.weight.requires_grad:
        terms = None
        if norm is not None:
            means = x.sum((0, 1)).expand(shape)
            slopes = _normalised(norm).to(z.dtype).T @ x[:, 0]
            terms = backward.norm_terms(norm, means, slopes)
        tokens = z.shape[1]
        if not explicit and _products_pay(len(z) * tokens, layer, segments.size):
            members = segments.members(tokens, like=z)
            u, flat = x.flatten(0, 1)[None], z.flatten(0, 1)[None]
            yield layer.weight, Products(u, flat, members, terms, shape)
        else:
            rows = z.new_zeros((segments.size, *shape))
            xs, zs = x[segments.order], z[segments.order]
            for k, a, b in segments.bounds:
                torch.mm(zs[a:b].flatten(0, 1).T, xs[a:b].flatten(0, 1), out=rows[k])
            if terms is not None:
                terms.subtract_from(rows)
            yield layer.weight, _over_ranks(rows)
    if layer.bias is not None and layer.bias.requires_grad:
        yield layer.bias, _bias(z.sum(1), norm, segments)


def _norm(call: Call, backward: Backward, explicit: bool) -> Found:
    layer = call.module
    bias, weight = backward.norm_gradients(call)
    for p, rows in ((layer._parameters["weight"], weight), (layer._parameters["bias"], bias)):
        if p is not None and p.requires_grad:
            yield p, _over_ranks(rows)


def _local(call: Call, backward: Backward, explicit: bool) -> Found:
    """Run the layer again on the samples of each class and differentiate that."""
    layer, z, segments = call.module, backward.gradients[call], backward.segments
    wanted = [p for p in layer._parameters.values() if p is not None and p.requires_grad]
    rows = [z.new_zeros((segments.size, *p.shape)) for p in wanted]
    x = call.x.to(z.dtype)
    for k, a, b in segments.bounds:
        chosen = segments.order[a:b]
        with torch.enable_grad():
            y = layer(x[chosen])
        for row, g in zip(rows, torch.autograd.grad(y, wanted, z[chosen]), strict=True):
            row[k] = g
    for p, row in zip(wanted, rows, strict=True):
        yield p, _over_ranks(row)


def full(gradient: Tensor) -> Tensor:
    """Return a gradient in at least single precision."""
    half = gradient.dtype in (torch.float16, torch.bfloat16)
    return gradient.float() if half else gradient


def _bias(z: Tensor, norm: Call | None, segments: Segments) -> Explicit:
    """Class gradients of a bias, whose exact value is 0 where the mean is taken off afterwards."""
    rows = segments.sum(z)
    return _over_ranks(rows if norm is None else torch.zeros_like(rows))


def _normalised(norm: Call) -> Tensor:
    assert norm.statistics is not None
    return norm.statistics.normalised


def _over_ranks(rows: Tensor) -> Explicit:
    return Explicit(dist.sum_(rows))


def _products_pay(positions: int, layer: nn.Conv2d | nn.Linear, size: int) -> bool:
    """Whether inner products of positions are cheaper than a row per class."""
    if dist.world() > 1:
        return False
    channels, inputs = len(layer.weight), layer.weight[0].numel()
    channels //= layer.groups if isinstance(layer, nn.Conv2d) else 1
    pairs = positions**2 * (channels + inputs)
    return pairs < (positions + MEMORY_COST * size + size**2) * channels * inputs
