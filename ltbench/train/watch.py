"""Log of class gradients during training, as Parquet tables."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ltbench.class_gradients.agreement import agreement, between_groups
from ltbench.class_gradients.engine import Engine
from ltbench.config.recipe import Diagnose
from ltbench.data.shots import shot_groups
from ltbench.digest import read_json
from ltbench.distributed import ranks
from ltbench.errors import UserError
from ltbench.files import reason, write_atomic
from ltbench.methods.base import Batch, Method, Progress
from ltbench.train.step_gradients import SMALL, StepGradients, step_gradients
from ltbench.updates.base import Log, StepRun, Update

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "diagnostics"
TABLES = ("steps", "classes", "cosines")
LOG_BYTES = 256 * 2**20  # of the measurements of one step
PENDING = ".pending"  # files of the current epoch; pandas ignores names that begin with a dot
KEY = ["stage", "epoch", "step"]
Row = dict[str, Any]


class Watch(Update):
    """Wrapper of an update that logs class gradients every few steps.

    They are computed at the weights before the step, on the batch of the step, for any method and
    update: gradients of the method's loss, class by class, and their inner products with the
    gradient that the update passed to the optimizer. Weights, statistics and random state are
    restored bit for bit, so training is the same with and without.

    Each measurement is first written as a small file, named by its step; at the end of an epoch
    these are merged into one Parquet file per table. Steps that a killed run repeats overwrite
    their files.

    Args:
        update: the update that does the steps.
        options: interval and part.
        folder: run folder, which gets a folder ``diagnostics``.
        per_epoch: steps per epoch.
        rule: definition of shot groups.
    """

    def __init__(
        self, update: Update, options: Diagnose, folder: Path, per_epoch: int, rule: str = "strict"
    ) -> None:
        super().__init__(update.config)
        self.update, self.options, self.rule = update, options, rule
        self.folder, self.per_epoch = folder / FOLDER, per_epoch
        self._engine: Engine | None = None
        self._epoch = -1  # of the last check of the engine; a method may change with epochs

    def step(self, run: StepRun, batches: Sequence[Batch], at: Progress) -> Log:
        """Do the step."""
        every = self.options.every
        if not every or (at.epoch * self.per_epoch + at.step) % every:
            return self.update.step(run, batches, at)
        name, part = _part(run, self.options.part)
        handed: list[Tensor] = []

        def keep(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            handed[:] = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in part]

        trained = run.parameters
        before = [p.detach().clone() for p in trained]
        hook = run.optimizer.register_step_pre_hook(keep)
        try:
            log = self.update.step(run, batches, at)
        finally:
            hook.remove()
        moved = {id(p): b - p.detach() for p, b in zip(trained, before, strict=True)}
        with _weights(trained, before):
            plain = StepRun(run.method, run.optimizer, run.autocast)
            found = step_gradients(
                plain,
                batches,
                at,
                part,
                mode=self.options.gradients,
                engine=self._engine_of(run.method, part, at.epoch),
                direction=handed or None,
            )
        step = {"lr": at.lr, "part": name}
        step |= _step(handed, [moved[id(p)] for p in part] if handed else [], at.lr)
        tables = _rows(found, log, step, run.method.info.class_counts, self.rule)
        ranks.on_main(lambda: self._write(tables, at))
        return log

    def flush(self) -> None:
        """Merge the measurements of finished epochs into one file per table and epoch.

        Raises:
            UserError: a file cannot be written.
        """
        if self.options.every:
            ranks.on_main(lambda: _compact(self.folder))

    def _engine_of(self, method: Method, part: list[nn.Parameter], epoch: int) -> Engine:
        if self._engine is None or self._engine.part != part:
            self._engine = Engine(method, part)
        if epoch != self._epoch:
            self._engine.reset()
            self._epoch = epoch
        return self._engine

    def _write(self, tables: dict[str, list[Row]], at: Progress) -> None:
        where = {"stage": at.stage, "epoch": at.epoch, "step": at.step}
        count = at.epoch * self.per_epoch + at.step
        content = {
            name: [{**where, "count": count, **row} for row in rows]
            for name, rows in tables.items()
        }
        file = self.folder / PENDING / f"s{at.stage}-e{at.epoch:04d}-t{at.step:06d}.json"
        _make(file.parent)
        write_atomic(file, json.dumps(content).encode())


def read_log(folder: Path, table: str) -> pd.DataFrame:
    """Read one table of a run's log, including an unfinished epoch.

    Args:
        folder: run folder.
        table: ``steps``, ``classes`` or ``cosines``.

    Raises:
        UserError: the run has no such log, or one of its files is damaged.
    """
    import pandas as pd

    home = folder / FOLDER
    with _damage(home):
        frames = [pd.read_parquet(file) for file in sorted((home / table).glob("stage*.parquet"))]
        pending = sorted((home / PENDING).glob("s*.json"))
        frames += [pd.DataFrame(read_json(file, limit=LOG_BYTES)[table]) for file in pending]
        frames = [frame for frame in frames if len(frame)]
        if frames:
            return _merged(frames)
    raise UserError(
        f"{home} has no table `{table}`; train with `diagnose.every=N` to write the log"
    )


@contextmanager
def _damage(home: Path) -> Iterator[None]:
    """Turn what damaged files of a log raise into a ``UserError``."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError) as error:
        raise UserError(
            f"a file of the log {home} is damaged ({reason(error)}); restore it, or delete the log"
        ) from error


