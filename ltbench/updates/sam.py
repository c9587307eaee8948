from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ltbench.distributed import ranks
from ltbench.gradients import held
from ltbench.methods.base import Batch, Progress, Rows
from ltbench.models.batchnorm import frozen_statistics
from ltbench.updates import options
from ltbench.updates.base import Log, StepRun, Update, gradient_norm
from ltbench.updates.plain import Plain

EPS = 1e-12  # avoids division by zero for a zero gradient; as in the authors' codes


class SAM(Update):
    """Sharpness-aware minimisation: the gradient is taken at the worst point within a small radius.

    Reference: Foret et al., Sharpness-Aware Minimization for Efficiently Improving
        Generalization, ICLR 2021, arXiv:2010.01412, Eqn 2-3; for long tails: Rangwani et al.,
        Escaping Saddle Points for Effective Generalization on Class-Imbalanced Data,
        NeurIPS 2022, arXiv:2212.13827.
    Departures: running statistics of batch normalisation are updated in the first pass only;
        many released codes, that of the second paper included, update them in both.
    """

    Config = options.SAM
    config: options.SAM

    def radius(self, epoch: int) -> float:
        """Return the radius in a 0-based epoch of the stage."""
        begun = [start for start in self.config.rho_from if start <= epoch]
        return self.config.rho_from[max(begun)] if begun else self.config.rho

    def step(self, run: StepRun, batches: Sequence[Batch], at: Progress) -> Log:
        """Do the step."""
        if self.config.epochs is not None and at.epoch >= self.config.epochs:
            return Plain(self.config).step(run, batches, at)
        radius = self.radius(at.epoch)
        passes = partial(self._passes, run, batches, at, radius)
        loss, rows = run.phases.run(f"SAM, radius {radius}", passes)
        run.optimizer.step()
        return {"loss": loss, "rows": rows}

    def _passes(
        self, run: StepRun, batches: Sequence[Batch], at: Progress, radius: float
    ) -> tuple[Tensor, list[Rows]]:
        """Set ``.grad``, and return the loss and its rows at the weights."""
        run.zero_grad()
        loss, rows = run.backward(batches, at)
        with perturbed(run.part(self.config.part), radius):
            run.zero_grad()
            with frozen_statistics(run.method):
                run.backward(batches, at)
        return loss, rows


@contextmanager
def perturbed(parameters: Sequence[nn.Parameter], rho: float, keep: float = 0.0) -> Iterator[None]:
    """Perturb parameters by ``rho`` along their joint gradient; restore them on exit.

    Args:
        parameters: with gradients in ``.grad``; those without are not perturbed.
        rho: L2 norm of the perturbation.
        keep: share of the perturbation left in the weights on exit; 0 restores them bit for bit.
    """
    moved: list[Tensor] = [p for p in parameters if p.grad is not None]
    gradients = held([p.grad for p in parameters])
    if not moved:
        yield
        return
    start = [torch.empty_like(p) for p in moved]
    with torch.no_grad():
        torch._foreach_copy_(start, moved)
        scale = rho / (gradient_norm(gradients) + EPS)
        if keep:  # on processors that round differently, too, the weights stay equal
            ranks.from_main_(scale)
        torch._foreach_add_(moved, list(torch._foreach_mul(gradients, scale)))
    try:
        yield
    finally:
        with torch.no_grad():
            if keep == 0:
                torch._foreach_copy_(moved, start)
            elif keep < 1:
                torch._foreach_lerp_(moved, start, 1 - keep)
