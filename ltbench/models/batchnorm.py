"""Batch normalisation in frozen parts, in micro-batches and across ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.batchnorm import _BatchNorm

from ltbench.distributed import differentiable, ranks
from ltbench.errors import UserError
from ltbench.models.fused_norm import FusedNorm


def set_batchnorm_mode(module: nn.Module, mode: Literal["train", "eval"]) -> None:
    """Set all batch normalisation in a module to batch (train) or running (eval) statistics."""
    for layer in _layers(module):
        layer.training = mode == "train"  # not `train`, which reaches the layers inside it


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Context manager without updates of running statistics; outputs of layers are unchanged."""
    tracking = [layer for layer in _layers(module) if layer.track_running_stats]
    for layer in tracking:  # the layer's own switch for batch statistics without bookkeeping
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True


@contextmanager
def counted_together(module: nn.Module) -> Iterator[None]:
    """Context manager that counts the batches of all normalisations at once, on exit.

    A layer adds 1 to ``num_batches_tracked`` in each pass: one kernel per layer on a GPU, here one
    for all. The buffers end with the same values. Layers that read their count (``momentum=None``)
    keep it, and in a network with compiled passes all layers do.

    Args:
        module: the network.
    """
    counts: list[tuple[_BatchNorm, Tensor, _Count]] = []
    if not any("forward" in vars(inner) for inner in module.modules()):
        for layer in _layers(module):
            total = layer.num_batches_tracked
            if isinstance(total, Tensor) and layer.momentum is not None:
                counts.append((layer, total, _Count()))
    for layer, _, count in counts:
        vars(layer)["num_batches_tracked"] = count  # found before the buffer of this name
    try:
        yield
    finally:
        for layer, _, _ in counts:
            del vars(layer)["num_batches_tracked"]
        for passes in {count.passes for _, _, count in counts} - {0}:
            moved = [total for _, total, count in counts if count.passes == passes]
            torch._foreach_add_(moved, passes)


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Return the running means and variances that forward passes of a module update."""
    kept = [(layer.running_mean, layer.running_var) for layer in _layers(module) if layer.training]
    return [t for pair in kept for t in pair if t is not None]


def scale_and_shift(module: nn.Module) -> list[nn.Parameter]:
    """Return the scale and shift parameters of all batch normalisation in a module."""
    return [p for layer in _layers(module) for p in layer.parameters(recurse=False)]


class PartStatistics:
    """Running statistics of micro-batches that pass through a network one after another.

    Within a step each micro-batch updates its own copy of the statistics, as if it had its own
    rank; ``merge`` averages the copies, as over ranks. The result does not depend on the
    assignment of micro-batches to ranks.

    Args:
        module: the network; the modes of its layers must not change during a step.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._before: list[Tensor] = []
        self._after: dict[int, list[Tensor]] = {}

    @contextmanager
    def of(self, part: int) -> Iterator[None]:
        """Context manager in which forward passes update the statistics of one micro-batch."""
        tensors = self._tensors()
        if not self._after:
            self._before = [t.clone() for t in tensors]
        for t, own in zip(tensors, self._after.get(part, self._before), strict=True):
            t.data.copy_(own)  # a graph may hold `t`, though its gradients do not depend on it
        yield
        self._after[part] = [t.clone() for t in tensors]

    def merge(self) -> None:
        """Average the statistics over micro-batches, at the end of a step."""
        parts = [self._after[part] for part in sorted(self._after)]
        for t, *own in zip(self._tensors(), *parts, strict=True):
            t.data.copy_(torch.stack(own).mean(0) if t.is_floating_point() else own[-1])
        self._after = {}

    def _tensors(self) -> list[Tensor]:
        moving = [layer for layer in _layers(self.module) if layer.training]
        return [t for layer in moving for t in layer.buffers(recurse=False)]


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the global batch, on any device and backend.

    Ranks may hold different numbers of images, including none. All ranks must run the same
    forward and backward passes in the same order. On one rank it is ``nn.BatchNorm2d``, for
    features [B, C, ...] with any number of dimensions. On a GPU the kernels of
    ``nn.SyncBatchNorm`` compute it, except in forward-mode differentiation, which they lack.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected features [B, C, ...], got {input.dim()} dimension(s)")

    def forward(self, input: Tensor) -> Tensor:
        """Return normalised features of the same shape."""
        self._check_input_dim(input)
        if ranks.world() == 1 or not (self.training or self.running_mean is None):
            return super().forward(input)
        tracked = self.training and self.track_running_stats and self.running_mean is not None
        momentum = self._momentum_of_step() if tracked else 0.0
        if fused(input):
            running = (self.running_mean, self.running_var) if tracked else (None, None)
            scale_and_shift = self.weight, self.bias
            found: Tensor = FusedNorm.apply(input, *scale_and_shift, *running, momentum, self.eps)
            return found
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count, mean, var = global_moments(x)
        if tracked:
            self._track(count, mean.detach(), var.detach(), momentum)
        scale = (var + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shape = (1, -1, *(1,) * (x.dim() - 2))
        out = (x - mean.view(shape)) * scale.view(shape)
        out = out if self.bias is None else out + self.bias.view(shape)
        return out.to(input.dtype)

    def _momentum_of_step(self) -> float:
        """Count the batch, and return its weight in the running statistics."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum

    def _track(self, count: Tensor, mean: Tensor, var: Tensor, momentum: float) -> None:
        """Update the running statistics with those of the batch (unbiased variance)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        unbiased = var * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


class SyncBatchNormAct2d(SyncBatchNorm2d):
    """``SyncBatchNorm2d`` with timm's activation behind it, as in ``BatchNormAct2d``.

    The layers ``drop`` and ``act`` are those of the layer that it replaces.
    """

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Return normalised and activated features of the same shape."""
        out: Tensor = self.act(self.drop(super().forward(input)))
        return out


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replace batch normalisation by ``SyncBatchNorm2d``, in place, and return the module.

    timm's ``BatchNormAct2d``, which contains its activation, becomes ``SyncBatchNormAct2d``.

    Parameters, buffers and names in the state dict are kept. Call it before ``split``, not after.

    Raises:
        UserError: a layer is a custom batch normalisation.
    """
    return _convert(module, {})


def fused(x: Tensor) -> bool:
    """Return True if the kernels of a GPU normalise these features over ranks."""
    return x.device.type == "cuda" and forward_ad._current_level < 0


def global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return count, mean [C] and biased variance [C] of features [B, C, ...] over all ranks.

    Uses a single all-reduce: each rank writes its count, mean and squared deviations into its row
    of a table, and the rows are combined by Chan's parallel algorithm, which is numerically stable.
    """
    dims = [0, *range(2, x.dim())]
    channels = x.shape[1]
    count = x.numel() // channels
    mean = x.sum(dims) / max(count, 1)
    shape = (1, -1, *(1,) * (x.dim() - 2))
    squares = ((x - mean.view(shape)) ** 2).sum(dims)
    own = torch.cat([x.new_full((1,), float(count)), mean, squares])
    place = x.new_zeros((ranks.world(), 1))
    place[ranks.rank()] = 1
    table = differentiable.all_reduce(place * own)
    counts, means, deviations = table[:, :1], table[:, 1 : channels + 1], table[:, channels + 1 :]
    total = counts.detach().sum()
    overall = (counts * means).sum(0) / total
    between = (counts * (means - overall) ** 2).sum(0)
    return total, overall, (deviations.sum(0) + between) / total


class _Count:
    """Number of passes of a layer, on the host."""

    passes = 0

    def add_(self, passes: int) -> None:
        self.passes += passes


def _layers(module: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


def _convert(module: nn.Module, done: dict[int, nn.Module]) -> nn.Module:
    if id(module) in done:
        return done[id(module)]
    new = module
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm2d):
        new = _synchronised(module)
    done[id(module)] = new
    for name, child in module._modules.items():
        if child is not None:
            new._modules[name] = _convert(child, done)
    return new


def _synchronised(layer: _BatchNorm) -> SyncBatchNorm2d:
    kind = SyncBatchNormAct2d if type(layer) is BatchNormAct2d else SyncBatchNorm2d
    if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d):
        raise UserError(
            "batchnorm=sync knows PyTorch's own layers and timm's BatchNormAct2d, not "
            f"{type(layer).__name__}; train this backbone without it"
        )
    new = kind(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )
    new._parameters, new._buffers = layer._parameters, layer._buffers
    return new.train(layer.training)
