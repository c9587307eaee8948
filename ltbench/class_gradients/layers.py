"""Class gradients of layers, from their inputs and output gradients.

With batch statistics as constants the samples of a batch are independent, so class k's gradient
of a layer's parameter is the sum of those of its samples. L alike layers are computed together on
a GPU, where small layers take as long as it takes to launch their kernels; on the CPU L is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.linear import Linear as TimmLinear
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.models.convnext import ConvNeXtBlock
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ltbench.class_gradients.columns import Columns, Weighted, outputs
from ltbench.class_gradients.per_sample import alone
from ltbench.class_gradients.recorder import (
    BatchStatistics,
    Call,
    normalises_by_batch,
)
from ltbench.class_gradients.spans import BATCH_NORMS, span_of
from ltbench.distributed import ranks
from ltbench.losses.precision import full

STANDARDISED = {StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame}
CHUNK = 32 * 2**20  # bytes of per-sample gradients in memory at once


@dataclass
class ClassRows:
    """Class gradients of one parameter, in all or some of its columns.

    Args:
        parameter: the parameter.
        rows: gradient of each class [K, n].
        scale: number of entries of the parameter per entry of a row.
    """

    parameter: Tensor
    rows: Tensor
    scale: float = 1.0


def zero_rows(layer: nn.Module, parameter: Tensor, limit: int | None, size: int) -> ClassRows:
    """Return zeros in the shape of a layer's class gradients, for a layer that did not run.

    Args:
        layer: owns the parameter and has a rule.
        parameter: the parameter.
        limit: maximum number of columns of a weight; ``None`` is all.
        size: number of rows.
    """
    weighted = rule_of(layer) is _weighted and parameter is layer._parameters["weight"]
    scale = Columns.choose(cast(Weighted, layer), limit).scale if weighted else 1.0
    kind = torch.promote_types(parameter.dtype, torch.float32)
    rows = parameter.new_zeros((size, round(parameter.numel() / scale)), dtype=kind)
    return ClassRows(parameter, rows, scale)


class Backward:
    """Output gradients of the recorded calls from one backward pass.

    Args:
        gradients: gradient of each call's output.
        limit: maximum number of columns of a weight; ``None`` is all.
        place: objective of each image in a pass with constant batch statistics; ``None`` is an
            ordinary pass, whose only objective is the sum.
        size: number of objectives K.
        windows: consecutive samples per image that a layer sees, where not 1.
    """

    def __init__(
        self,
        gradients: Mapping[Call, Tensor],
        limit: int | None,
        place: Tensor | None = None,
        size: int = 1,
        windows: Mapping[nn.Module, int] | None = None,
    ) -> None:
        self.gradients, self.place, self.size, self.limit = gradients, place, size, limit
        self._windows = windows or {}
        self._norms: dict[Call, Tensor] = {}

    def of(self, calls: Sequence[Call], shaped: Callable[[Tensor], Tensor]) -> Tensor:
        """Return reshaped output gradients of L calls, in at least single precision [L, ...]."""
        return full(stacked(shaped(self.gradients[call]) for call in calls))

    def place_of(self, calls: Sequence[Call], samples: int) -> Tensor:
        """Return the objective of each sample of alike calls, whose windows and views repeat."""
        assert self.place is not None
        place, windows = self.place, self._windows.get(calls[0].module, 1)
        if windows > 1:
            place = place.repeat_interleave(windows)
        return place if len(place) == samples else place.repeat(samples // max(1, len(place)))

    def sum(self, calls: Sequence[Call], values: Tensor) -> Tensor:
        """Sum per-sample values [B, ...] of alike calls by objective [K, ...]."""
        if self.place is None:
            return values.sum(0, keepdim=True)
        out = values.new_zeros((self.size, *values.shape[1:]))
        return out.index_add_(0, self.place_of(calls, len(values)), values)

    def sum_of_products(self, calls: Sequence[Call], left: Tensor, seen: Tensor) -> Tensor:
        """Sum outer products ``left x seen`` over positions and samples by objective [K, L, C, n].

        Args:
            calls: L alike calls.
            left: [L, B, positions, G, C / G].
            seen: [L, B, positions, G, n].
        """
        if self.place is None:
            return torch.einsum("lbpgc,lbpgd->lgcd", left, seen).flatten(1, 2)[None]
        layers, channels, columns = len(left), left.shape[3] * left.shape[4], seen.shape[4]
        out = left.new_zeros((self.size, layers, channels, columns))
        count = max(1, CHUNK // (layers * channels * columns * left.element_size()))
        parts = (torch.split(left, count, 1), torch.split(seen, count, 1))
        where = torch.split(self.place_of(calls, left.shape[1]), count)
        for z, x, place in zip(*parts, where, strict=True):
            products = torch.einsum("lbpgc,lbpgd->lbgcd", z, x).flatten(2, 3)
            out.index_add_(0, place, products.transpose(0, 1))
        return out

    def norm_gradients(self, calls: Sequence[Call]) -> Tensor:
        """Return this rank's class gradients of shift and scale of normalisations [K, L, 2, C]."""
        new = [call for call in calls if call not in self._norms]
        if new:
            z = self.of(new, by_place)
            seen = stacked(by_place(statistics_of(call).normalised) for call in new)
            pair = torch.stack([z.sum(2), (z * seen).sum(2)], dim=2)
            sums = self.sum(new, pair.transpose(0, 1))
            self._norms |= zip(new, sums.unbind(1), strict=True)
        return stacked((self._norms[call] for call in calls), 1)


