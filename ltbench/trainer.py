from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from ltbench import checkpoint, dist, registries
from ltbench.backbones.base import create_backbone
from ltbench.backbones.batchnorm import (
    PartStatistics,
    convert_sync_batchnorm,
    running_statistics,
)
from ltbench.checkpoint import Background, Position, Snapshot, Store
from ltbench.data.base import Data, DatasetInfo
from ltbench.data.loader import steps_per_epoch
from ltbench.diagnose.watch import Watch
from ltbench.epoch_stats import EpochStats
from ltbench.errors import UserError
from ltbench.evaluation import evaluate_split
from ltbench.feed import Feed
from ltbench.freezing import freeze, reset, set_modes
from ltbench.heads import LinearHead
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.optim import build_optimizer, set_lr
from ltbench.recipe import Recipe, Stage
from ltbench.resume import check_resume_state, resume_state
from ltbench.seeding import derive
from ltbench.updates.base import Log, StepRun, Update

LOG = logging.getLogger(__name__)


class Reporter(Protocol):
    """Told what happens during training; shows it or not."""

    def stage(self, index: int, stage: Stage, steps: int, done: int) -> None:
        """A stage begins or goes on: ``done`` of ``steps`` optimizer steps are behind it."""

    def step(self, loss: Callable[[], float], images: int) -> None:
        """One step on ``images`` images of the global batch was done."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch ended with this line of the curves."""


