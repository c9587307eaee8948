"""SAM on a share of each class's loss."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ltbench.distributed.copies import to_device
from ltbench.errors import UserError
from ltbench.gradients import added
from ltbench.losses import focal_sam_shares
from ltbench.methods.base import Batch, Progress, Rows
from ltbench.models.batchnorm import frozen_statistics
from ltbench.updates import options
from ltbench.updates.base import Log, StepRun
from ltbench.updates.plain import Plain
from ltbench.updates.sam import SAM, perturbed


class ClassSAM(SAM):
    """Base of updates that take a share of each class's loss at perturbed weights.

    Rows are multiplied by one factor of their class at the weights, by another at the weights
    moved along the gradient of the rows with that other one; the step is the sum of both gradients.
    Divisors are those of the method's loss, and a term of no class stays at the weights. Two
    forward and three backward passes.
    """

    def __init__(self, config: options.SAM) -> None:
        super().__init__(config)
        self._factors: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def factors(self, class_counts: Sequence[int], at: Progress) -> tuple[Tensor, Tensor]:
        """Return the factors of rows at the weights and at the perturbed ones, each [C].

        Raises:
            UserError: the options leave nothing to perturb.
        """
        raise NotImplementedError

    def step(self, run: StepRun, batches: Sequence[Batch], at: Progress) -> Log:
        """Do the step."""
        if self.config.epochs is not None and at.epoch >= self.config.epochs:
            return Plain(self.config).step(run, batches, at)
        radius = self.radius(at.epoch)
        factors = self._on_device(run.method.info.class_counts, batches[0].labels.device, at)
        passes = partial(self._class_passes, run, batches, at, radius, factors)
        loss, rows = run.phases.run(f"SAM by class, radius {radius}", passes)
        run.optimizer.step()
        return {"loss": loss, "rows": rows}

    def _class_passes(
        self,
        run: StepRun,
        batches: Sequence[Batch],
        at: Progress,
        radius: float,
        factors: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, list[Rows]]:
        """Set ``.grad``, and return the loss and its rows at the weights."""
        run.zero_grad()
        loss, rows, (ordinary, ascent) = run.gradients(batches, at, factors)
        parameters = run.parameters
        for p, g in zip(parameters, ascent, strict=True):
            p.grad = g
        with perturbed(run.part(self.config.part), radius):
            run.zero_grad()
            with frozen_statistics(run.method):
                run.backward(batches, at, factors=factors[1])
        both = added(ordinary, [p.grad for p in parameters])
        for p, g in zip(parameters, both, strict=True):
            p.grad = g
        return loss, rows

    def _on_device(
        self, class_counts: tuple[int, ...], device: torch.device, at: Progress
    ) -> tuple[Tensor, Tensor]:
        """Return the factors, computed once for a training set."""
        known = self._factors.get(class_counts)
        if known is None or known[0].device != device:
            here, there = self.factors(class_counts, at)
            known = to_device(here, device), to_device(there, device)
            self._factors[class_counts] = known
        return known


class FocalSAM(ClassSAM):
    """SAM on a share of each class's loss, larger for rarer classes.

    The share c_k = sharpness (1 - n_k / n)^gamma of a class's loss is taken at the perturbed
    weights, which lie along the gradient of these shares, and 1 - c_k at the weights themselves.

    Reference: Li et al., Focal-SAM: Focal Sharpness-Aware Minimization for Long-Tailed
        Classification, ICML 2025, arXiv:2505.01660; the step is that of the authors' code.
    Departures: running statistics of batch normalisation are updated in the first pass only, in
        the authors' code in both. A row of a mixed image counts as one of its first label's class.
    """

    Config = options.FocalSAM
    config: options.FocalSAM

    def factors(self, class_counts: Sequence[int], at: Progress) -> tuple[Tensor, Tensor]:
        """Return 1 - c and c."""
        shares = focal_sam_shares(class_counts, self.config.gamma, self.config.sharpness)
        return 1 - shares, shares


class ImbSAM(ClassSAM):
    """SAM on the losses of tail classes only; other classes take a plain step.

    A batch without images of the tail is a plain step.

    Reference: Zhou et al., ImbSAM: A Closer Look at Sharpness-Aware Minimization in
        Class-Imbalanced Recognition, ICCV 2023, arXiv:2308.07815.
    Departures: running statistics of batch normalisation are updated in the first pass only, in
        the authors' code in both. Their code doubles the losses of the tail, which the paper does
        not say; here that is ``tail_weight: 2``, and 1 is the default. A row of a mixed image
        counts as one of its first label's class.
    """

    Config = options.ImbSAM
    config: options.ImbSAM

    def factors(self, class_counts: Sequence[int], at: Progress) -> tuple[Tensor, Tensor]:
        """Return 1 for head and 0 for tail classes, and 0 and the tail's weight."""
        counts = torch.tensor(class_counts, dtype=torch.float64)
        tail = counts < self.config.tail_below
        if not tail.any():
            raise UserError(
                f"imb_sam: no class has fewer than {self.config.tail_below} training images, the "
                f"smallest has {min(class_counts)}; raise `stages.{at.stage}.update.tail_below`, "
                "or train with update sam or plain"
            )
        return (~tail).double(), tail * self.config.tail_weight