def _merged(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate measurements in training order; for repeated steps, keep the last frame."""
    import pandas as pd

    every = pd.concat([f.assign(_from=i) for i, f in enumerate(frames)], ignore_index=True)
    newest = every.groupby(KEY)["_from"].transform("max")
    kept = every[every["_from"] == newest].drop(columns="_from")
    return kept.sort_values(KEY, kind="stable", ignore_index=True)


def _compact(folder: Path) -> None:
    """Move pending measurements into the Parquet files of their epochs."""
    import pandas as pd

    pending = sorted((folder / PENDING).glob("s*.json"))
    for epoch, files in groupby(pending, key=lambda f: f.name.rpartition("-t")[0]):
        with _damage(folder):
            measured = [read_json(file, limit=LOG_BYTES) for file in files]
            stage, number = epoch.removeprefix("s").split("-e")
        for table in TABLES:
            target = folder / table / f"stage{stage}-epoch{number}.parquet"
            with _damage(folder):
                rows = [row for found in measured for row in found[table]]
                if not rows:
                    continue
                frames = [pd.read_parquet(target)] if target.is_file() else []
                merged = _merged([*frames, pd.DataFrame(rows)])
            content = io.BytesIO()
            merged.to_parquet(content, index=False)
            _make(target.parent)
            write_atomic(target, content.getvalue())
    shutil.rmtree(folder / PENDING, ignore_errors=True)


def _rows(
    found: StepGradients, log: Log, step: Row, counts: Sequence[int], rule: str
) -> dict[str, list[Row]]:
    """Return the rows of one measurement by table; ``step`` holds columns of the step."""
    total, chosen = len(found.classes), found.chosen
    agree = agreement(found.products, total)
    shots = {k: name for name, classes in shot_groups(counts, rule).items() for k in classes}
    names = [shots[k] for k in found.classes.tolist()]
    nan = float("nan")
    along = np.full(len(chosen) + 1, nan) if found.along is None else found.along
    unit = step["direction_norm"]
    with np.errstate(divide="ignore", invalid="ignore"):
        with_direction = along[:-1] / (agree.norm * unit)
    steps: Row = {
        **step,
        "gradients": found.mode,
        "loss": float(found.share.sum()),
        "classes": total,
        "looked_at": len(chosen),
        "pairs": agree.pairs,
        "conflicts": agree.conflicts,
        "dominated": agree.dominated,
        "mean_norm": agree.mean_norm,
        "cosine_mean_direction": _ratio(float(along.sum()) / total, agree.mean_norm * unit),
        "solver_gap": float(log.get("gap", nan)),
    }
    group = np.asarray(names)
    seen = ~np.isnan(found.correct)
    for name in dict.fromkeys(shots.values()):
        own = group == name
        rows = found.rows[own]
        steps[f"loss_{name}"] = _mean(found.loss[own], rows)
        steps[f"accuracy_{name}"] = _mean(found.correct[own & seen], found.rows[own & seen])
        steps[f"ratio_{name}"] = _mean(agree.ratio[own[chosen]])
    for (a, b), value in between_groups(agree.cosine, group[chosen].tolist()).items():
        steps[f"cosine_{a}_{b}"] = value
    weights = {}
    if log.get("weights") is not None:
        weights = dict(zip(map(int, log["classes"]), map(float, log["weights"]), strict=True))
    place = {int(i): n for n, i in enumerate(chosen)}
    classes = []
    for i, k in enumerate(found.classes.tolist()):
        n = place.get(i)
        classes.append(
            {
                "class": k,
                "group": names[i],
                "rows": float(found.rows[i]),
                "loss": float(found.loss[i]),
                "loss_share": float(found.share[i]),
                "accuracy": float(found.correct[i]),
                "norm": _at(agree.norm, n),
                "norm_ratio": _at(agree.ratio, n),
                "cosine_mean": _at(agree.with_mean, n),
                "cosine_direction": _at(with_direction, n),
                "solver_weight": weights.get(k, nan),
            }
        )
    cosines = []
    if len(counts) <= SMALL:
        own_classes = found.classes[chosen].tolist()
        cosines = [
            {"class_i": a, "class_j": b, "cosine": float(agree.cosine[i, j])}
            for i, a in enumerate(own_classes)
            for j, b in enumerate(own_classes)
            if i < j
        ]
    return {"steps": [steps], "classes": classes, "cosines": cosines}


def _step(handed: Sequence[Tensor], moved: Sequence[Tensor], lr: float) -> Row:
    """Return norms of the gradient passed to the optimizer and of the step, and their cosine."""
    direction, step = _dot(handed, handed) ** 0.5, _dot(moved, moved) ** 0.5
    return {
        "direction_norm": direction,
        "step_norm": step / lr if lr > 0 else float("nan"),
        "cosine_direction_step": _ratio(_dot(handed, moved), direction * step),
    }


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    products = [(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]
    return float(torch.stack(products).sum()) if products else float("nan")


def _ratio(value: float, by: float) -> float:
    return value / by if by > 0 else float("nan")


def _mean(values: Any, weights: Any = None) -> float:
    return float(np.average(values, weights=weights)) if len(values) else float("nan")


def _at(values: Any, place: int | None) -> float:
    return float("nan") if values is None or place is None else float(values[place])


def _part(run: StepRun, names: str | Sequence[str]) -> tuple[str, list[nn.Parameter]]:
    """Return the part, or all trained parameters if none of it is trained."""
    known = {"whole", "head", "backbone", "last", *run.method.backbone.stages}
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in known:
            raise UserError(
                f"`diagnose.part`: nothing is called `{name}`; known: {', '.join(sorted(known))}"
            )
    try:
        return "+".join(wanted), run.part(wanted)
    except UserError:
        return "whole", run.part("whole")


@contextmanager
def _weights(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """Give parameters other values inside, and restore them bit for bit."""
    own = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), list(values))
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), own)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {folder}: {error.strerror}") from error
