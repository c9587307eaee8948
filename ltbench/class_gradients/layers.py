"""Class gradients of single layers, from their inputs and output gradients.

With batch statistics as constants the samples of a batch are independent, so class k's gradient
of a layer's parameter is the sum of those of its samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers.norm import LayerNorm as TimmLayerNorm
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ltbench.class_gradients.columns import Columns, Weighted, outputs
from ltbench.class_gradients.recorder import Call, normalises_by_batch
from ltbench.distributed import ranks
from ltbench.models.batchnorm import SyncBatchNorm2d
from ltbench.models.heads import CosineHead, ScaledHead

PER_SAMPLE: set[type[nn.Module]] = {
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Conv1d,
    TimmLayerNorm,
    LayerNorm2d,
    CosineHead,
    ScaledHead,
}
"""Layers that treat samples independently; add your own here."""

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
        gradients: gradient of each call's output, in at least single precision.
        limit: maximum number of columns of a weight; ``None`` is all.
        place: objective of each sample [B] in a pass with constant batch statistics; ``None`` is
            an ordinary pass, whose only objective is the sum.
        size: number of objectives K.
    """

    def __init__(
        self,
        gradients: Mapping[Call, Tensor],
        limit: int | None,
        place: Tensor | None = None,
        size: int = 1,
    ) -> None:
        self.gradients, self.place, self.size, self.limit = gradients, place, size, limit
        self._norms: dict[Call, Tensor] = {}

    def sum(self, values: Tensor) -> Tensor:
        """Sum per-sample values [B, ...] by objective [K, ...]."""
        if self.place is None:
            return values.sum(0, keepdim=True)
        out = values.new_zeros((self.size, *values.shape[1:]))
        return out.index_add_(0, self.place, values)

    def sum_of_products(self, left: Tensor, seen: Tensor) -> Tensor:
        """Sum outer products ``left x seen`` over positions and samples by objective [K, C, n].

        Args:
            left: [B, positions, G, C / G].
            seen: [B, positions, G, n].
        """
        if self.place is None:
            return torch.einsum("bpgc,bpgd->gcd", left, seen).flatten(0, 1)[None]
        channels, columns = left.shape[2] * left.shape[3], seen.shape[3]
        out = left.new_zeros((self.size, channels, columns))
        count = max(1, CHUNK // (channels * columns * left.element_size()))
        parts = (torch.split(t, count) for t in (left, seen, self.place))
        for z, x, place in zip(*parts, strict=True):
            out.index_add_(0, place, torch.einsum("bpgc,bpgd->bgcd", z, x).flatten(1, 2))
        return out

    def norm_gradients(self, call: Call) -> Tensor:
        """Return this rank's class gradients of a normalisation's shift and scale [K, 2, C]."""
        if call not in self._norms:
            assert call.statistics is not None
            z, normalised = (
                by_place(t) for t in (self.gradients[call], call.statistics.normalised)
            )
            pair = torch.stack([z.sum(1), (z * normalised).sum(1)], dim=1)
            self._norms[call] = self.sum(pair)
        return self._norms[call]


LayerRows = Iterator[ClassRows]
Rule = Callable[[Call, Backward], LayerRows]


def rule_of(module: nn.Module) -> Rule | None:
    """Return the rule for the class gradients of a layer, or ``None`` for an unknown layer."""
    run = type(module).forward
    if isinstance(module, nn.Conv2d) and run is nn.Conv2d.forward:
        plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return _weighted if plain else None
    if run is nn.Linear.forward:
        return _weighted
    if run in (_BatchNorm.forward, SyncBatchNorm2d.forward):
        return _norm if normalises_by_batch(module) else _per_sample
    return _per_sample if type(module) in PER_SAMPLE else None


def _weighted(call: Call, backward: Backward) -> LayerRows:
    layer, z = call.module, backward.gradients[call]
    assert isinstance(layer, Weighted)
    features = 4 if isinstance(layer, nn.Conv2d) else 2  # otherwise channels come last, not second
    after_norm = call.normalised_by if z.dim() == features and backward.place is not None else None
    left = outputs(layer, z)
    if layer.weight.requires_grad:
        columns = Columns.choose(layer, backward.limit)
        seen = columns.inputs(layer, call.x.to(z.dtype), z.shape)
        rows = backward.sum_of_products(left, seen)
        if after_norm is not None:
            rows -= _through_norm(layer, after_norm, seen, backward)
        yield ClassRows(
            layer.weight,
            rows.flatten(1),
            columns.scale,
        )
    if layer.bias is not None and layer.bias.requires_grad:
        rows = backward.sum(left.sum(1).flatten(1))
        # A normalisation removes the shift before it, whose exact gradient is 0.
        yield ClassRows(layer.bias, rows if after_norm is None else torch.zeros_like(rows))


def _through_norm(layer: Weighted, norm: Call, seen: Tensor, backward: Backward) -> Tensor:
    """Return the correction of class gradients for the following batch normalisation [K, C, n].

    Its exact backward pass subtracts from each output gradient its mean and its projection onto
    the normalised output, both over all samples, those of other classes included.
    """
    statistics = norm.statistics
    assert statistics is not None
    both = backward.norm_gradients(norm)
    if statistics.synchronised:
        both = ranks.all_reduce_(both.clone())
    shift, scale = (both * (statistics.slope / statistics.positions)).unbind(dim=1)
    normalised = outputs(layer, statistics.normalised.to(seen.dtype))
    along = torch.einsum("bpgc,bpgd->gcd", normalised, seen).flatten(0, 1)
    means = seen.sum((0, 1)).repeat_interleave(normalised.shape[3], dim=0)
    return shift[:, :, None] * means + scale[:, :, None] * along


def _norm(call: Call, backward: Backward) -> LayerRows:
    layer = call.module
    shift, scale = backward.norm_gradients(call).unbind(dim=1)
    for p, rows in ((layer._parameters["weight"], scale), (layer._parameters["bias"], shift)):
        if p is not None and p.requires_grad:
            yield ClassRows(p, rows)


def _per_sample(call: Call, backward: Backward) -> LayerRows:
    """Differentiate the layer by itself, per sample."""
    layer, z = call.module, backward.gradients[call]
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
        yield ClassRows(wanted[name], backward.sum(found).flatten(1))


def by_place(features: Tensor) -> Tensor:
    """Reshape features [B, C, ...] to [B, positions, C], without a copy in the usual layouts."""
    return features.movedim(1, -1).reshape(len(features), -1, features.shape[1])
