"""Training stage: built, stepped, saved and loaded here for every loop that trains one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltbench.config.recipe import Recipe
from ltbench.config.validation import build_recipe
from ltbench.data.base import DatasetInfo, Split
from ltbench.distributed import ranks
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.methods.build import build_method
from ltbench.methods.weights import load_strict
from ltbench.models.batchnorm import (
    PartStatistics,
    convert_sync_batchnorm,
    frozen_statistics,
    running_statistics,
)
from ltbench.models.image_size import ERRORS
from ltbench.seeding import derive
from ltbench.train import checkpoint, step_errors
from ltbench.train.checkpoint import Position, Snapshot
from ltbench.train.compiled import CompiledStages, compiled_stages
from ltbench.train.epoch_stats import EpochStats
from ltbench.train.features import StoredFeatures
from ltbench.train.feed import Feed
from ltbench.train.freezing import freeze, set_modes
from ltbench.train.graphs import CapturedPhases, CudaGraphs, uncaptured
from ltbench.train.optim import build_optimizer, set_lr
from ltbench.updates import UPDATES
from ltbench.updates.base import Log, StepRun, Update


class StageRun(StepRun):
    """One training stage: its method, optimizer and update.

    Args:
        feed: batches, and with them recipe, data and device.
        index: stage of the recipe.
        method: of that stage; see ``initial_method``.

    Raises:
        UserError: the stage does not train, or leaves nothing to train.
    """

    def __init__(self, feed: Feed, index: int, method: Method) -> None:
        self.feed, self.recipe, self.index = feed, feed.recipe, index
        self.stage, self.training = self.recipe.stages[index], self.recipe.training(index)
        self._frozen = freeze(method, self.stage, self.recipe.run.batchnorm)
        trained = [(names, p) for names, p in method.known_as() if p.requires_grad]
        super().__init__(method, build_optimizer(trained, self.training.optim), self._autocast)
        self.update: Update = UPDATES.get(self.stage.update.name)(self.stage.update.config)
        self.stats = EpochStats(feed.data.info.num_classes, feed.device)
        self.per_epoch = feed.steps(index)
        self._features: StoredFeatures | None = None
        if self.stage.features == "cached":
            set_modes(method, self.stage, self._frozen, self.recipe.run.batchnorm)
            self._features = StoredFeatures(feed, index, method, self._autocast)
            feed.use_features(index, self._features.of("train", feed.data.train))
        self._parts: PartStatistics | None = None
        self._stepped = False
        self._compiled: CompiledStages | None = None
        self._captured: CapturedPhases | None = None
        if self.recipe.run.compile == "inductor":
            self._compiled = CompiledStages(method, compiled_stages(method, self.stage.update))
        elif self.recipe.run.compile == "graphs":
            why_not = uncaptured(ranks.world(), self.stage.passes(ranks.world()))
            self._captured = CapturedPhases(method, CudaGraphs(feed.device), why_not)
            self.phases = self._captured

    @property
    def total(self) -> int:
        """Steps of the stage, at most ``run.max_steps``."""
        full = self.training.epochs * self.per_epoch
        return min(full, self.recipe.run.max_steps or full)

    def done(self, position: Position) -> int:
        """Return the number of steps before a position in this stage."""
        return position.epoch * self.per_epoch + position.step

    def finished(self, position: Position) -> bool:
        """Return whether no step is left at a position in this stage."""
        return self.done(position) >= self.total

    def order(self, epoch: int) -> np.ndarray:
        """Return the order in which an epoch visits the training images."""
        return self.feed.order(self.index, epoch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each step of an epoch, from step ``start`` on."""
        return self.feed.batches(self.method, self.index, epoch, start)

    def begin(self, epoch: int, step: int = 0) -> Progress:
        """Set learning rate and modes for an epoch, and return the position of its first step.

        Args:
            epoch: 0-based epoch.
            step: first step to be made; the method's ``on_epoch`` and ``examine`` are called before
                step 0 only.

        Raises:
            UserError: the smallest batch of the epoch is too small for batch normalisation.
        """
        training = self.training
        factor = training.schedule.factor(epoch, training.epochs)
        lr = set_lr(self.optimizer, training.optim, factor)
        set_modes(self.method, self.stage, self._frozen, self.recipe.run.batchnorm)
        if not self._stepped and self._features is None:
            step_errors.check_single_images(self.feed, self.index, self.method)
        at = Progress(
            self.recipe.seed, self.index, epoch, training.epochs, step, lr=lr, steps=self.per_epoch
        )
        if step == 0:
            with self._inputs():
                self.method.on_epoch(at)
            self.method.examine(self.feed.images(self.index, epoch), at)
        return at

    def step(self, micro: list[Batch], at: Progress) -> Log:
        """Make one optimizer step.

        Args:
            micro: micro-batches of this rank.
            at: position of the step.
        """
        self._parts = PartStatistics(self.method) if len(micro) > 1 else None
        with self._inputs():
            try:
                with self._static(self._prepared(micro, at), at) as micro:
                    log = self.update.step(self, micro, at)
            except ERRORS as error:
                raise self._explained(error, micro) from error
            self._stepped = True
            if self._parts is not None:
                self._parts.merge()
            self.method.after_step(micro, at)
        ranks.all_reduce_mean_(running_statistics(self.method))
        self.stats.add(log, micro)
        return log

    def first_steps(self, epoch: int, count: int) -> Iterator[tuple[list[Batch], Progress]]:
        """Yield the prepared micro-batches of the first steps of an epoch, without making them.

        Weights and running statistics stay as they are; torch's global generator is seeded.
        """
        at = self.begin(epoch)
        for step, micro in zip(range(count), self.batches(epoch), strict=False):
            at = replace(at, step=step)
            with frozen_statistics(self.method), self._inputs():
                prepared = self._prepared(micro, at)
            yield prepared, at

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return the loss rows of one micro-batch."""
        with self._statistics(at), self._passes(batch), self._inputs():
            return super().loss(batch, at)

    @contextmanager
    def evaluated(self, name: str, split: Split) -> Iterator[Split]:
        """Context in which the method takes the yielded split: the images, or stored features.

        Args:
            name: of the split: val or test.
            split: its images.
        """
        found = split if self._features is None else self._features.of(name, split)
        with self._inputs():
            yield found

    def _inputs(self) -> AbstractContextManager[None]:
        """Return a context in which the backbone takes what the batches of this stage hold."""
        return nullcontext() if self._features is None else self.method.backbone.given_features()

    def summary(self) -> dict[str, float | None]:
        """Return loss and training recall since the last summary."""
        return self.stats.summary(self.feed.data.info.class_counts, self.recipe.shot_rule)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors of a checkpoint inside the stage, and the optimizer's numbers."""
        moments, numbers = checkpoint.optimizer_tensors(self.optimizer)
        tensors = checkpoint.with_prefix("method", self.method.state_dict())
        tensors |= checkpoint.with_prefix("stats", self.stats.state())
        tensors |= checkpoint.with_prefix("optimizer", moments)
        return tensors, numbers

    def load(self, snapshot: Snapshot) -> None:
        """Load optimizer and sums of an epoch under way; the method has its weights already."""
        moments = checkpoint.without_prefix("optimizer", snapshot.tensors)
        checkpoint.load_optimizer(self.optimizer, moments, snapshot.facts["optimizer"])
        self.stats.load(checkpoint.without_prefix("stats", snapshot.tensors))

    def _explained(self, error: Exception, micro: list[Batch]) -> Exception:
        if self._stepped and step_errors.SINGLE not in str(error):
            return error  # earlier steps took images of the same size
        return step_errors.explained(error, self.method, micro[0].views[0], self.index)

    def _prepared(self, micro: list[Batch], at: Progress) -> list[Batch]:
        # Layers that draw random numbers (dropout) draw the same ones after a resume.
        torch.manual_seed(derive(at.seed, "step", at.stage, at.epoch, at.step, ranks.rank()))
        places = [replace(at, micro=i) for i in range(len(micro))]
        return [self._prepare(batch, place) for batch, place in zip(micro, places, strict=True)]

    def _prepare(self, batch: Batch, at: Progress) -> Batch:
        with self._statistics(at):
            return self.method.prepare(batch, at)

    def _statistics(self, at: Progress) -> AbstractContextManager[None]:
        """Return a context in which a micro-batch moves running statistics of its own."""
        return nullcontext() if self._parts is None else self._parts.of(at.micro)

    def _passes(self, batch: Batch) -> AbstractContextManager[None]:
        """Return a context in which the passes of a batch of full size are compiled."""
        parts = ranks.world() * self.stage.passes(ranks.world())
        if self._compiled is None or len(batch.labels) * parts != self.training.batch_size:
            return nullcontext()
        return self._compiled.active()

    def _static(self, micro: list[Batch], at: Progress) -> AbstractContextManager[list[Batch]]:
        """Return a context of a step, with its micro-batches where captured graphs read them."""
        return nullcontext(micro) if self._captured is None else self._captured.step(micro, at)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.run.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.feed.device.type, dtype=torch.bfloat16)


