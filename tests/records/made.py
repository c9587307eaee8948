"""Records with given results, and the predictions that agree with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltbench.digest import digest_of
from ltbench.evaluation.metrics import BINS
from ltbench.records.record import Record

COUNTS = (500, 60, 4)  # a class with many training images, a medium number, and few
TOTAL = (100, 100, 100)


def made(
    name: str,
    seed: int,
    correct: Sequence[int],
    *,
    total: Sequence[int] = TOTAL,
    counts: Sequence[int] = COUNTS,
    test: str = "b",
    train: str = "a",
    shortened: Sequence[str] = (),
    version: str = "1.0",
    tree: dict[str, Any] | None = None,
    **resolved: Any,
) -> Record:
    """Return a sound record, of a resolved recipe or of some values of one."""
    tree = tree or {"name": name, "stages": [{"epochs": 200}], **resolved}
    images = sum(total)
    bins = [0] * BINS
    bins[7] = images
    right = [0] * BINS
    right[7] = sum(correct)
    content = {
        "recipe": {"name": name, "digest": digest_of(tree), "resolved": tree},
        "dataset": {"name": "digits_lt", "train_sha256": train * 64, "test_sha256": test * 64},
        "code": {"version": version},
        "seed": seed,
        "epoch": 200,
        "complete": not shortened,
        "shortened": list(shortened),
        "execution": {
            "device": "cpu", "cpu": "some", "ranks": [1], "per_rank_batch": [1],
            "precision": "fp32", "deterministic": True, "libraries": {}, "wall_seconds": 1.0,
            "peak_memory_bytes": 1,
        },
        "metrics": {
            "class_counts": counts, "correct": correct, "total": total, "bin_count": bins,
            "bin_confidence": [images / 2 if i == 7 else 0.0 for i in range(BINS)],
            "bin_correct": right,
        },
        "date": "2026-01-02",
    }  # fmt: skip
    return Record.model_validate(content).sealed()


def saved(folder: Path, *records: Record) -> Path:
    """Write records as the runs of a grid, and return its folder."""
    for record in records:
        path = folder / f"{record.recipe.name}-{record.recipe.digest[:8]}" / f"seed{record.seed}"
        path.mkdir(parents=True)
        record.save(path / "record.json")
    return folder


def predict(path: Path, labels: np.ndarray, right: np.ndarray, index: np.ndarray) -> None:
    """Write predictions as ``ltbench eval out=DIR`` does, in the order of an index."""
    predicted = np.where(right, labels, (labels + 1) % (labels.max() + 1))
    rows = [f"{i},{labels[i]},{predicted[i]}" for i in index]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["index,label,predicted", *rows]) + "\n")
