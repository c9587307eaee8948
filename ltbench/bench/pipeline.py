"""A stage of a recipe in training under the fast or the reference pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ltbench import registries
from ltbench.bench.reference import reference_data, reference_optimizer, reference_recipe
from ltbench.data.base import Data
from ltbench.data.loader import steps_per_epoch
from ltbench.epoch_stats import EpochStats
from ltbench.errors import UserError
from ltbench.feed import Feed
from ltbench.freezing import freeze, set_modes
from ltbench.methods.base import Batch, Method, Progress
from ltbench.optim import build_optimizer, set_lr
from ltbench.recipe import Recipe
from ltbench.report import Silent
from ltbench.trainer import PartRun, Reporter, Trainer
from ltbench.updates.base import Update

FAST, REFERENCE = "fast", "reference"
PIPELINES = (FAST, REFERENCE)


class Pipeline:
    """A stage of a recipe in training, some steps at a time.

    ``fast`` makes the steps of ``ltbench run``: same batches, same weights, bit for bit.
    ``reference`` makes them as the released codes of the field do: see ``reference_recipe`` and
    ``reference_data``; torch chooses how the optimizer is implemented, and the loss is read back in
    every step. Checkpoints and evaluations are left out.

    Args:
        name: of ``PIPELINES``.
        recipe: what is trained.
        data: its data set.
        device: where.
        stage: which stage.
        previous: trained method of the stage before; ``None`` for untrained stages before this.
        double: compute in double precision, on the same images.
        reporter: is told of each step.

    Raises:
        UserError: the reference pipeline does not mirror the recipe's data.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        data: Data,
        device: torch.device,
        *,
        stage: int = 0,
        previous: Method | None = None,
        double: bool = False,
        reporter: Reporter | None = None,
    ) -> None:
        if name == REFERENCE:
            recipe, data = reference_recipe(recipe), reference_data(data)
        self.name, self.recipe, self.data, self.device = name, recipe, data, device
        self.index, self.stage = stage, recipe.stages[stage]
        own = self.stage
        if own.epochs is None or own.batch_size is None or own.optim is None:
            raise UserError(f"`stages.{stage}`: a training stage needs epochs, batch_size, optim")
        self.optim, self.epochs = own.optim, own.epochs
        self.reporter = reporter or Silent()
        self._trainer = Trainer(recipe, data, Path(), device, self.reporter)
        for i in range(stage if previous is None else 0):
            previous = self._trainer._build(i, previous)
        self.method = self._trainer._build(stage, previous)
        self.double = double
        if double:
            self.method.double()
        self.epoch = self.step = 0  # the next to be made
        self.loss: Tensor | float = 0.0  # of the step before
        self._frozen = freeze(self.method, own, recipe.run.batchnorm)
        trained = [(names, p) for names, p in self.method.known_as() if p.requires_grad]
        self.optimizer = build_optimizer(trained, own.optim)
        if name == REFERENCE:
            reference_optimizer(self.optimizer)
        self.update: Update = registries.UPDATES.get(own.update.name)(own.update.config)
        self.run = PartRun(self.method, self.optimizer, self._trainer._autocast)
        self._stats = EpochStats(data.info.num_classes, device)
        self._feed = _Piecewise(recipe, data, device)
        self.per_epoch = steps_per_epoch(
            len(self._feed.order(stage, 0)),
            own.batch_size,
            accumulate=own.passes(1),
            last=own.last_batch,
        )

    def train(self, steps: int) -> int:
        """Make some steps and return how many images they saw; after the last epoch, begin anew."""
        images = 0
        while steps > 0:
            now = min(steps, self.per_epoch - self.step)
            images += self._inside(now)
            steps -= now
        return images

    def _inside(self, steps: int) -> int:
        """Make steps of one epoch."""
        stage, run, images = self.stage, self.recipe.run, 0
        whole = stage.epochs or 1
        lr = set_lr(self.optimizer, self.optim, stage.schedule.factor(self.epoch, whole))
        set_modes(self.method, stage, self._frozen, run.batchnorm)
        at = Progress(self.recipe.seed, self.index, self.epoch, whole, self.step, lr=lr)
        if at.step == 0:
            self.method.on_epoch(at)
        last = self.step + steps
        self._feed.until = None if last == self.per_epoch else last
        batches = self._feed.batches(self.method, self.index, self.epoch, self.step)
        while (micro := self.next_batch(batches)) is not None:
            at = replace(at, step=self.step)
            log = self._trainer._step(self.run, self.update, micro, at, self._stats)
            self.loss = float(log["loss"]) if self.name == REFERENCE else log["loss"]
            self.step += 1
            seen = sum(len(batch.labels) for batch in micro)
            self.reporter.step(lambda: float(self.loss), seen)
            images += seen
        if self.step == self.per_epoch:
            self._stats.summary(self.data.info.class_counts, self.recipe.shot_rule)
            self.epoch, self.step = (self.epoch + 1) % self.epochs, 0
        return images

    def next_batch(self, batches: Iterator[list[Batch]]) -> list[Batch] | None:
        """Return what the next step trains on, or ``None`` after the last one."""
        micro = next(batches, None)
        return [_doubled(b) for b in micro] if self.double and micro is not None else micro


