"""Values of a run for its logs: every few steps, at the end of each epoch and of the run."""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ltbench.config.recipe import Recipe, Stage
from ltbench.digest import read_json
from ltbench.evaluation.metrics import Metrics
from ltbench.evaluation.summary import DERIVED
from ltbench.files import write_json
from ltbench.train.logs.sinks import SINKS, About, Sink
from ltbench.train.plan import Plan
from ltbench.train.progress import NoProgress

FOLDER = "logs"
MEASURED = ("top1", "many", "medium", "few")


class Logs(NoProgress):
    """Writes the logs that a recipe names; one that fails is left out, with a note.

    Args:
        recipe: with ``log`` and ``run.log_every``.
        progress: receiver of the same events, which it gets first.
    """

    def __init__(self, recipe: Recipe, progress: NoProgress) -> None:
        self.recipe, self.every, self.progress = recipe, recipe.run.log_every, progress
        self.sinks: dict[str, Sink] = {name: SINKS[name]() for name in recipe.log}
        self.index, self.done, self.steps, self.before, self.per_epoch = 0, 0, 0, 0, 1
        self.images, self.since = 0, time.monotonic()
        self.row: dict[str, float] = {}  # of a step that ends an epoch, whose values follow
        self.finished = False

    def begin(self, plan: Plan) -> None:
        """Open the logs."""
        self.progress.begin(plan)
        self.plan = plan
        folder, data = plan.folder / FOLDER, plan.data.info.name
        self._each(lambda sink: sink.open(about_run(self.recipe, folder, data)))

    def features(self, images: int) -> None:
        """Pass it on."""
        self.progress.features(images)

    def stage(self, index: int, stage: Stage, steps: int, done: int) -> None:
        """Note the position in the run."""
        self.progress.stage(index, stage, steps, done)
        self.index, self.training = index, stage.training
        self.steps, self.done = steps, done
        self.before, self.per_epoch = sum(self.plan.steps[:index]), self.plan.per_epoch[index]
        self.images, self.since = 0, time.monotonic()

    def step(self, loss: Callable[[], float], images: int) -> None:
        """Log loss, rate and speed every ``run.log_every`` steps and at the end of the stage."""
        self.progress.step(loss, images)
        self.done += 1
        self.images += images
        last = self.done == self.steps
        self.row = {}
        if last or self.done % self.every == 0:
            assert self.training is not None
            epoch, now = (self.done - 1) // self.per_epoch, time.monotonic()
            factor = self.training.schedule.factor(epoch, self.training.epochs)
            self.row = {
                "train/loss": loss(),
                "train/lr": self.training.optim.lr * factor,
                "train/images_per_second": round(self.images / max(1e-9, now - self.since), 1),
            }
            self.images, self.since = 0, now
            if not last and self.done % self.per_epoch:
                self._write(self.row)

    def epoch(self, row: dict[str, Any]) -> None:
        """Log loss and accuracies of an epoch."""
        self.progress.epoch(row)
        values = {"train/epoch_loss": row["loss"]}
        for split in ("train", "val", "test"):
            values |= {f"{split}/{name}": row.get(f"{split}_{name}") for name in MEASURED}
        self._write(self.row | values)
        self.since, self.images = time.monotonic(), 0

    def result(self, metrics: Metrics, split: str) -> None:
        """Log the final results by shot group and by class, one step after the last."""
        self.progress.result(metrics, split)
        step = sum(self.plan.steps) + (1 if split == "val" else 2)
        names = self.plan.data.info.class_names
        rows = [
            [name, training, total, right / total if total else None]
            for name, training, right, total in zip(
                names, metrics.class_counts, metrics.correct, metrics.total, strict=True
            )
        ]
        values = _known({f"{split}/{name}": getattr(metrics, name) for name in DERIVED})
        self._each(lambda sink: sink.classes(step, split, rows))
        self._each(lambda sink: sink.write(step, values))
        self.finished = True

    def close(self) -> None:
        """Close the logs."""
        self.progress.close()
        self._each(lambda sink: sink.close(self.finished))
        self.sinks = {}

    def _write(self, values: Mapping[str, float | None]) -> None:
        where = {"stage": self.index, "epoch": round(self.done / self.per_epoch, 6)}
        row = _known({**where, **values})
        self._each(lambda sink: sink.write(self.before + self.done, row))

    def _each(self, work: Callable[[Sink], None]) -> None:
        """Do something with each log; training goes on without one that fails."""
        self.sinks = {name: sink for name, sink in self.sinks.items() if _works(name, sink, work)}


def _works(name: str, sink: Sink, work: Callable[[Sink], None]) -> bool:
    try:
        work(sink)
    except Exception as error:  # whatever a library raises: network, disk, login
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        warnings.warn(f"`log={name}` stopped, training goes on without it: {text}", stacklevel=2)
        return False
    return True


def about_run(recipe: Recipe, folder: Path, dataset: str) -> About:
    """Return the facts that the logs of a run begin with.

    Args:
        recipe: with its seed.
        folder: of the logs; keeps the run's key.
        dataset: name of the data set.
    """
    stages = recipe.stages
    tags = [s.method.name for s in stages] + [recipe.backbone.name, dataset]
    tags += [s.update.name for s in stages if s.update.name != "plain"]
    return About(
        folder=folder,
        key=_key(recipe, folder / "run.json"),
        name=f"{recipe.name}, seed {recipe.seed}",
        group=f"{recipe.name}-{recipe.digest[:8]}",
        tags=tuple(brief_tag(tag) for tag in dict.fromkeys(tags)),
        config={"digest": recipe.digest, "seed": recipe.seed, **recipe.tree()},
    )


def brief_tag(text: str) -> str:
    """Return a tag of at most 64 characters, the limit of Weights & Biases."""
    return text if len(text) <= 64 else f"{text[:61]}..."


def _key(recipe: Recipe, file: Path) -> str:
    """Return digest, seed and a part of its own for this folder: a second run is another log."""
    start = f"{recipe.digest}-{recipe.seed}-"
    try:
        found = read_json(file)
        if isinstance(found, dict) and str(found.get("id")).startswith(start):
            return str(found["id"])
    except (OSError, ValueError):
        pass
    file.parent.mkdir(parents=True, exist_ok=True)
    key = start + secrets.token_hex(3)
    write_json(file, {"id": key})
    return key


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}
