"""A stage of a recipe in training under the fast or the reference pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ltbench.bench.reference import reference_data, reference_optimizer, reference_recipe
from ltbench.config.recipe import Recipe
from ltbench.data.base import Data
from ltbench.methods.base import Batch, Method
from ltbench.train.feed import Feed
from ltbench.train.progress import NoProgress
from ltbench.train.stage import StageRun, initial_method

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
        reporter: receives every step.

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
        reporter: NoProgress | None = None,
    ) -> None:
        if name == REFERENCE:
            recipe, data = reference_recipe(recipe), reference_data(data)
        self.name, self.device, self.double = name, device, double
        self.reporter = reporter or NoProgress()
        for i in range(stage if previous is None else 0):
            previous = initial_method(recipe, i, data.info, previous, device)
        method = initial_method(recipe, stage, data.info, previous, device)
        if double:
            method.double()
        self._feed = _Piecewise(recipe, data, device)
        self.run = StageRun(self._feed, stage, method)
        if name == REFERENCE:
            reference_optimizer(self.run.optimizer)
        self.epochs = self.run.training.epochs  # after which training begins anew
        self.epoch = self.step = 0  # the next to be made
        self.loss: Tensor | float = 0.0  # of the step before

    def train(self, steps: int) -> int:
        """Make some steps and return how many images they saw; after the last epoch, begin anew."""
        images = 0
        while steps > 0:
            now = min(steps, self.run.per_epoch - self.step)
            images += self._inside(now)
            steps -= now
        return images

    def _inside(self, steps: int) -> int:
        """Make steps of one epoch."""
        run, images = self.run, 0
        at = run.begin(self.epoch, self.step)
        last = self.step + steps
        self._feed.until = None if last == run.per_epoch else last
        batches = run.batches(self.epoch, self.step)
        while (micro := self.next_batch(batches)) is not None:
            at = replace(at, step=self.step)
            log = run.step(micro, at)
            self.loss = float(log["loss"]) if self.name == REFERENCE else log["loss"]
            self.step += 1
            seen = sum(len(batch.labels) for batch in micro)
            self.reporter.step(lambda: float(self.loss), seen)
            images += seen
        if self.step == run.per_epoch:
            run.summary()
            self.epoch, self.step = (self.epoch + 1) % self.epochs, 0
        return images

    def next_batch(self, batches: Iterator[list[Batch]]) -> list[Batch] | None:
        """Return the batch of the next step, or ``None`` after the last one."""
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
        size = self.recipe.training(index).batch_size
        return order if self.until is None else order[: self.until * size]


def trained(
    name: str,
    recipe: Recipe,
    data: Data,
    device: torch.device,
    reporter: NoProgress | None = None,
) -> Method:
    """Train all stages of a recipe under a pipeline and return the last method.

    Args:
        name: of ``PIPELINES``.
        recipe: what is trained.
        data: its data set.
        device: where.
        reporter: receives the progress.
    """
    method: Method | None = None
    for index, stage in enumerate(recipe.stages):
        if stage.training is None:  # a post-hoc method: making it is all
            method = initial_method(recipe, index, data.info, method, device)
            continue
        pipeline = Pipeline(
            name, recipe, data, device, stage=index, previous=method, reporter=reporter
        )
        method = pipeline.run.method
        pipeline.reporter.stage(index, stage, pipeline.run.total, 0)
        pipeline.train(pipeline.run.total)
    assert method is not None
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
