"""Published results: rows of papers and repositories, and footnotes on their inconsistencies."""

from __future__ import annotations

import csv
import functools
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltbench.config.resources import leaderboard_dir
from ltbench.records.aggregate import Row
from ltbench.records.titles import backbone_title, dataset_title, key, method_title

if TYPE_CHECKING:
    from ltbench.config.recipe import Recipe

INAT_RATIOS = {500.0, 512.0}  # by counts; as papers print it


@dataclass(frozen=True)
class Footnote:
    """One known inconsistency of the published numbers.

    Args:
        mark: its number, as text.
        text: what is inconsistent.
        scope: ``row`` if it is about single results, ``table`` if about all of a printed table.
        rows: conditions; a row that meets one of them, in all columns named there, is meant.
    """

    mark: str
    text: str
    scope: str
    rows: tuple[dict[str, str | list[str]], ...]

    def means(self, row: Row) -> bool:
        """Return True if the footnote applies to a row of ``published.csv``."""
        return any(all(_is_one_of(row[c], v) for c, v in rule.items()) for rule in self.rows)


def published(metric: str | None = "top1") -> list[Row]:
    """Return the rows of ``published.csv``, numbers as text, exactly as printed.

    Args:
        metric: ``top1``, ``open_set_f``, ``open_set_f_percent``, ``gpu_hours``, or ``None`` for
            all. Rows of different metrics must not be compared.
    """
    with (leaderboard_dir() / "published.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [dict(row) for row in rows if metric in (None, row["metric"])]


@functools.cache
def footnotes() -> tuple[Footnote, ...]:
    """Return the known inconsistencies of the published numbers, in the order of their marks."""
    text = (leaderboard_dir() / "footnotes.json").read_text(encoding="utf-8")
    notes: list[dict[str, Any]] = json.loads(text)["notes"]
    return tuple(
        Footnote(str(number), note["text"], note["scope"], tuple(note["rows"]))
        for number, note in enumerate(notes, 1)
    )


def marks(row: Row, scope: str | None = "row") -> list[str]:
    """Return the marks of the footnotes on a row of ``published.csv``.

    Args:
        row: from ``published``.
        scope: ``row``, ``table``, or ``None`` for both.
    """
    return [n.mark for n in footnotes() if scope in (None, n.scope) and n.means(row)]


def nearest_published(dataset: str, ratio: float, method: str, backbone: str) -> Row | None:
    """Return the published row to set beside a result, or ``None`` if there is nothing comparable.

    Data set, ratio and method must agree (a method's variant in brackets is taken if there is
    no plain one); the same backbone and rows with shot groups are preferred.

    Args:
        dataset: registered name or title.
        ratio: imbalance ratio.
        method: the literature's name, or a recipe's name.
        backbone: registered name or title.
    """
    title, network = dataset_title(dataset), backbone_title(backbone)
    names = {key(method), key(method_title(method))}

    def distance(row: Row) -> tuple[bool, bool, bool]:
        return (row["backbone"] != network, key(row["method"]) not in names, not row["few"])

    rows = [
        row
        for row in published()
        if row["dataset"] == title
        and same_ratio(title, float(row["imbalance_ratio"]), ratio)
        and {key(row["method"]), key(row["method"].split(" (")[0])} & names
    ]
    return min(rows, key=distance, default=None)


def target_row(recipe: Recipe) -> str | None:
    """Return the published row that a recipe aims at as one line, ``None`` if there is none.

    A result that was printed at one ratio only is shown for others as well, and says so.
    """
    if recipe.target is None:
        return None
    title = dataset_title(recipe.data.name)
    ratio = getattr(recipe.data.config, "imbalance_ratio", None)
    rows = [
        row
        for row in published()
        if (row["method"], row["source"]) == (recipe.target.method, recipe.target.source)
        and row["dataset"] == title
    ]
    same = [row for row in rows if ratio is None or float(row["imbalance_ratio"]) == ratio]
    if not same and len(rows) != 1:
        return None
    network = backbone_title(recipe.backbone.name)
    row = min(same or rows, key=lambda row: row["backbone"] != network)
    groups = [f"{g} {row[g]}" for g in ("many", "medium", "few") if row[g]]
    numbers = ", ".join([f"overall {row['overall']}", *groups])
    return (
        f"{row['method']} on {title}, ratio {row['imbalance_ratio']}"
        f"{'' if same else ' (printed at no other)'}, "
        f"{row['backbone']}: {numbers} ({row['source']})"
    )


def short_source(source: str) -> str:
    """Return a source without a repository's owner and file and without remarks in brackets."""
    name = re.sub(r"^[\w-]+/|\s*\(.*\)$| README| MODEL_ZOO", "", source)
    return name.replace(" main Table", " Table").replace(" appendix Table", " app. Table")


def same_ratio(dataset: str, one: float, other: float) -> bool:
    """Return True if two imbalance ratios of a data set (its title) are the same."""
    either = dataset == dataset_title("inat18") and {one, other} <= INAT_RATIOS
    return one == other or either


def _is_one_of(value: str, wanted: str | list[str]) -> bool:
    return value in ([wanted] if isinstance(wanted, str) else wanted)
