"""The training loop of a run: stages, epochs and steps, resumed from the newest checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ltbench.config.recipe import Recipe
from ltbench.data.base import Data
from ltbench.distributed import ranks
from ltbench.errors import DivergenceError
from ltbench.evaluation.evaluate import evaluate_split
from ltbench.methods.base import Method
from ltbench.methods.weights import load_strict
from ltbench.train.cadence import Cadence, shown
from ltbench.train.checkpoint import Position, Snapshot, with_prefix, without_prefix
from ltbench.train.claim import RunFolder
from ltbench.train.curves import MEASURED
from ltbench.train.feed import Feed
from ltbench.train.history import RunHistory
from ltbench.train.plan import curve_split, make_plan
from ltbench.train.progress import NoProgress
from ltbench.train.saving import Saver
from ltbench.train.stage import StageRun, initial_method
from ltbench.train.watch import Watch


class LossError(DivergenceError, ranks.CollectiveError):
    """The loss of a run, the same on all ranks, has become infinite or no number."""


class Trainer:
    """Trains the stages of a recipe; it knows no method, update or data set by name.

    All randomness is derived from the seed and the counters (stage, epoch, step), so the state
    of a run is its weights, its optimizer and its position.

    Args:
        recipe: what to train.
        data: the loaded data set.
        folder: output folder of the run; checkpoints go to its ``checkpoints``.
        device: of this rank.
        reporter: receives progress.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        folder: RunFolder,
        device: torch.device,
        reporter: NoProgress,
    ) -> None:
        self.recipe, self.data, self.device, self.reporter = recipe, data, device, reporter
        self.folder = folder.path
        self.feed = Feed(recipe, data, device, folder.path)
        self.saver = Saver(self.feed, folder)
        self.cadence = Cadence(recipe.run)
        self.history = RunHistory()
        self.position = Position()

    def fit(self) -> Method:
        """Train all stages, resuming from the newest checkpoint, and return the last method."""
        try:
            return self._fit()
        finally:
            self.saver.close()

    def _fit(self) -> Method:
        snapshot = self.saver.latest()
        self.saver.begin()
        method = None if snapshot is None else self._resume(snapshot)
        at = self.position
        self.reporter.begin(make_plan(self.feed, self.folder, (at.stage, at.epoch, at.step)))
        for index in range(self.position.stage, len(self.recipe.stages)):
            if snapshot is None or snapshot.stage != index:  # not from inside the stage
                method, snapshot = self._initial(index, method), None
                method.begin(self.feed.start(index))
            assert method is not None
            if self.recipe.stages[index].training is not None:
                if self.recipe.stages[index].features == "cached":
                    self.reporter.features(len(self.data.train))
                stage = StageRun(self.feed, index, method)
                if snapshot is not None:
                    stage.load(snapshot)
                self._train(stage)
            snapshot = None
            self.position = Position(index + 1)
            self._save(index, with_prefix("method", method.state_dict()), {}, keep=True)
            self.saver.settle()
        if not self.history.worlds:  # no stage was trained
            self.history.note_ranks(Position(), self.device)
        assert method is not None
        return method.eval()

    def _initial(self, index: int, previous: Method | None) -> Method:
        return initial_method(self.recipe, index, self.data.info, previous, self.device)

    def _resume(self, snapshot: Snapshot) -> Method:
        """Go to the position of a checkpoint and return its method."""
        self.position = snapshot.position
        self.history.load(snapshot.facts)
        method = self._initial(0, None)
        for index in range(1, snapshot.stage + 1):
            method = self._initial(index, method)
        load_strict(method, without_prefix("method", snapshot.tensors), self.saver.origin)
        return method

    def _train(self, stage: StageRun) -> None:
        """Train a stage from the current position to its end."""
        done, rule = stage.done(self.position), self.recipe.shot_rule
        self.reporter.stage(stage.index, stage.stage, stage.total, done)
        if not stage.finished(self.position):
            self.history.note_ranks(self.position, self.device)
        watch = Watch(stage.update, self.recipe.diagnose, self.folder, stage.per_epoch, rule)
        stage.update = watch
        while not stage.finished(self.position):
            lr, speed = self._epoch(stage)
            self.saver.settle()
            watch.flush()
            self._end_epoch(stage, lr, speed)
            if not stage.finished(self.position):
                self._save(stage.index, *stage.state())

    def _epoch(self, stage: StageRun) -> tuple[float, float]:
        """Make the steps left in an epoch; return its learning rate and images per second."""
        epoch, first, size = self.position.epoch, self.position.step, stage.training.batch_size
        at = stage.begin(epoch, first)
        left = len(stage.order(epoch)) - size * first
        started = time.monotonic()
        for micro in stage.batches(epoch, first):
            at = replace(at, step=self.position.step)
            log = stage.step(micro, at)
            self.position = replace(self.position, step=at.step + 1)
            self.reporter.step(
                lambda log=log: float(log["loss"]),  # type: ignore[misc]
                min(size, left),
            )
            left -= size
            if stage.finished(self.position):
                break
            due = self.cadence.due(stage.done(self.position), left, size)
            if due == "steps":
                self.saver.settle()
            if due is not None:
                self._save(stage.index, *stage.state())
        images = (self.position.step - first) * size
        self.position = Position(stage.index, epoch + 1)
        return at.lr, images / max(1e-9, time.monotonic() - started)

    def _end_epoch(self, stage: StageRun, lr: float, speed: float) -> None:
        """Add the finished epoch to the curves, evaluated if it is time."""
        epoch, epochs = self.position.epoch, stage.training.epochs
        row: dict[str, Any] = {"stage": stage.index, "epoch": epoch, "lr": lr}
        row |= stage.summary()
        row["images_per_second"] = round(speed, 1)
        if not row["loss"] < float("inf"):
            raise LossError(
                f"the loss became {row['loss']} in epoch {epoch} of stage {stage.index + 1}; lower "
                f"`stages.{stage.index}.optim.lr` (now {lr:g}) and start again with another `out=`"
            )
        name, split = curve_split(self.recipe, self.data)
        if split is not None and shown(epoch, epochs, self.recipe.run.eval_every):
            with stage.evaluated(name, split) as images:
                metrics = evaluate_split(
                    stage.method,
                    images,
                    self.data.info.class_counts,
                    device=self.device,
                    rule=self.recipe.shot_rule,
                    workers=self.recipe.run.workers,
                )
            row |= {f"{name}_{k}": getattr(metrics, k) for k in MEASURED}
        self.history.epochs.append(row)
        self.reporter.epoch(row)

    def _save(
        self,
        index: int,
        tensors: Mapping[str, Tensor],
        optimizer: Mapping[str, Any],
        *,
        keep: bool = False,
    ) -> None:
        """Begin to write a checkpoint of the current position.

        Args:
            index: of the stage whose method is saved.
            tensors: of the method; inside a stage also of its optimizer and statistics.
            optimizer: the optimizer's numbers.
            keep: protects the checkpoint from being replaced by later ones.
        """
        self.cadence.saved()
        facts = {"stage": index, **self.history.state(), "optimizer": dict(optimizer)}
        self.saver.save(self.position, tensors, facts, keep=keep)