def initial_method(
    recipe: Recipe,
    index: int,
    info: DatasetInfo,
    previous: Method | None,
    device: torch.device,
) -> Method:
    """Return the method of a stage as training begins, initialised from the recipe's seed.

    Args:
        recipe: all stages.
        index: 0-based stage.
        info: of the training data.
        previous: the method of the stage before; ``None`` in the first.
        device: of the method.
    """
    torch.manual_seed(derive(recipe.seed, "init", index))
    method = build_method(recipe, index, info, previous)
    if recipe.run.batchnorm == "sync":
        convert_sync_batchnorm(method)
    layout = torch.channels_last if recipe.run.channels_last else torch.contiguous_format
    return method.to(device).to(memory_format=layout)


def saved_method(snapshot: Snapshot, recipe: Recipe, info: DatasetInfo, origin: str) -> Method:
    """Return the method that a checkpoint holds, on the CPU.

    Args:
        snapshot: the checkpoint.
        recipe: of its run.
        info: of the training data.
        origin: the checkpoint, for messages.

    Raises:
        UserError: the checkpoint belongs to another model.
    """
    tree = recipe.tree()
    tree["backbone"] |= {"pretrained": False, "weights": None}  # the saved ones replace them
    recipe = build_recipe(tree)
    method: Method | None = None
    with torch.random.fork_rng(devices=[]):
        for index in range(snapshot.stage + 1):
            method = build_method(recipe, index, info, method)
    assert method is not None
    load_strict(method, checkpoint.without_prefix("method", snapshot.tensors), origin)
    return method
