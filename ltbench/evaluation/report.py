"""Folder with the results of one evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ltbench.config.paths import expanded
from ltbench.data.base import Split
from ltbench.data.shots import shot_groups
from ltbench.evaluation.confusion import draw_confusion
from ltbench.evaluation.metrics import Metrics
from ltbench.evaluation.summary import metrics_json
from ltbench.evaluation.tables import Outcomes, class_frame, confusion_frame, encoded
from ltbench.files import check_replaceable, flush, replaced_folder

METRICS, CLASSES, CONFUSION, PICTURE = (
    "metrics.json",
    "per_class.csv",
    "confusion.csv",
    "confusion.png",
)
FILES = (METRICS, "predictions.csv", "predictions.parquet", CLASSES, CONFUSION, PICTURE)


def check_folder(folder: Path) -> None:
    """Check that a folder is new, or that of an earlier evaluation.

    Raises:
        UserError: it holds something else.
    """
    check_replaceable(expanded(folder), FILES)


def write_report(
    folder: Path,
    metrics: Metrics,
    outcomes: Outcomes,
    split: Split,
    names: Sequence[str],
    *,
    about: Mapping[str, Any],
    title: str,
    table: Literal["csv", "parquet"] = "csv",
) -> list[str]:
    """Write predictions, results by class, the confusion matrix and the metrics.

    The folder appears when all of it is written; that of an earlier evaluation is replaced.

    Args:
        folder: where to write.
        metrics: of the evaluation.
        outcomes: predictions for all images of the split.
        split: the evaluated images.
        names: name of each class [C].
        about: facts to put in front of the metrics.
        title: of the picture.
        table: format of the predictions.

    Returns:
        The names of the files.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    confusion = outcomes.confusion(len(names))
    groups = shot_groups(metrics.class_counts, metrics.shot_rule)
    content = {
        METRICS: metrics_json(metrics, about),
        f"predictions.{table}": encoded(outcomes.frame(split, names), f".{table}"),
        CLASSES: encoded(class_frame(metrics, names), ".csv"),
        CONFUSION: encoded(confusion_frame(confusion, names), ".csv"),
        PICTURE: draw_confusion(confusion, names, metrics.class_counts, groups, title),
    }
    with replaced_folder(expanded(folder), FILES) as partial:
        for name, data in content.items():
            (partial / name).write_bytes(data)
            flush(partial / name)
    return list(content)
