from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ltbench import __version__, checkpoint, dist
from ltbench.curves import write_curves
from ltbench.data.base import Data
from ltbench.environment import emulates_bfloat16
from ltbench.errors import UserError
from ltbench.evaluation import evaluate_split
from ltbench.metrics import Metrics
from ltbench.recipe import Recipe
from ltbench.record import Record, make_record
from ltbench.report import Silent
from ltbench.seeding import derive
from ltbench.trainer import Trainer

RECIPE, WEIGHTS, RECORD, LOCK = "recipe.json", "model.safetensors", "record.json", ".lock"
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


def run(recipe: Recipe, *, reporter: Silent | None = None) -> Result:
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
    dist.init(device, recipe.run.timeout_minutes)
    if recipe.run.precision == "bf16" and emulates_bfloat16(device) and dist.is_main():
        warnings.warn(
            "`run.precision=bf16`: this processor has no bf16 arithmetic and imitates it, many "
            "times slower than `run.precision=fp32`",
            stacklevel=2,
        )
    folder = run_folder(recipe)
    lock = FileLock(folder / LOCK)
    try:
        with dist.united():
            finished = claim(recipe, folder, lock)
            if finished is not None:
                return Result(folder, finished, fresh=False)
            return Result(folder, _run(recipe, folder, device, reporter or Silent()))
    finally:
        lock.release()


def _run(recipe: Recipe, folder: Path, device: torch.device, reporter: Silent) -> Record:
    """Train, evaluate and write what a finished run leaves."""
    data: Data = dist.together(recipe.data.config.load)  # type: ignore[attr-defined]
    trainer = Trainer(recipe, data, folder, device, reporter)
    method = trainer.fit()
    metrics = evaluate_split(
        method,
        data.test,
        data.info.class_counts,
        device=device,
        rule=recipe.shot_rule,
        workers=recipe.run.workers,
    )

    def finish() -> Record:
        write_curves(folder, trainer.history)
        digest = checkpoint.write_weights(
            folder / WEIGHTS, method.state_dict(), describe_model(recipe, data)
        )
        record = make_record(
            recipe,
            data,
            metrics,
            device=device,
            worlds=trainer.worlds,
            worlds_from=trainer.worlds_from,
            seconds=trainer.seconds,
            weights=folder / WEIGHTS,
            weights_sha256=digest,
        )
        record.save(folder / RECORD)
        return Record.load(folder / RECORD)

    return dist.on_main(finish)  # the other nodes need not see its files


def pick_device(name: str) -> torch.device:
    """Return the device of this rank.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UserError("`run.device` asks for a GPU, but torch finds none; use run.device=cpu")
        device = torch.device(name if ":" in name else f"cuda:{dist.local_rank()}")
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"`run.device` = {device}, but there are {torch.cuda.device_count()} GPUs"
            )
        torch.cuda.set_device(device)
        return device
    return torch.device(name)


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

    return dist.on_main(work)


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
    checkpoint.write_json(folder / RECIPE, {"recipe": recipe.name, **mark, "tree": recipe.tree()})


def _read_mark(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no mapping")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable ({error}); pass another `out=`") from error
    return found


def describe_model(recipe: Recipe, data: Data) -> dict[str, Any]:
    """Return what is needed to rebuild the method around saved weights."""
    return {
        "ltbench": __version__,
        "recipe": recipe.tree(),
        "digest": recipe.digest,
        "seed": recipe.seed,
        "dataset": data.info.name,
        "class_counts": list(data.info.class_counts),
        "class_names": list(data.info.class_names),
        "mean": list(data.info.mean),
        "std": list(data.info.std),
    }
