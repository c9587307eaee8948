from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ltbench.config import schema
from ltbench.distributed import ranks
from ltbench.distributed.overlap import OverlappedSum
from ltbench.errors import UserError
from ltbench.gradients import Gradient, added, each, held
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.models.batchnorm import counted_together
from ltbench.updates.phases import Phases

Log = dict[str, Any]  # numbers or scalar tensors of one step


@dataclass
class StepRun:
    """Context of an update: the loss of a batch, the trained parameters, the optimizer.

    Args:
        method: the method being trained.
        optimizer: over the trained parameters.
        autocast: returns the context manager of forward passes.

    ``phases`` runs the phases of steps.
    """

    method: Method
    optimizer: Optimizer
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    phases: Phases = field(default_factory=Phases, init=False)
    _sums: dict[tuple[int, ...], OverlappedSum] = field(default_factory=dict, init=False)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters, in the method's order."""
        return [p for p in self.method.parameters() if p.requires_grad]

    def part(self, names: str | Sequence[str]) -> list[nn.Parameter]:
        """Return the trained parameters of named parts.

        Args:
            names: ``whole`` (everything), ``head``, ``backbone``, ``last`` or a stage of the
                backbone, or several of them.

        Raises:
            UserError: a name is unknown, or none of its parameters is trained.
        """
        wanted: set[int] = set()
        for name in [names] if isinstance(names, str) else names:
            if name == "whole":
                found = list(self.method.parameters())
            elif name == "head":
                found = list(self.method.head.parameters())
            else:
                stage = "whole" if name == "backbone" else name
                found = self.method.parameters_of(stage)
            wanted |= {id(p) for p in found}
        chosen = [p for p in self.parameters if id(p) in wanted]
        if not chosen:
            raise UserError(f"no parameter of `{names}` is trained in this stage; use another part")
        return chosen

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return the loss rows of one micro-batch."""
        with self.autocast(), counted_together(self.method):
            return self.phases.loss(self.method.loss, batch, at)

    def zero_grad(self) -> None:
        """Set all gradients to ``None``."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(
        self,
        batches: Sequence[Batch],
        at: Progress,
        *,
        parameters: list[nn.Parameter] | None = None,
        retain_graph: bool = False,
        factors: Tensor | None = None,
    ) -> tuple[Tensor, list[Rows]]:
        """Compute the gradient of the loss over all micro-batches and ranks, into ``.grad``.

        It is ``None`` for a parameter on which the loss depends in no micro-batch of any rank.

        Args:
            batches: micro-batches of this rank.
            at: progress of training.
            parameters: differentiated with respect to these; by default all trained ones.
            retain_graph: keep the graph for another backward pass.
            factors: of the rows by class [C]; the divisor stays that of the loss, and a shared
                term, which belongs to no class, is left out.

        Returns:
            The loss, and the detached rows of each micro-batch.
        """
        sums = torch.zeros(4, dtype=torch.float64, device=batches[0].labels.device)
        extra: Gradient | None = None
        kept = []
        parameters = self.parameters if parameters is None else parameters
        summing = self._summing(parameters)
        for micro, batch in enumerate(batches):
            out = self.loss(batch, replace(at, micro=micro))
            if factors is not None:
                out = replace(out, shared=None)
            total, weight = weighted_sum(out, factors)
            if out.shared is not None:
                found = torch.autograd.grad(
                    out.shared, parameters, retain_graph=True, allow_unused=True
                )
                extra = list(found) if extra is None else added(extra, found)
            last = micro + 1 == len(batches) and extra is None
            with summing.during_backward() if last else nullcontext():
                total.backward(  # type: ignore[no-untyped-call]
                    retain_graph=retain_graph, inputs=parameters
                )
            shared = out.shared.detach() if out.shared is not None else total.new_zeros(())
            sums += torch.stack([total.detach(), weight, shared, shared.new_ones(())]).double()
            kept.append(detached(out))
        shares: Gradient = []
        if extra is None:  # on no rank, or on all of them
            gradient = summing.wait(sums)
        else:
            ranks.all_reduce_(sums)
            both = [*(p.grad for p in parameters), *extra]
            summed = ranks.GradientSum(both, parameters * 2).wait()
            gradient, shares = summed[: len(parameters)], summed[len(parameters) :]
        if there := held(gradient):
            torch._foreach_div_(there, sums[1].to(there[0].dtype))
        if extra is not None:
            n = sums[3]
            gradient = added(gradient, [None if g is None else g / n.to(g.dtype) for g in shares])
        for p, g in zip(parameters, gradient, strict=True):
            p.grad = g
        return sums[0] / sums[1] + sums[2] / sums[3], kept

    def gradients(
        self, batches: Sequence[Batch], at: Progress, factors: Sequence[Tensor]
    ) -> tuple[Tensor, list[Rows], list[Gradient]]:
        """Compute several gradients over all micro-batches and ranks, from one forward pass.

        Each is that of the loss with other factors of the rows; ``.grad`` is left alone. A shared
        term belongs to the first.

        Args:
            batches: micro-batches of this rank.
            at: progress of training.
            factors: for each gradient, those of the rows by class [C]; the divisor stays that of
                the loss.

        Returns:
            The loss itself, the detached rows of each micro-batch, and the gradients.
        """
        sums = torch.zeros(4, dtype=torch.float64, device=batches[0].labels.device)
        parameters, kept = self.parameters, []
        parts: list[Gradient] = []
        for micro, batch in enumerate(batches):
            out = self.loss(batch, replace(at, micro=micro))
            terms = [weighted_sum(out, own)[0] for own in factors]
            terms += [] if out.shared is None else [out.shared]
            found: list[Gradient] = [
                list(
                    torch.autograd.grad(
                        term, parameters, retain_graph=term is not terms[-1], allow_unused=True
                    )
                )
                for term in terms
            ]
            parts = [added(*pair) for pair in zip(parts, found, strict=True)] if parts else found
            total, weight = weighted_sum(out)
            shared = total.new_zeros(()) if out.shared is None else out.shared.detach()
            sums += torch.stack([total.detach(), weight, shared, shared.new_ones(())]).double()
            kept.append(detached(out))
        ranks.all_reduce_(sums)
        every = [g for part in parts for g in part]
        summed = ranks.GradientSum(every, parameters * len(parts)).wait()
        size, divisors = len(parameters), [sums[1]] * len(factors) + [sums[3]]
        first, *others = (
            each(partial(_divided, by=divisors[i]), summed[i * size : (i + 1) * size])
            for i in range(len(parts))
        )
        if len(parts) > len(factors):
            first = added(first, others.pop())
        return sums[0] / sums[1] + sums[2] / sums[3], kept, [first, *others]

    def _summing(self, parameters: list[nn.Parameter]) -> OverlappedSum:
        """Return the sum of these parameters' gradients over ranks, kept from step to step."""
        key = tuple(map(id, parameters))
        if key not in self._sums:
            self._sums[key] = OverlappedSum(parameters)
        return self._sums[key]