def _doubled(batch: Batch) -> Batch:
    return replace(
        batch,
        views=tuple(view.double() for view in batch.views),
        streams={name: _doubled(stream) for name, stream in batch.streams.items()},
    )


class _Piecewise(Feed):
    """A feed that ends before a step, so that loader processes do no work beyond it."""

    until: int | None = None

    def order(self, index: int, epoch: int) -> np.ndarray:
        order = super().order(index, epoch)
        size = self.recipe.stages[index].batch_size or 1
        return order if self.until is None else order[: self.until * size]


def trained(
    name: str,
    recipe: Recipe,
    data: Data,
    device: torch.device,
    reporter: Reporter | None = None,
) -> Method:
    """Train all stages of a recipe under a pipeline and return the last method.

    Args:
        name: of ``PIPELINES``.
        recipe: what is trained.
        data: its data set.
        device: where.
        reporter: is told about progress.
    """
    method: Method | None = None
    for index, stage in enumerate(recipe.stages):
        if stage.epochs is None:  # a post-hoc method: making it is all
            method = Trainer(recipe, data, Path(), device, Silent())._build(index, method)
            continue
        pipeline = Pipeline(
            name, recipe, data, device, stage=index, previous=method, reporter=reporter
        )
        method = pipeline.method
        total = stage.epochs * pipeline.per_epoch
        total = min(total, recipe.run.max_steps or total)
        pipeline.reporter.stage(index, stage, total, 0)
        pipeline.train(total)
    if method is None:
        raise UserError("`stages`: expected at least one stage, found none")
    return method.eval()


@dataclass(frozen=True)
class Difference:
    """The first steps of a pipeline against those of the reference, same weights at the start.

    Args:
        loss: largest relative difference of a step's loss.
        weights: largest distance of the trained weights over their length.
        moved: that distance over how far the reference has moved them.
    """

    loss: float
    weights: float
    moved: float


def first_steps(ours: Pipeline, reference: Pipeline, steps: int) -> Difference:
    """Make the first steps of two pipelines and compare losses and weights after each.

    Args:
        ours: has made no step.
        reference: has made no step.
        steps: how many.
    """
    start = _weights(reference)
    loss, weights, moved = [], [], []
    for _ in range(steps):
        losses = []
        for pipeline in (ours, reference):
            pipeline.train(1)
            losses.append(float(pipeline.loss))
        theirs = _weights(reference)
        apart = float((_weights(ours) - theirs).norm())
        loss.append(abs(losses[0] - losses[1]) / max(abs(losses[1]), 1e-12))
        weights.append(apart / float(theirs.norm()))
        moved.append(apart / max(float((theirs - start).norm()), 1e-12))
    return Difference(max(loss), max(weights), max(moved))


def _weights(pipeline: Pipeline) -> Tensor:
    """Return the trained weights as one vector in double precision."""
    found = [p.detach().cpu().double().flatten() for p in pipeline.run.parameters]
    return torch.cat(found)
