"""One run from data to record."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from ltbench.config.recipe import Recipe
from ltbench.data.base import Data
from ltbench.distributed import ranks
from ltbench.distributed.device import pick_device
from ltbench.errors import UserError
from ltbench.evaluation.evaluate import evaluate_split
from ltbench.evaluation.metrics import Metrics
from ltbench.evaluation.summary import metrics_json, text_table
from ltbench.files import write_atomic
from ltbench.machine import emulates_bfloat16
from ltbench.methods import METHODS
from ltbench.methods.build import describe_model
from ltbench.methods.weights import write_weights
from ltbench.records.making import make_record, recipe_facts
from ltbench.records.record import RECORD, WEIGHTS, Record
from ltbench.records.validation import (
    VALIDATION,
    Validation,
    make_validation,
    read_selection,
)
from ltbench.seeding import derive
from ltbench.train.claim import RunFolder
from ltbench.train.compiled import check_compiler
from ltbench.train.curves import write_curves
from ltbench.train.features import check_features
from ltbench.train.feed import check_unseen
from ltbench.train.identity import Images, evaluated
from ltbench.train.logs.reporter import Logs
from ltbench.train.logs.sinks import check_installed
from ltbench.train.plan import curve_split
from ltbench.train.progress import NoProgress, default_progress
from ltbench.train.trainer import Trainer

METRICS = "metrics.json"  # averages of the record, for people and scripts


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        folder: output folder of the run.
        found: conditions and results of the run, on validation images with ``run.evaluate=val``.
        fresh: False when the run had been finished before and was only read.
    """

    folder: Path
    found: Record | Validation
    fresh: bool = True

    @property
    def record(self) -> Record:
        """Record of the run.

        Raises:
            UserError: it was evaluated on validation images, so it has none.
        """
        if isinstance(self.found, Record):
            return self.found
        raise UserError(
            f"{self.folder} holds a run that was evaluated on validation images only, so it has no "
            "record; the same recipe with run.evaluate=test makes one"
        )

    @property
    def split(self) -> Literal["test", "val"]:
        """Images that ``metrics`` are of."""
        return "test" if isinstance(self.found, Record) else "val"

    @property
    def metrics(self) -> Metrics:
        """Results on the test images, or on the validation images with ``run.evaluate=val``."""
        return self.found.metrics

    def __repr__(self) -> str:
        """Return a short table of the results."""
        found = self.found
        title = f"{found.recipe.name}, seed {found.seed}: {self.folder}"
        return f"{title}\n{text_table(found.metrics, self.split)}"


def run(
    recipe: Recipe,
    *,
    reporter: NoProgress | None = None,
    seen: dict[str, Images] | None = None,
    quiet: bool = False,
) -> Result:
    """Train and evaluate a recipe, and write weights, curves and record to its folder.

    A run that was interrupted goes on where it stopped; a finished one is read, not repeated, if
    recipe, seed, weights, images and class names are the same.

    Args:
        recipe: from ``ltbench.get_recipe``.
        reporter: shows progress; by default lines and a bar on a terminal or in a notebook, on
            standard error, and nothing elsewhere.
        seen: images of data sets that finished runs were compared with, shared by the runs of a
            grid.
        quiet: show no progress, wherever it runs.

    Raises:
        UserError: data, folder or options are not usable.
    """
    check_installed(recipe.log)
    device = pick_device(recipe.run.device)
    set_up_torch(recipe)
    if recipe.run.compile != "none":
        check_compiler(device, recipe.run.compile)
    ranks.init(device, recipe.run.timeout_minutes)
    if recipe.run.precision == "bf16" and emulates_bfloat16(device) and ranks.is_main():
        warnings.warn(
            "`run.precision=bf16`: this processor has no bf16 arithmetic and imitates it, many "
            "times slower than `run.precision=fp32`",
            stacklevel=2,
        )
    folder = RunFolder(recipe)
    show = reporter or (default_progress() if ranks.is_main() and not quiet else NoProgress())
    if recipe.log and ranks.is_main():
        show = Logs(recipe, show)
    try:
        with ranks.fail_together():
            finished = ranks.on_main(
                lambda: folder.finished({} if seen is None else seen) if folder.claim() else None
            )
            if finished is not None:
                return Result(folder.path, finished, fresh=False)
            return Result(folder.path, _run(recipe, folder, device, show))
    except UserError:
        folder.discard()
        raise
    finally:
        show.close()
        folder.release()


def _run(
    recipe: Recipe, folder: RunFolder, device: torch.device, reporter: NoProgress
) -> Record | Validation:
    """Train, evaluate and write the files of a finished run."""
    data: Data = ranks.on_all_ranks(recipe.data.config.load)  # type: ignore[attr-defined]
    split = evaluated(recipe, data)
    if recipe.run.evaluate == "val":
        check_unseen(recipe, data)
    check_features(recipe)
    trainer = Trainer(recipe, data, folder, device, reporter)
    method, history = trainer.fit(), trainer.history
    metrics = evaluate_split(
        method,
        split,
        data.info.class_counts,
        device=device,
        rule=recipe.shot_rule,
        workers=recipe.run.workers,
    )
    reporter.result(metrics, recipe.run.evaluate)

    def finish() -> Record | Validation:
        weights = folder.path / WEIGHTS
        write_curves(folder.path, history.epochs, recipe, curve_split(recipe, data)[0])
        digest = write_weights(weights, method.state_dict(), describe_model(recipe, data.info))
        if recipe.run.evaluate == "val":
            facts, seconds = recipe_facts(recipe), history.seconds
            make_validation(recipe, facts, data, metrics, weights, digest, seconds).save(
                folder.path / VALIDATION
            )
            return Validation.load(folder.path / VALIDATION)
        record = make_record(
            recipe,
            data,
            metrics,
            device=device,
            worlds=history.worlds,
            worlds_from=history.worlds_from,
            threads=history.threads,
            seconds=history.seconds,
            weights=weights,
            weights_sha256=digest,
            selected=read_selection(folder.path),
        )
        about = {"recipe": recipe.name, "digest": recipe.digest, "seed": recipe.seed}
        write_atomic(folder.path / METRICS, metrics_json(metrics, about))
        record.save(folder.path / RECORD)
        return Record.load(folder.path / RECORD)

    return ranks.on_main(lambda: folder.keep(finish))  # the other nodes need not see its files


def set_up_torch(recipe: Recipe) -> None:
    """Set threads, deterministic kernels and the global seed of this process.

    cuDNN times its algorithms once for each size, except for methods whose sizes change every step.
    """
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    if recipe.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(recipe.run.deterministic)
    moving = any(METHODS.get(stage.method.name).moving_shapes for stage in recipe.stages)
    torch.backends.cudnn.benchmark = not (recipe.run.deterministic or moving)
    torch.manual_seed(derive(recipe.seed, "process"))