LayerRows = Iterator[tuple[str, Tensor, float]]  # parameter's name, rows [K, L, n], scale
Rule = Callable[[Sequence[Call], Backward], LayerRows]


def stacked(tensors: Iterable[Tensor], dim: int = 0) -> Tensor:
    """Stack tensors; without a copy if there is one."""
    made = list(tensors)
    return made[0].unsqueeze(dim) if len(made) == 1 else torch.stack(made, dim)


def statistics_of(call: Call) -> BatchStatistics:
    """Return the statistics of a call of a normalisation."""
    assert call.statistics is not None
    return call.statistics


def rule_of(module: nn.Module) -> Rule | None:
    """Return the rule for the class gradients of a layer, or ``None`` for an unknown layer."""
    run = type(module).forward
    if isinstance(module, nn.Conv2d) and run in (nn.Conv2d.forward, Conv2dSame.forward):
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return _weighted if plain else _per_sample
    if run in (nn.Linear.forward, TimmLinear.forward):
        return _weighted
    if run in BATCH_NORMS:
        if normalises_by_batch(module):
            return _norm
        return _per_sample if span_of(module) is None else _norm_evaluated
    if type(module) in STANDARDISED:
        return _standardised
    if isinstance(module, ConvNeXtBlock) and run is ConvNeXtBlock.forward:
        return _block_scale
    if isinstance(module, WindowAttention) and run is WindowAttention.forward:
        return None if module.fused_attn else _position_bias
    return _per_sample if alone(module) else None


def alike(call: Call, z: Tensor) -> tuple[Any, ...]:
    """Return a key that calls have in common if a rule may take them together.

    Args:
        call: of a layer with a rule.
        z: gradient of its output.
    """
    layer, norm = call.module, call.normalised_by
    rule = rule_of(layer)
    if rule not in (_weighted, _norm):
        return (call,)
    kind = [type(layer), z.shape, z.dtype, call.x.shape, call.x.dtype]
    kind += [(n, p.shape, p.requires_grad) for n, p in layer._parameters.items() if p is not None]
    if isinstance(layer, nn.Conv2d):
        kind += [layer.stride, layer.padding, layer.dilation, layer.groups]
    kind += [None if norm is None else (type(norm.module), norm.x.shape)]
    return tuple(kind)


def _weighted(calls: Sequence[Call], backward: Backward) -> LayerRows:
    layer, like = calls[0].module, backward.gradients[calls[0]]
    assert isinstance(layer, Weighted)
    features = 4 if isinstance(layer, nn.Conv2d) else 2  # otherwise channels come last, not second
    norms = [call.normalised_by for call in calls if call.normalised_by is not None]
    after_norm = bool(norms) and like.dim() == features and backward.place is not None
    left = backward.of(calls, lambda z: outputs(layer, z))
    if layer.weight.requires_grad:
        columns = Columns.choose(layer, backward.limit)
        inputs = (columns.inputs(layer, call.x, like.shape) for call in calls)
        seen = stacked(inputs).to(left.dtype)
        rows = backward.sum_of_products(calls, left, seen)
        if after_norm:
            rows -= _through_norm(layer, norms, seen, backward)
        yield "weight", rows.flatten(2), columns.scale
    if layer.bias is not None and layer.bias.requires_grad:
        rows = backward.sum(calls, left.sum(2).flatten(2).transpose(0, 1))
        # A normalisation removes the shift before it, whose exact gradient is 0.
        yield "bias", torch.zeros_like(rows) if after_norm else rows, 1.0


def _through_norm(
    layer: Weighted, norms: Sequence[Call], seen: Tensor, backward: Backward
) -> Tensor:
    """Return the correction of class gradients for the following normalisations [K, L, C, n].

    Its exact backward pass subtracts from each output gradient its mean and its projection onto
    the normalised output, both over all samples, those of other classes included.
    """
    statistics = [statistics_of(norm) for norm in norms]
    both = backward.norm_gradients(norms)
    if statistics[0].synchronised:
        both = ranks.all_reduce_(both.clone())
    slope = stacked(one.slope for one in statistics)
    shift, scale = (both * (slope / statistics[0].positions)[:, None]).unbind(dim=2)
    values = (outputs(layer, one.normalised.to(seen.dtype)) for one in statistics)
    normalised = stacked(values)
    along = torch.einsum("lbpgc,lbpgd->lgcd", normalised, seen).flatten(1, 2)
    means = seen.sum((1, 2)).repeat_interleave(normalised.shape[4], dim=1)
    return shift[..., None] * means + scale[..., None] * along


