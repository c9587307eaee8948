"""What training of parts and on several ranks needs of batch normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm

from ltbench import dist
from ltbench.errors import UserError


def set_batchnorm_mode(module: nn.Module, mode: Literal["train", "eval"]) -> None:
    """Make batch normalisation in a module use batch (train) or running (eval) statistics."""
    for layer in _layers(module):
        layer.train(mode == "train")


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, no forward pass changes running statistics; what layers return stays the same."""
    tracking = [layer for layer in _layers(module) if layer.track_running_stats]
    for layer in tracking:  # the layer's own switch for batch statistics without bookkeeping
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Return the running means and variances that a module's forward passes move."""
    kept = [(layer.running_mean, layer.running_var) for layer in _layers(module) if layer.training]
    return [t for pair in kept for t in pair if t is not None]


def scale_and_shift(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of all batch normalisation in a module."""
    return [p for layer in _layers(module) for p in layer.parameters(recurse=False)]


class PartStatistics:
    """Running statistics of the parts of a batch that pass through a network one after another.

    During a step each part moves statistics of its own, as if it had a rank to itself; ``merge``
    takes their mean, as ranks do. So it does not matter who computes which part.

    Args:
        module: the network; its layers keep their modes during a step.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._before: list[Tensor] = []
        self._after: dict[int, list[Tensor]] = {}

    @contextmanager
    def of(self, part: int) -> Iterator[None]:
        """Inside, forward passes move the statistics of one part of this step."""
        tensors = self._tensors()
        if not self._after:
            self._before = [t.clone() for t in tensors]
        for t, own in zip(tensors, self._after.get(part, self._before), strict=True):
            t.data.copy_(own)  # a graph may hold `t`, though its gradients do not depend on it
        yield
        self._after[part] = [t.clone() for t in tensors]

    def merge(self) -> None:
        """Take the mean over the parts, at the end of a step."""
        parts = [self._after[part] for part in sorted(self._after)]
        for t, *own in zip(self._tensors(), *parts, strict=True):
            t.data.copy_(torch.stack(own).mean(0) if t.is_floating_point() else own[-1])
        self._after = {}

    def _tensors(self) -> list[Tensor]:
        moving = [layer for layer in _layers(self.module) if layer.training]
        return [t for layer in moving for t in layer.buffers(recurse=False)]


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the global batch, on any device and backend.

    Ranks may hold different numbers of images, also none. Each rank runs as many forward and
    backward passes as the others, in the same order. With one rank it is ``nn.BatchNorm2d``,
    for features [B, C, ...] of any rank.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected features [B, C, ...], got {input.dim()} dimension(s)")

    def forward(self, input: Tensor) -> Tensor:
        """Return normalised features of the same shape."""
        self._check_input_dim(input)
        if dist.world() == 1 or not (self.training or self.running_mean is None):
            return super().forward(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count, mean, var = global_moments(x)
        if self.training and self.track_running_stats and self.running_mean is not None:
            self._track(count, mean.detach(), var.detach())
        scale = (var + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shape = (1, -1, *(1,) * (x.dim() - 2))
        out = (x - mean.view(shape)) * scale.view(shape)
        out = out if self.bias is None else out + self.bias.view(shape)
        return out.to(input.dtype)

    def _track(self, count: Tensor, mean: Tensor, var: Tensor) -> None:
        """Move the running statistics towards those of the batch (unbiased variance)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = var * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Replace batch normalisation by ``SyncBatchNorm2d``, in place, and return the module.

    Parameters, buffers and the names in the state dict stay. Cut a backbone with ``split``
    afterwards, not before.

    Raises:
        UserError: a layer normalises over the batch in a way of its own.
    """
    return _convert(module, {})


def global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return count, mean [C] and biased variance [C] of features [B, C, ...] over all ranks.

    One sum over ranks: each rank puts its own count, mean and squared deviations in its row of a
    table, and these are combined as in Chan's parallel variance, which does not cancel.
    """
    dims = [0, *range(2, x.dim())]
    channels = x.shape[1]
    count = x.numel() // channels
    mean = x.sum(dims) / max(count, 1)
    shape = (1, -1, *(1,) * (x.dim() - 2))
    squares = ((x - mean.view(shape)) ** 2).sum(dims)
    own = torch.cat([x.new_full((1,), float(count)), mean, squares])
    place = x.new_zeros((dist.world(), 1))
    place[dist.rank()] = 1
    table: Tensor = _SumOverRanks.apply(place * own)
    counts, means, deviations = table[:, :1], table[:, 1 : channels + 1], table[:, channels + 1 :]
    total = counts.detach().sum()
    overall = (counts * means).sum(0) / total
    between = (counts * (means - overall) ** 2).sum(0)
    return total, overall, (deviations.sum(0) + between) / total


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks whose gradient is the sum over ranks of the gradients."""

    @staticmethod
    def forward(ctx: FunctionCtx, tensor: Tensor) -> Tensor:
        return dist.sum_(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Any) -> Tensor:
        summed: Tensor = _SumOverRanks.apply(grads[0])
        return summed

    @staticmethod
    def jvp(ctx: FunctionCtx, *tangents: Any) -> Tensor:
        return dist.sum_(tangents[0].clone(memory_format=torch.contiguous_format))


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
    if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        raise UserError(
            f"batchnorm=sync knows PyTorch's own layers, not {type(layer).__name__}; "
            "train this backbone without it"
        )
    new = SyncBatchNorm2d(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )
    new._parameters, new._buffers = layer._parameters, layer._buffers
    return new.train(layer.training)