class Update:
    """Turns the loss rows of a step's micro-batches into one optimizer step."""

    Config: ClassVar[type[schema.Config]] = schema.Config  # a class of `ltbench.updates.options`

    def __init__(self, config: schema.Config) -> None:
        self.config = config

    def step(self, run: StepRun, batches: Sequence[Batch], at: Progress) -> Log:
        """Do one optimizer step on prepared micro-batches and return values to log.

        CUDA graphs capture what is done in ``run.phases.run``; the rest stays eager.
        """
        raise NotImplementedError


def weighted_sum(out: Rows, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the sum of weighted rows and this micro-batch's share of the divisor D.

    Args:
        out: rows of a micro-batch.
        factors: of the rows by class [C], which the divisor does not see; ``None`` is 1.
    """
    rows = out.rows.float() if out.rows.dtype in (torch.bfloat16, torch.float16) else out.rows
    if factors is not None:
        rows = rows * factors.to(rows)[out.labels]
    total = rows.sum() if out.weight is None else (rows * out.weight).sum()
    if out.divide == "images" or out.weight is None:
        return total, total.new_full((), float(out.images))
    return total, out.weight.detach().sum().to(total.dtype)


def _divided(gradient: list[Tensor], by: Tensor) -> Sequence[Tensor]:
    """Return tensors over a number; some may be one tensor, so none is changed in place."""
    return torch._foreach_div(gradient, by.to(gradient[0].dtype))


def detached(out: Rows) -> Rows:
    """Return rows detached from their graph, for the training curves."""
    logits = None if out.logits is None else out.logits.detach()
    return replace(out, rows=out.rows.detach(), shared=None, logits=logits)


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """Return the Euclidean norm of all gradients together."""
    norms = torch._foreach_norm(gradients)
    total: Tensor = torch.linalg.vector_norm(torch.stack(list(norms)))
    return total