def _norm(calls: Sequence[Call], backward: Backward) -> LayerRows:
    shift, scale = backward.norm_gradients(calls).unbind(dim=2)
    for name, rows in (("weight", scale), ("bias", shift)):
        p = calls[0].module._parameters[name]
        if p is not None and p.requires_grad:
            yield name, rows, 1.0


def _norm_evaluated(calls: Sequence[Call], backward: Backward) -> LayerRows:
    """Batch normalisation by running statistics."""
    (call,) = calls
    layer, z = call.module, full(backward.gradients[call])
    assert isinstance(layer, _BatchNorm)
    seen = F.batch_norm(call.x.to(z.dtype), layer.running_mean, layer.running_var, eps=layer.eps)
    for name, product in (("weight", z * seen), ("bias", z)):
        p = layer._parameters[name]
        if p is not None and p.requires_grad:
            yield name, backward.sum(calls, by_place(product).sum(1))[:, None], 1.0


def _standardised(calls: Sequence[Call], backward: Backward) -> LayerRows:
    """Convolution whose weight is normalised over the inputs of each output, in all columns."""
    (call,) = calls
    layer: Any = call.module
    z = backward.of(calls, lambda z: outputs(layer, z))
    seen = Columns.choose(layer, None).inputs(layer, call.x, backward.gradients[call].shape)
    rows = backward.sum_of_products(calls, z, seen.to(z.dtype)[None])  # of the normalised weight
    weight = layer.weight.detach().flatten(1).to(z.dtype)
    var, mean = torch.var_mean(weight, dim=1, correction=0, keepdim=True)
    inverse = (var + layer.eps).rsqrt()
    normalised = (weight - mean) * inverse
    along = (rows * normalised).sum(3, keepdim=True)
    if "gain" in layer._parameters:
        gain = layer.gain.detach().flatten(1).to(z.dtype)
        if layer.gain.requires_grad:
            yield "gain", (along * layer.scale).flatten(2), 1.0
        inverse = inverse * gain * layer.scale
    if layer.weight.requires_grad:
        across = rows - rows.mean(3, keepdim=True) - normalised * (along / weight.shape[1])
        yield "weight", (across * inverse).flatten(2), 1.0
    if layer.bias is not None and layer.bias.requires_grad:
        yield "bias", backward.sum(calls, z[0].sum(1).flatten(1))[:, None], 1.0


def _block_scale(calls: Sequence[Call], backward: Backward) -> LayerRows:
    """Scale of a ConvNeXt block's channels."""
    (call,) = calls
    layer, z = call.module, full(backward.gradients[call])
    assert isinstance(layer, ConvNeXtBlock)
    x = call.x if layer.use_conv_mlp else call.x.movedim(-1, 1)
    yield "gamma", backward.sum(calls, by_place(z * x).sum(1))[:, None], 1.0


def _position_bias(calls: Sequence[Call], backward: Backward) -> LayerRows:
    """Relative positions of a Swin block, from the gradient of the softmax's input [B, H, N, N]."""
    (call,) = calls
    layer = call.module
    assert isinstance(layer, WindowAttention)
    sums = backward.sum(calls, full(backward.gradients[call])).flatten(2).transpose(1, 2)
    rows = sums.new_zeros((len(sums), *layer.relative_position_bias_table.shape))
    rows.index_add_(1, layer.get_buffer("relative_position_index").view(-1), sums)
    yield "relative_position_bias_table", rows.flatten(1)[:, None], 1.0


def _per_sample(calls: Sequence[Call], backward: Backward) -> LayerRows:
    """Differentiate the layer by itself, per sample."""
    (call,) = calls
    layer, z = call.module, full(backward.gradients[call])
    wanted = {n: p for n, p in layer._parameters.items() if p is not None and p.requires_grad}
    call_layer: Any = torch.func.functional_call

    def product(values: dict[str, Tensor], x: Tensor, gradient: Tensor) -> Tensor:
        out: Tensor = call_layer(layer, values, (x[None],))
        return (out * gradient[None]).sum()

    size = sum(p.numel() for p in wanted.values()) * z.element_size()
    gradients: Any = torch.func.vmap(
        torch.func.grad(product), (None, 0, 0), chunk_size=max(1, CHUNK // max(1, size))
    )
    values = {n: p.detach().to(z.dtype) for n, p in wanted.items()}
    for name, found in gradients(values, call.x.to(z.dtype), z).items():
        yield name, backward.sum(calls, found).flatten(1)[:, None], 1.0


def by_place(features: Tensor) -> Tensor:
    """Reshape features [B, C, ...] to [B, positions, C], without a copy in the usual layouts."""
    return features.movedim(1, -1).reshape(len(features), -1, features.shape[1])
