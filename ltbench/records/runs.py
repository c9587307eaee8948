"""Records of finished runs, by what a user calls them, and the predictions beside them."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltbench.config.paths import expanded
from ltbench.digest import read_json
from ltbench.errors import UserError, visible
from ltbench.records.record import RECORD, Record
from ltbench.records.store import sound_records

DEPTH = 3  # folders between that of a grid and those of its runs
RESULTS = "results.json"  # of a grid: the runs of its table
PREDICTIONS = ("predictions.csv", "predictions.parquet")  # as `ltbench eval out=DIR` writes them


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        record: its conditions and results.
        folder: where it lies; None for a committed record.
    """

    record: Record
    folder: Path | None = None


@dataclass(frozen=True)
class Predictions:
    """Whether a model was right, image by image.

    Args:
        labels: class of each test image, in the order of the test set [N].
        right: True where the prediction is the label [N].
    """

    labels: np.ndarray
    right: np.ndarray


def find_runs(what: str | Path) -> list[Run]:
    """Return the runs that a word stands for.

    Args:
        what: folder of a run or of a grid, a record's file, a shell pattern of these, or, of
            committed records, a recipe's name (also a pattern), ``NAME.SEED``, or the beginning of
            a run_id (8 digits or more).

    Raises:
        UserError: there is none, or a record is damaged.
    """
    word = str(what)
    path = expanded(word)
    paths = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path)))]  # noqa: PTH207
    found = [run for path in paths for run in _inside(path)]
    if found:
        return found
    if path.exists():
        raise UserError(
            f"expected finished runs in `{visible(word)}`, found no {RECORD}; give the folder of a "
            "run or of a grid"
        )
    records = [r for r in sound_records() if r.status != "withdrawn" and _is(word, r)]
    if not records:
        raise UserError(
            f"no run is `{visible(word)}`: expected the folder of a run or a grid, a record's "
            "file, a recipe's name or NAME.SEED of a committed record"
        )
    return [Run(record) for record in records]


def _inside(path: Path) -> list[Run]:
    """Return the runs in a folder or file."""
    if path.is_file() and path.suffix == ".json":
        return [Run(Record.load(path), path.parent if path.name == RECORD else None)]
    if (path / RECORD).is_file():
        return [Run(Record.load(path / RECORD), path)]
    below = ["/".join(["*"] * depth) for depth in range(1, DEPTH + 1)]
    files = sorted(
        file
        for part in below
        for file in path.glob(f"{part}/{RECORD}")
        if not any(name.startswith(".") for name in file.relative_to(path).parts)
    )
    if not files and (path / RESULTS).is_file():
        return _listed(path)
    return [Run(Record.load(file), file.parent) for file in files]


def _listed(folder: Path) -> list[Run]:
    """Return the runs that the results of a grid name, see ``records.results_files``.

    Raises:
        UserError: the file is damaged, or a run is gone.
    """
    try:
        rows = read_json(folder / RESULTS)["rows"]
        named = [(str(run["run_id"]), run["record"]) for row in rows for run in row["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / RESULTS} is damaged ({error}); run the grid again") from error
    runs = []
    for run_id, record in named:
        if record is None:
            runs += find_runs(run_id)
        else:
            path = Path(os.path.normpath(folder / str(record)))
            runs.append(Run(Record.load(path), path.parent))
    return runs


def _is(word: str, record: Record) -> bool:
    """Return whether a word stands for a committed record."""
    name = record.recipe.name
    if len(word) >= 8 and record.run_id.startswith(word):
        return True
    return any(fnmatch.fnmatchcase(n, word) for n in (name, f"{name}.{record.seed}"))


def read_predictions(run: Run) -> Predictions | None:
    """Return the predictions that ``ltbench eval`` wrote into a run's folder, or below it.

    Returns:
        Those that agree with the record's results of every class; None if there are none.

    Raises:
        UserError: a file is not a table of predictions.
    """
    import pandas as pd

    if run.folder is None:
        return None
    for path in [run.folder / name for name in PREDICTIONS] + [
        found for name in PREDICTIONS for found in sorted(run.folder.glob(f"*/{name}"))
    ]:
        if not path.is_file():
            continue
        columns = ["index", "label", "predicted"]
        try:
            if path.suffix == ".csv":
                table = pd.read_csv(path, usecols=columns)[columns]
            else:
                table = pd.read_parquet(path, columns=columns)
            numbers = table.sort_values("index").to_numpy(dtype=np.int64)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{path}: expected a table of predictions as `ltbench eval out=DIR` writes it, "
                f"found another ({str(error).splitlines()[0]}); remove it or write it again"
            ) from error
        labels, right = numbers[:, 1], numbers[:, 1] == numbers[:, 2]
        if agrees(run.record, labels, right):
            return Predictions(labels, right)
    return None


def agrees(record: Record, labels: np.ndarray, right: np.ndarray) -> bool:
    """Return whether predictions agree with the results of every class in a record.

    Args:
        record: of a run.
        labels: class of each image [N].
        right: whether the prediction is the label [N].
    """
    classes = len(record.metrics.total)
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        return False
    total = np.bincount(labels, minlength=classes)
    correct = np.bincount(labels[right], minlength=classes)
    found = (tuple(total.tolist()), tuple(correct.tolist()))
    return found == (record.metrics.total, record.metrics.correct)


def distinct(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, each once, those with a folder rather than without."""
    found: dict[str, Run] = {}
    for run in runs:
        before = found.get(run.record.run_id)
        if before is None or before.folder is None:
            found[run.record.run_id] = run
    return list(found.values())
