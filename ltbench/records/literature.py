"""Published results: rows of papers and repositories, and footnotes on their inconsistencies."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.config.resources import leaderboard_dir
from ltbench.digest import read_regular
from ltbench.errors import UserError, visible
from ltbench.records.aggregate import Row
from ltbench.records.titles import backbone_title, dataset_title, key, method_title

if TYPE_CHECKING:
    from ltbench.config.recipe import Recipe

INAT_RATIOS = {500.0, 512.0}  # by counts; as papers print it
METRICS = ("top1", "open_set_f", "open_set_f_percent", "gpu_hours")
UNKNOWN = "unknown"  # what no source says
_ORIGIN = r"printed|code|unknown"  # of a fact: the source itself, its authors' code
_NUMBER, _TEXT = r"\d{1,6}(\.\d{1,6})?", r"[^\x00-\x1f\x7f-\x9f]{1,200}"
FIELDS = {
    "dataset": rf"({_TEXT})?",
    "imbalance_ratio": rf"({_NUMBER})?",
    "method": _TEXT,
    "backbone": rf"({_TEXT})?",
    "metric": "|".join(METRICS),
    **dict.fromkeys(("many", "medium", "few"), rf"({_NUMBER})?"),
    "overall": _NUMBER,
    "epochs": r"\d{1,6}(\+(\d{1,6}|\?))*|unknown",
    "epochs_from": _ORIGIN,
    "augmentation": _TEXT,
    "augmentation_from": _ORIGIN,
    "selection": "last|best on test|best on validation|unknown",
    "selection_from": _ORIGIN,
    "source": _TEXT,
}
"""Columns of ``published.csv``, each with the form of its values."""
FACTS = ("epochs", "augmentation", "selection")
LARGEST = 16 * 2**20  # bytes of published.csv
# Repositories whose names say less, or more, than their readers need.
_SHORT = {
    "BalancedMetaSoftmax-Classification": "BALMS",
    "Parametric-Contrastive-Learning": "PaCo",
    "Balanced-Contrastive-Learning": "BCL",
    "RIDE-LongTailRecognition": "RIDE",
    "Imbalanced_SAM": "ImbSAM",
    "Saddle-LongTail": "Saddle",
}


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
    path = leaderboard_dir() / "published.csv"
    try:
        facts = path.stat()
        rows = _read(path, facts.st_mtime_ns, facts.st_size)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; restore it") from error
    return [dict(row) for row in rows if metric in (None, row["metric"])]


@functools.lru_cache(maxsize=4)
def _read(path: Path, *_version: int) -> list[Row]:
    """Return the rows of a file of published results, checked."""
    raw = read_regular(path, LARGEST)
    if len(raw) > LARGEST:
        raise UserError(f"{path}: expected at most {LARGEST:,} bytes, found more")
    try:
        reader = csv.DictReader(io.StringIO(raw.decode(), newline=""), strict=True)
        if tuple(reader.fieldnames or ()) != tuple(FIELDS):
            found = visible(", ".join(map(str, reader.fieldnames or ())))
            raise UserError(
                f"{path}, line 1: expected the columns {', '.join(FIELDS)}, found {found}"
            )
        forms = {name: re.compile(form) for name, form in FIELDS.items()}
        rows = []
        for row in reader:
            for name, form in forms.items():
                value = row[name]
                if value is None or None in row or not form.fullmatch(value):
                    raise UserError(
                        f"{path}, line {reader.line_num}: `{name}`: expected {form.pattern}, found "
                        f"{visible(str(value))!r} in {len(row)} columns"
                    )
            for name in FACTS:
                if (row[name] == UNKNOWN) != (row[f"{name}_from"] == UNKNOWN):
                    raise UserError(
                        f"{path}, line {reader.line_num}: `{name}_from`: expected {UNKNOWN} "
                        f"exactly where `{name}` is {UNKNOWN}, found {row[f'{name}_from']!r}"
                    )
            if row["metric"] == "top1" and not (row["dataset"] and row["imbalance_ratio"]):
                raise UserError(
                    f"{path}, line {reader.line_num}: a top1 result without data set or ratio"
                )
            rows.append(dict(row))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file in UTF-8 ({error}); restore it") from error
    return rows


def second_hand(source: str) -> bool:
    """Return whether a number was not read in its paper, nor in its authors' repository."""
    return source.startswith("AGGREGATOR") or " issue" in source


def longest_stage(epochs: str) -> int | None:
    """Return the epochs of the longest stage in a text such as ``200+30``, ``200+?``.

    The steps of a run that was cut short do not count: ``7 steps of 200`` has 200.
    """
    found = re.findall(r"\d+", epochs.rpartition(" of ")[2])
    return max(map(int, found), default=None)


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
    if source.startswith("AGGREGATOR "):
        return f"{source.split()[1]} (second-hand)"
    name = re.sub(r"^[\w-]+/|;.*$|\s*\([^()]*\)| README.*$| MODEL_ZOO", "", source)
    name = name.replace(" main Table", " Table").replace(" appendix Table", " app. Table")
    return _SHORT.get(name, name)


def same_ratio(dataset: str, one: float, other: float) -> bool:
    """Return True if two imbalance ratios of a data set (its title) are the same."""
    either = dataset == dataset_title("inat18") and {one, other} <= INAT_RATIOS
    return one == other or either


def _is_one_of(value: str, wanted: str | list[str]) -> bool:
    return value in ([wanted] if isinstance(wanted, str) else wanted)
