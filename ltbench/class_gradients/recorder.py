"""Record of layer calls in one forward pass, with a switch for their backward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from ltbench.class_gradients.spans import BATCH_NORMS, span_of
from ltbench.distributed import ranks
from ltbench.losses.precision import full
from ltbench.models.batchnorm import SyncBatchNorm2d, global_moments


@dataclass(eq=False)
class BatchStatistics:
    """Batch statistics of one call of a batch normalisation.

    Args:
        module: the layer.
        x: its input [B, C, ...].
        measured: inverse standard deviation [C] and normalised input, if they are known.
    """

    module: _BatchNorm
    x: Tensor
    measured: tuple[Tensor, Tensor] | None = None

    @property
    def synchronised(self) -> bool:
        """True if the statistics are over all ranks."""
        return isinstance(self.module, SyncBatchNorm2d) and ranks.world() > 1

    @cached_property
    def slope(self) -> Tensor:
        """Derivative of an output with respect to its own input at constant statistics [C]."""
        inverse = self._all[1]
        weight: Tensor | None = self.module.weight
        return inverse if weight is None else inverse * weight.detach()

    @property
    def positions(self) -> Tensor | float:
        """Number of values in each mean."""
        return self._all[0]

    @property
    def normalised(self) -> Tensor:
        """Input normalised to mean 0 and variance 1 in each channel [B, C, ...]."""
        return self._all[2]

    @cached_property
    def _all(self) -> tuple[Tensor | float, Tensor, Tensor]:
        x = full(self.x)
        with torch.no_grad():
            if self.synchronised:
                count, mean, var = global_moments(x)
                inverse = (var + self.module.eps).rsqrt()
                return count, inverse, (x - over_channels(mean, x)) * over_channels(inverse, x)
            inverse, normalised = self.measured or normalise(x, self.module.eps)
        return x.numel() / x.shape[1], inverse, normalised


@dataclass(eq=False)
class Call:
    """Call of a layer, or of the part of it that its own parameters determine (`span_of`).

    Args:
        name: the layer's name in the model.
        module: the layer.
        x: its input [B, ...].
        output: gradient edge of its output, before any in-place change.
        statistics: batch statistics, if it normalises by the batch.
        normalised_by: the batch normalisation call whose input is this call's output.
    """

    name: str
    module: nn.Module
    x: Tensor
    output: GradientEdge
    statistics: BatchStatistics | None = None
    normalised_by: Call | None = None


class Recorder:
    """Records calls of the layers that own given parameters, and of all batch normalisation.

    Args:
        model: the network, or a module that contains it.
        parameters: parameters to differentiate with respect to.
    """

    def __init__(self, model: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
        wanted = {id(p) for p in parameters}
        self.owners = {
            module: name
            for name, module in model.named_modules()
            if any(id(p) in wanted for p in module._parameters.values())
        }
        norms = {m: name for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
        self.watched = {**norms, **self.owners}
        self.calls: list[Call] = []
        self.problem = ""  # why the record is unusable, if it is
        self._switch = _Switch()
        self._outputs: dict[int, tuple[Tensor, int, Call]] = {}  # alive, so that ids stay unique

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the forward pass inside; an earlier record is dropped."""
        self.calls, self.problem = [], ""
        handles = [handle for module in self.watched for handle in self._watch(module)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._outputs.clear()

    @contextmanager
    def constant_statistics(self) -> Iterator[None]:
        """Treat batch statistics as constants in backward passes through the recorded pass."""
        self._switch.constant = True
        try:
            yield
        finally:
            self._switch.constant = False

    def _watch(self, module: nn.Module) -> list[RemovableHandle]:
        """Record each call of a layer from now on; return the handles that end it."""
        span = span_of(module)
        if span is None:
            return [module.register_forward_hook(self._see)]
        begun: list[tuple[Any, ...]] = []
        if span.after is None:
            first = module.register_forward_pre_hook(lambda _, inputs: begun.append(inputs))
        else:
            layer = module.get_submodule(span.after)
            first = layer.register_forward_hook(lambda _, inputs, out: begun.append((out,)))
        next_layer = module.get_submodule(span.before)
        last = next_layer.register_forward_pre_hook(
            lambda _, inputs: self._see(module, begun.pop(), *inputs)
        )
        return [first, last]

    def _see(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        name = f"{self.watched[module]} ({type(module).__name__})"
        if not (len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor)):
            self.problem = f"{name} is not a function of one tensor"
            return output
        if not output.requires_grad:
            return output
        x = inputs[0]
        call = Call(name, module, x.detach(), get_gradient_edge(output))
        if normalises_by_batch(module):
            assert isinstance(module, _BatchNorm)
            if type(module).forward not in BATCH_NORMS:
                self.problem = f"no rule for {name}"
            call.statistics = BatchStatistics(module, call.x)
            output = _Route.apply(x, output, call.statistics, self._switch)
            call.output = get_gradient_edge(output)
            source = self._outputs.get(id(x))
            if source is not None and source[1] == x._version:
                source[2].normalised_by = call
        self._outputs[id(output)] = (output, output._version, call)
        self.calls.append(call)
        return output


def measure_together(calls: Iterable[Call]) -> None:
    """Measure the batch statistics of alike calls by one kernel, instead of one each."""
    groups: dict[Any, list[BatchStatistics]] = {}
    for call in calls:
        one = call.statistics
        if one is not None and one.measured is None and not one.synchronised:
            key = (one.x.shape, one.x.dtype, one.module.eps, one.module.weight is None)
            groups.setdefault(key, []).append(one)
    for (shape, _, eps, bare), alike in groups.items():
        count, channels = len(alike), shape[1]
        with torch.no_grad():
            x = torch.cat([one.x for one in alike], dim=1) if count > 1 else alike[0].x
            scales, features = normalise(full(x), eps)
            inverse = torch.split(scales, channels)
            normalised = torch.split(features, channels, dim=1)
            weights = [one.module.weight.detach() for one in alike] if not bare else []
            slopes = torch._foreach_mul(inverse, weights) if weights else inverse
        for i, one in enumerate(alike):
            one.measured, one.slope = (inverse[i], normalised[i]), slopes[i]


def normalise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return inverse standard deviation [C] and normalised features, from features [B, C, ...]."""
    none: Any = None  # the layer's own kernel, without scale, shift and bookkeeping
    found = torch.native_batch_norm(x, none, none, none, none, True, 0.0, eps)
    return found[2], found[0]


def normalises_by_batch(module: nn.Module) -> bool:
    """Return True for a batch normalisation that uses batch statistics."""
    return isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)


def over_channels(values: Tensor, like: Tensor) -> Tensor:
    """Reshape values [C] to broadcast over features [B, C, ...]."""
    return values.view(1, -1, *(1,) * (like.dim() - 2))


@dataclass
class _Switch:
    constant: bool = False


class _Route(torch.autograd.Function):
    """Identity on the output of a normalisation, with a choice of backward pass.

    The gradient goes either through the normalisation, or directly to its input, times its slope.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, output: Tensor, statistics: BatchStatistics, switch: _Switch
    ) -> Tensor:
        ctx.mark_dirty(output)
        ctx.statistics, ctx.switch = statistics, switch
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad = grads[0]
        if not ctx.switch.constant:
            return None, grad, None, None
        straight = (grad * over_channels(ctx.statistics.slope, grad)).to(grad.dtype)
        return straight, None, None, None
