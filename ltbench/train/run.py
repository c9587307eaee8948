from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ltbench.config.recipe import Recipe
from ltbench.data.base import Data
from ltbench.distributed import ranks
from ltbench.distributed.device import pick_device
from ltbench.errors import UserError
from ltbench.evaluation.evaluate import evaluate_split
from ltbench.evaluation.metrics import Metrics
from ltbench.files import write_json
from ltbench.machine import emulates_bfloat16
from ltbench.methods.build import describe_model
from ltbench.methods.weights import write_weights
from ltbench.records.record import LOCK, RECIPE, RECORD, WEIGHTS, Record, make_record
from ltbench.seeding import derive
from ltbench.train.curves import write_curves
from ltbench.train.progress import NoProgress
from ltbench.train.trainer import Trainer

PATIENCE = 20.0  # seconds that a rank waits for the lock of its run's folder


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        folder: where everything of the run lies.
        record: what was done and what came out.
        fresh: False when the run had been finished before and was only read.
    """

    folder: Path
    record: Record
    fresh: bool = True

    @property
    def metrics(self) -> Metrics:
        """Results on the test set."""
        return self.record.metrics


def run(recipe: Recipe, *, reporter: NoProgress | None = None) -> Result:
    """Train and evaluate a recipe, and write weights, curves and record to its folder.

    A run that was interrupted goes on where it stopped; a finished one is read, not repeated.

    Args:
        recipe: from ``ltbench.get_recipe``.
        reporter: shows progress; by default nothing does.

    Raises:
        UserError: data, folder or options are not usable.
    """
    device = pick_device(recipe.run.device)
    set_up_torch(recipe)
    ranks.init(device, recipe.run.timeout_minutes)
    if recipe.run.precision == "bf16" and emulates_bfloat16(device) and ranks.is_main():
        warnings.warn(
            "`run.precision=bf16`: this processor has no bf16 arithmetic and imitates it, many "
            "times slower than `run.precision=fp32`",
            stacklevel=2,
        )
    folder = run_folder(recipe)
    lock = FileLock(folder / LOCK)
    try:
        with ranks.fail_together():
            finished = claim(recipe, folder, lock)
            if finished is not None:
                return Result(folder, finished, fresh=False)
            return Result(folder, _run(recipe, folder, device, reporter or NoProgress()))
    finally:
        lock.release()


def _run(recipe: Recipe, folder: Path, device: torch.device, reporter: NoProgress) -> Record:
    """Train, evaluate and write what a finished run leaves."""
    data: Data = ranks.on_all_ranks(recipe.data.config.load)  # type: ignore[attr-defined]
    trainer = Trainer(recipe, data, folder, device, reporter)
    method, history = trainer.fit(), trainer.history
    metrics = evaluate_split(
        method,
        data.test,
        data.info.class_counts,
        device=device,
        rule=recipe.shot_rule,
        workers=recipe.run.workers,
    )

    def finish() -> Record:
        write_curves(folder, history.epochs)
        digest = write_weights(folder / WEIGHTS, method.state_dict(), describe_model(recipe, data))
        record = make_record(
            recipe,
            data,
            metrics,
            device=device,
            worlds=history.worlds,
            worlds_from=history.worlds_from,
            seconds=history.seconds,
            weights=folder / WEIGHTS,
            weights_sha256=digest,
        )
        record.save(folder / RECORD)
        return Record.load(folder / RECORD)

    return ranks.on_main(finish)  # the other nodes need not see its files


def set_up_torch(recipe: Recipe) -> None:
    """Set threads, determinism and the global seed of this process."""
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    if recipe.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(recipe.run.deterministic)
    torch.backends.cudnn.benchmark = not recipe.run.deterministic
    torch.manual_seed(derive(recipe.seed, "process"))


def run_folder(recipe: Recipe) -> Path:
    """Return the folder of a run; overrides change the digest and so the default folder."""
    if recipe.out is not None:
        return Path(recipe.out)
    return Path("runs") / f"{recipe.name}-{recipe.digest[:8]}" / f"seed{recipe.seed}"


def claim(recipe: Recipe, folder: Path, lock: FileLock) -> Record | None:
    """Make the folder this run's own, on rank 0, and return the record if it is finished.

    Args:
        recipe: what wants to run.
        folder: where; made if it does not exist.
        lock: taken on rank 0, so that no second process writes there; a kill releases it.

    Raises:
        UserError: it cannot be written, is in use, belongs to another run, or holds something else.
    """

    def work() -> Record | None:
        _claim(recipe, folder, lock)
        return Record.load(folder / RECORD) if (folder / RECORD).is_file() else None

    return ranks.on_main(work)


def _claim(recipe: Recipe, folder: Path, lock: FileLock) -> None:
    # A rank that torchrun has started again may meet the lock of the one that is just dying.
    patience = PATIENCE if torch.distributed.is_torchelastic_launched() else 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if content and RECIPE not in content:
            raise UserError(
                f"the output folder {folder} is not empty (`{content[0]}`, ...) and holds no run; "
                "pass another `out=`"
            )
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise UserError(
            f"another process is running in {folder}; wait for it, or pass another `out=`"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot write to the output folder {folder}: {error.strerror}; pass another `out=`"
        ) from error
    mark = {"digest": recipe.digest, "seed": recipe.seed}
    if (folder / RECIPE).is_file():
        found = _read_mark(folder / RECIPE)
        if {k: found.get(k) for k in mark} != mark and (folder / "checkpoints").is_dir():
            raise UserError(
                f"the output folder {folder} belongs to `{found.get('recipe')}` (digest "
                f"{found.get('digest')}, seed {found.get('seed')}), this run is `{recipe.name}` "
                f"(digest {recipe.digest}, seed {recipe.seed}); pass another `out=`"
            )
        if recipe.resume == "never" and (folder / "checkpoints").is_dir():
            raise UserError(
                f"{folder} already holds this run and `resume=never` was given; pass another "
                "`out=`, or leave `resume` out to go on"
            )
    write_json(folder / RECIPE, {"recipe": recipe.name, **mark, "tree": recipe.tree()})


def _read_mark(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable ({error}); pass another `out=`") from error
    return found
