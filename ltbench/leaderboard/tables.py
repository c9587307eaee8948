"""Committed records and the literature's numbers in one table; torch is never imported here."""

from __future__ import annotations

import csv
import fnmatch
import math
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.aggregate import VALUES, Row, average_seeds, percentages, seed_group
from ltbench.errors import UserError, did_you_mean
from ltbench.names import (
    backbone_title,
    dataset_names,
    dataset_title,
    key,
    matches,
    method_title,
)
from ltbench.record import Record
from ltbench.registry import natural
from ltbench.resources import leaderboard_dir

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from ltbench.recipe import Recipe

COLUMNS = (
    *("dataset", "imbalance_ratio", "method", "backbone"),
    *(column for value in VALUES for column in (value, f"{value}_std")),
    *("n", "epochs", "origin", "status", "source", "note"),
)
INAT_RATIOS = {500.0, 512.0}  # by counts; as papers print it


def published(metric: str | None = "top1") -> list[Row]:
    """Return the rows of ``published.csv``, numbers as text, exactly as printed.

    Args:
        metric: ``top1``, ``open_set_f``, ``open_set_f_percent``, ``gpu_hours``, or ``None`` for
            all. Rows of different metrics must not be compared.
    """
    with (leaderboard_dir() / "published.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [dict(row) for row in rows if metric in (None, row["metric"])]


def records(folder: Path | None = None) -> list[Record]:
    """Return all records under a folder, by default the committed ones.

    Raises:
        UserError: one cannot be trusted, or two are of the same recipe, data, code and seed.
    """
    folder = folder or leaderboard_dir() / "records"
    found: dict[tuple[Any, ...], Path] = {}
    loaded = []
    for path in sorted(folder.rglob("*.json")):
        record = Record.load(path)
        code = (record.code.version, record.code.commit, record.code.dirty)
        run = (*seed_group(record), code, record.seed)
        if run in found:
            raise UserError(
                f"{path} and {found[run]} are of the same recipe, data, code and seed; keep one"
            )
        found[run] = path
        loaded.append(record)
    return loaded


def table(
    *,
    dataset: str = "",
    ratio: str | float = "",
    backbone: str = "",
    method: str = "",
    sort: str = "",
    folder: Path | None = None,
) -> pd.DataFrame:
    """Return reproduced and published top-1 results, in percent, one row per recipe or citation.

    Seeds are averaged within one recipe digest, one code path of completeness and one content of
    the data; standard deviations have n - 1 in the denominator and are missing for n = 1. Origins
    are never mixed. Shot groups of reproduced rows follow the strict rule; published ones, whatever
    their source used.

    Args:
        dataset: shell pattern of a title or registered name, any case, ``-LT`` optional.
        ratio: imbalance ratio.
        backbone: shell pattern.
        method: shell pattern of the literature's or the recipe's name.
        sort: column to sort by within each data set and ratio; by default ``overall``.
        folder: where records lie, by default the committed ones.

    Raises:
        UserError: a filter makes no sense, or a record cannot be trusted.
    """
    import pandas as pd

    if sort and sort not in COLUMNS:
        raise UserError(
            f"unknown column `{sort}`{did_you_mean(sort, COLUMNS)}; sort by one of "
            f"{', '.join(COLUMNS)}"
        )
    wanted = _number(ratio)
    rows = [
        row
        for row in [*average_seeds(records(folder)), *map(_cited, published())]
        if (not dataset or matches(dataset, *dataset_names(row["dataset"])))
        and (wanted is None or _same_ratio(row["dataset"], row["imbalance_ratio"], wanted))
        and (not backbone or matches(backbone, row["backbone"], row.get("registered", "")))
        and (not method or matches(method, row["method"], row.get("recipe", "")))
    ]
    column = sort or "overall"
    rows.sort(key=lambda row: _order(row, column))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = ["imbalance_ratio", *(c for c in COLUMNS if c.removesuffix("_std") in VALUES)]
    return frame.astype({**dict.fromkeys(numbers, "float64"), "n": "Int64"})


def render(frame: pd.DataFrame) -> Table:
    """Return ``table``'s rows for the terminal, grouped by data set and ratio."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    values = [v for v in VALUES if v == "overall" or frame[v].notna().any()]
    rows = frame.to_dict("records")
    places = list(dict.fromkeys(map(_place, rows)))
    networks = list(dict.fromkeys(row["backbone"] for row in rows))
    shared = [name for names in (places, networks) if len(names) == 1 for name in names]
    show = Table(
        title=escape(", ".join(shared)) or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    show.add_column("method", overflow="fold")
    if len(networks) > 1:
        show.add_column("backbone", overflow="fold", max_width=13)
    for value in values:
        show.add_column("ECE" if value == "ece" else value, justify="right", no_wrap=True)
    show.add_column("origin", overflow="fold")
    before = None
    for row in rows:
        if len(places) > 1 and _place(row) != before:
            before = _place(row)
            show.add_section()
            show.add_row(escape(before), style="bold cyan")
        cited = row["origin"] == "published"
        seeds = f"ours, {row['status']}, n={row['n']}, {row['epochs']} epochs"
        origin = _short(row["source"]) if cited else seeds
        texts = [row["method"], *([row["backbone"]] if len(networks) > 1 else [])]
        texts += [_plus_minus(row[v], row[f"{v}_std"]) for v in values]
        texts.append(f"{origin}; {row['note']}" if row["note"] else origin)
        show.add_row(*map(escape, texts), style=None if cited else "bold")
    return show


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
        and _same_ratio(title, float(row["imbalance_ratio"]), ratio)
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


def trained_models(pattern: str = "*") -> list[tuple[str, str]]:
    """Return names and results of the committed records that come with weights."""
    models = [
        (
            f"{r.recipe.name}.{r.seed}",
            f"{percentages(r)['overall']:.2f} % on {dataset_title(r.dataset.name)}",
        )
        for r in records()
        if r.checkpoint is not None and r.status != "withdrawn"
    ]
    return sorted(m for m in models if fnmatch.fnmatchcase(m[0], pattern))


def _cited(row: Row) -> Row:
    """Return a published row with the columns of the table."""
    return {
        **{c: row[c] for c in ("dataset", "method", "backbone", "source")},
        "imbalance_ratio": float(row["imbalance_ratio"]),
        **{v: float(row[v]) if row.get(v) else None for v in VALUES},
        "origin": "published",
        "status": "paper",
        "epochs": "",
        "note": "",
    }


def _number(ratio: str | float) -> float | None:
    try:
        return float(ratio) if ratio != "" else None
    except ValueError as error:
        raise UserError(f"`ratio`: expected a number such as 100, found `{ratio}`") from error


def _same_ratio(dataset: str, one: float, other: float) -> bool:
    either = dataset == dataset_title("inat18") and {one, other} <= INAT_RATIOS
    return one == other or either


def _order(row: Row, column: str) -> tuple[Any, ...]:
    """Sort by data set and ratio, then by a column: best first, missing values last."""
    place = (natural(row["dataset"].lower()), row["imbalance_ratio"])
    return (*place, *_worth(row, column), *_worth(row, "overall"))


def _worth(row: Row, column: str) -> tuple[Any, ...]:
    value = row.get(column)
    if value in (None, ""):
        return (1,)
    if isinstance(value, str):
        return (0, natural(value.lower()))
    rising = column in ("ece", "imbalance_ratio") or column.endswith("_std")
    return (0, value if rising else -value)


def _short(source: str) -> str:
    """Return a source without a repository's owner and file and without remarks in brackets."""
    name = re.sub(r"^[\w-]+/|\s*\(.*\)$| README| MODEL_ZOO", "", source)
    return name.replace(" main Table", " Table").replace(" appendix Table", " app. Table")


def _place(row: Mapping[Hashable, Any]) -> str:
    return f"{row['dataset']}, ratio {row['imbalance_ratio']:g}"


def _plus_minus(mean: float, spread: float) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.2f}" if math.isnan(spread) else f"{mean:.1f}±{spread:.1f}"
