"""Averages of a model's results as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ltbench.data.shots import shot_bounds, shot_groups
from ltbench.evaluation.metrics import Metrics

DERIVED = ("top1", "many", "medium", "few", "mean_recall", "ece")
COLUMNS = {"top1": "overall", "many": "many", "medium": "medium", "few": "few", "ece": "ECE"}


def metrics_json(metrics: Metrics, about: Mapping[str, Any]) -> bytes:
    """Return a JSON file of results: averages in [0, 1] first, then the counts they come from.

    Args:
        metrics: of the evaluation.
        about: facts to put in front.
    """
    tree = {
        **about,
        "images": sum(metrics.total),
        **{name: getattr(metrics, name) for name in DERIVED},
        "counts": metrics.model_dump(mode="json"),
    }
    return (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode()


def percentages(metrics: Metrics) -> list[str]:
    """Return the columns of a table of results in percent; a group without classes is ``-``."""
    values = (getattr(metrics, name) for name in COLUMNS)
    return ["-" if value is None else f"{100 * value:.2f}" for value in values]


def text_table(metrics: Metrics, split: str = "test") -> str:
    """Return the results as a table of two lines, and a line that defines the shot groups.

    Args:
        metrics: of the evaluation.
        split: name of the images, of at most four letters.
    """
    head = "".join(f"{name:>9}" for name in COLUMNS.values())
    row = "".join(f"{value:>9}" for value in percentages(metrics))
    return f"         {head}\n{f'{split}, %':<9}{row}\n{shot_line(metrics)}"


def shot_line(metrics: Metrics) -> str:
    """Return the rule of the shot groups, by training images, and the classes in each."""
    low, high = shot_bounds(metrics.shot_rule)
    groups = shot_groups(metrics.class_counts, metrics.shot_rule)
    sizes = " / ".join(f"{len(classes):,}" for classes in groups.values())
    return f"many > {high}, medium {low}-{high}, few < {low}: {sizes} classes"