class Trainer:
    """Stages, epochs, steps: it knows no method, update or data set by name.

    All randomness is derived from the seed and the counters (stage, epoch, step), so the state
    of a run is its weights, its optimizer and where it stands.

    Args:
        recipe: what to train.
        data: the loaded data set.
        folder: of the run; checkpoints go to its ``checkpoints``.
        device: of this rank.
        reporter: is told about progress.
    """

    def __init__(
        self, recipe: Recipe, data: Data, folder: Path, device: torch.device, reporter: Reporter
    ) -> None:
        self.recipe, self.data, self.device, self.reporter = recipe, data, device, reporter
        self.feed = Feed(recipe, data, device, folder)
        self.store = Store(folder / "checkpoints")
        self.writing = Background()
        self.position = Position()
        self.history: list[dict[str, Any]] = []
        self.worlds: list[int] = []  # numbers of ranks, in their order
        self.worlds_from: list[str] = []  # where each of them took over
        self._fingerprint = ""
        self._saved = time.monotonic()
        self._seconds = 0.0
        self._clock = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent on this run so far, interruptions left out."""
        return self._seconds + time.monotonic() - self._clock

    def fit(self) -> Method:
        """Train all stages, going on from the newest checkpoint, and return the last method."""
        try:
            return self._fit()
        finally:
            self.writing.close()

    def _fit(self) -> Method:
        stages = self.recipe.stages
        snapshot = dist.on_main(self._latest)  # the others need not see its files
        method: Method | None = None
        trained = -1  # stage of the method that the checkpoint holds
        if snapshot is not None:
            trained = self._restore(snapshot)
            for index in range(trained + 1):
                method = self._build(index, method)
            if method is not None:
                weights = checkpoint.without_prefix("method", snapshot.tensors)
                checkpoint.load_strict(method, weights, f"the checkpoint in {self.store.folder}")
        for index in range(self.position.stage, len(stages)):
            inside = snapshot if index == trained else None
            if inside is None:
                method = self._build(index, method)
            if method is None:
                raise RuntimeError("a checkpoint inside a stage holds that stage's method")
            if stages[index].epochs is not None:
                self._train(index, method, inside)
            self.position = Position(index + 1)
            self._save(index, method, keep=True)
            self._settle()
        if method is None:
            raise UserError("`stages`: expected at least one stage, found none")
        return method.eval()

    def _latest(self) -> Snapshot | None:
        """Read the newest checkpoint and check that it is of this recipe and these data."""
        snapshot = self.store.latest()
        if snapshot is None:
            return None
        facts = snapshot.facts
        if (facts["digest"], facts["seed"]) != (self.recipe.digest, self.recipe.seed):
            raise UserError(
                f"the checkpoint in {self.store.folder} belongs to recipe digest "
                f"{facts['digest']} seed {facts['seed']}, this run is {self.recipe.digest} seed "
                f"{self.recipe.seed}; pass another `out=`"
            )
        now = self._resume_state(snapshot.position)()
        check_resume_state(facts["resume"], now, f"the checkpoint in {self.store.folder}")
        return snapshot

    def _restore(self, snapshot: Snapshot) -> int:
        facts = snapshot.facts
        self.position = snapshot.position
        self.history = facts["history"]
        self.worlds, self.worlds_from = facts["worlds"], facts["worlds_from"]
        self._seconds = facts["seconds"]
        return int(facts["stage"])

    def _build(self, index: int, previous: Method | None) -> Method:
        """Make the method of a stage on the backbone and head of the stage before."""
        torch.manual_seed(derive(self.recipe.seed, "init", index))
        method = build_method(self.recipe, index, self.data.info, previous)
        if self.recipe.run.batchnorm == "sync":
            convert_sync_batchnorm(method)
        layout = torch.channels_last if self.recipe.run.channels_last else torch.contiguous_format
        return method.to(self.device).to(memory_format=layout)

    def _train(self, index: int, method: Method, snapshot: Snapshot | None) -> None:
        stage, run = self.recipe.stages[index], self.recipe.run
        if stage.optim is None or stage.batch_size is None or stage.epochs is None:
            raise UserError(f"`stages.{index}`: a training stage needs epochs, batch_size, optim")
        frozen = freeze(method, stage, run.batchnorm)
        trained = [(names, p) for names, p in method.known_as() if p.requires_grad]
        optimizer = build_optimizer(trained, stage.optim)
        stats = EpochStats(self.data.info.num_classes, self.device)
        if snapshot is not None:
            own = checkpoint.without_prefix("optimizer", snapshot.tensors)
            checkpoint.load_optimizer(optimizer, own, snapshot.facts["optimizer"])
            stats.load(checkpoint.without_prefix("stats", snapshot.tensors))
        update: Update = registries.UPDATES.get(stage.update.name)(stage.update.config)
        step_run = PartRun(method, optimizer, self._autocast)
        size = stage.batch_size
        per_epoch = steps_per_epoch(
            len(self.feed.order(index, 0)),
            size,
            world=dist.world(),
            accumulate=stage.passes(dist.world()),
            last=stage.last_batch,
        )
        folder, look = self.store.folder.parent, self.recipe.diagnose
        watch = Watch(update, look, folder, per_epoch, self.recipe.shot_rule)
        total = min(stage.epochs * per_epoch, run.max_steps or stage.epochs * per_epoch)
        done = self.position.epoch * per_epoch + self.position.step
        self.reporter.stage(index, stage, total, done)
        if done < total:
            self._note_ranks()
        while self.position.epoch < stage.epochs and done < total:
            epoch = self.position.epoch
            lr = set_lr(optimizer, stage.optim, stage.schedule.factor(epoch, stage.epochs))
            set_modes(method, stage, frozen, run.batchnorm)
            images = len(self.feed.order(index, epoch))
            at = Progress(self.recipe.seed, index, epoch, stage.epochs, self.position.step, lr=lr)
            if at.step == 0:
                method.on_epoch(at)
            started, first = time.monotonic(), done
            for micro in self.feed.batches(method, index, epoch, self.position.step):
                at = replace(at, step=self.position.step)
                log = self._step(step_run, watch, micro, at, stats)
                done += 1
                left = images - size * self.position.step
                self.position = replace(self.position, step=self.position.step + 1)
                self.reporter.step(
                    lambda log=log: float(log["loss"]),  # type: ignore[misc]
                    min(size, left),
                )
                if done == total:
                    break
                if left - size < size:
                    continue  # how a short rest is cut depends on the ranks, which may change
                if run.save_steps is not None and done % run.save_steps == 0:
                    self._settle()
                    self._save(index, method, optimizer, stats)
                elif self._late():
                    self._save(index, method, optimizer, stats)
            speed = (done - first) * size / max(1e-9, time.monotonic() - started)
            self.position = Position(index, epoch + 1, 0)
            self._settle()
            watch.flush()
            self._end_epoch(index, method, stats, lr, speed)
            if self.position.epoch < stage.epochs and done < total:
                self._save(index, method, optimizer, stats)

    def _step(
        self, run: PartRun, update: Update, micro: list[Batch], at: Progress, stats: EpochStats
    ) -> Log:
        # Layers that draw random numbers (dropout) draw the same ones after a resume.
        torch.manual_seed(derive(at.seed, "step", at.stage, at.epoch, at.step, dist.rank()))
        run.parts = PartStatistics(run.method) if len(micro) > 1 else None
        micro = [run.prepare(part, replace(at, micro=i)) for i, part in enumerate(micro)]
        log = update.step(run, micro, at)
        if run.parts is not None:
            run.parts.merge()
        run.method.after_step(micro, at)
        dist.average_(running_statistics(run.method))
        stats.add(log, micro)
        return log

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.run.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _note_ranks(self) -> None:
        """Note the number of ranks where it begins to count."""
        if dist.world() not in self.worlds[-1:]:
            at = self.position
            self.worlds.append(dist.world())
            self.worlds_from.append(f"stage {at.stage}, epoch {at.epoch}, step {at.step}")
            if len(self.worlds) > 1 and dist.is_main():
                LOG.warning(
                    "goes on at %s with %d rank(s) instead of %d: the same global batches, and "
                    "marked in the record",
                    self.worlds_from[-1],
                    *self.worlds[:-3:-1],
                )

    def _end_epoch(
        self, index: int, method: Method, stats: EpochStats, lr: float, speed: float
    ) -> None:
        stage, epoch = self.recipe.stages[index], self.position.epoch
        row: dict[str, Any] = {"stage": index, "epoch": epoch, "lr": lr}
        row |= stats.summary(self.data.info.class_counts, self.recipe.shot_rule)
        row["images_per_second"] = round(speed, 1)
        if not row["loss"] < float("inf"):
            raise dist.Agreed(
                f"the loss became {row['loss']} in epoch {epoch} of stage {index}; lower "
                f"`stages.{index}.optim.lr` (now {lr:g}) and start again with another `out=`"
            )
        every = self.recipe.run.eval_every or max(1, (stage.epochs or 1) // 10)
        if epoch % every == 0 or epoch == stage.epochs:
            split = self.data.val if self.data.val is not None else self.data.test
            metrics = evaluate_split(
                method,
                split,
                self.data.info.class_counts,
                device=self.device,
                rule=self.recipe.shot_rule,
                workers=self.recipe.run.workers,
            )
            row |= {f"eval_{k}": getattr(metrics, k) for k in ("top1", "many", "medium", "few")}
        self.history.append(row)
        self.reporter.epoch(row)

    def _save(
        self,
        index: int,
        method: Method,
        optimizer: Optimizer | None = None,
        stats: EpochStats | None = None,
        *,
        keep: bool = False,
    ) -> None:
        """Begin to write a checkpoint from rank 0; all that it holds is the same on every rank.

        Raises:
            UserError: on rank 0 alone, if the checkpoint before could not be written.
        """
        self._saved = time.monotonic()
        if not dist.is_main():
            return
        self.writing.wait()
        tensors = checkpoint.with_prefix("method", method.state_dict())
        facts: dict[str, Any] = {
            "digest": self.recipe.digest,
            "seed": self.recipe.seed,
            "stage": index,
            "history": list(self.history),
            "worlds": list(self.worlds),
            "worlds_from": list(self.worlds_from),
            "seconds": self.seconds,
            "optimizer": {},
        }
        if stats is not None:
            tensors |= checkpoint.with_prefix("stats", stats.state())
        if optimizer is not None:
            moments, facts["optimizer"] = checkpoint.optimizer_tensors(optimizer)
            tensors |= checkpoint.with_prefix("optimizer", moments)
        resume = self._resume_state(self.position)
        snapshot = Snapshot(self.position, checkpoint.copied(tensors), facts)

        def write() -> None:
            facts["resume"] = resume()  # may have to read all images, the first time
            self.store.save(snapshot, keep=keep)

        self.writing.start(write)

    def _settle(self) -> None:
        """Wait for the checkpoint being written; all ranks stop if the disk is full."""
        dist.on_main(self.writing.wait)

    def _late(self) -> bool:
        """Whether this rank finds it time for a checkpoint: rank 0 decides, and writes, alone."""
        minutes = self.recipe.run.save_minutes
        return minutes is not None and time.monotonic() - self._saved >= 60 * minutes

    def _resume_state(self, position: Position) -> Callable[[], dict[str, Any]]:
        """Return a function that gives what `resume_state` says of a position."""
        stages = self.recipe.stages
        stage = stages[position.stage] if position.stage < len(stages) else None
        order = None
        if stage is not None and stage.epochs is not None:
            order = self.feed.order(position.stage, position.epoch)

        def state() -> dict[str, Any]:
            self._fingerprint = self._fingerprint or self.data.train.fingerprint()
            return resume_state(position, self.recipe.seed, self._fingerprint, stage, order)

        return state


@dataclass
class PartRun(StepRun):
    """Gives each micro-batch of a step running statistics of its own, as if it had its own rank."""

    parts: PartStatistics | None = None

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return the loss rows of one micro-batch."""
        with self._part(at):
            return super().loss(batch, at)

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Return what the method makes of one micro-batch."""
        with self._part(at):
            return self.method.prepare(batch, at)

    def _part(self, at: Progress) -> AbstractContextManager[None]:
        return nullcontext() if self.parts is None else self.parts.of(at.micro)


def build_backbone(recipe: Recipe) -> Any:
    """Return the recipe's backbone with fresh or given weights."""
    choice = recipe.backbone
    return create_backbone(
        choice.name, pretrained=choice.pretrained, weights=choice.weights, **choice.args
    )


def build_method(
    recipe: Recipe, index: int, info: DatasetInfo, previous: Method | None = None
) -> Method:
    """Return the method of a stage, on the backbone of the stage before or on a new one.

    Args:
        recipe: all stages.
        index: which stage.
        info: of the training data.
        previous: the method of the stage before; ``None`` in the first.
    """
    stage = recipe.stages[index]
    new = previous is None or stage.start == "fresh"
    backbone = build_backbone(recipe) if previous is None or new else previous.backbone
    old = set() if previous is None else set(previous.modules())
    method: Method = registries.METHODS.get(stage.method.name)(
        stage.method.config, backbone, info, previous
    )
    for prefix in stage.reset:
        old.difference_update(reset(method, prefix))
    if stage.head_init == "pytorch":
        for module in method.modules():
            if isinstance(module, LinearHead) and module not in old:
                nn.Linear.reset_parameters(module)
    return method
