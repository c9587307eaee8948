"""Table of committed records and published results; torch is never imported here."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ltbench.config.registry import natural
from ltbench.errors import UserError, did_you_mean, visible
from ltbench.leaderboard.recipe_check import OtherVersion, check_recipe, remark
from ltbench.records.aggregate import VALUES, Row, average_seeds, seeds_of_rows
from ltbench.records.claims import initial_weights
from ltbench.records.literature import footnotes, marks, published, same_ratio, short_source
from ltbench.records.record import Record, Status
from ltbench.records.store import records
from ltbench.records.titles import dataset_names, matches

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

COLUMNS = (
    *("dataset", "imbalance_ratio", "track", "method", "plot", "backbone"),
    *(column for value in VALUES for column in (value, f"{value}_std")),
    *("tie", "n", "epochs", "origin", "status", "source", "note", "footnotes"),
)
ORIGINS = ("published", "reproduced")
AS_PUBLISHED = "as published"  # the track of published rows, whose budgets differ
UNRESOLVED = 0.5  # points that one run, or a number without a spread, cannot resolve


def table(
    *,
    dataset: str = "",
    ratio: str | float = "",
    backbone: str = "",
    method: str = "",
    track: str = "",
    status: str = "",
    origin: str = "",
    plot: str | bool = "",
    sort: str = "",
    folder: Path | None = None,
    checked: bool = False,
) -> pd.DataFrame:
    """Return reproduced and published top-1 results, in percent, one row per recipe or citation.

    Seeds are averaged within one recipe digest and one content of the data, shortened runs apart;
    standard deviations have n - 1 in the denominator and are missing for n = 1. Origins are never
    mixed. Rows are sorted within a data set, ratio and track (see ``track_of``), and ``tie`` marks
    those that tie with the best one there (see ``is_tie``); filters do not change it.
    Shot groups of reproduced rows follow the strict rule; published ones, whatever their source
    used.

    Args:
        dataset: shell pattern of a title or registered name, any case, ``-LT`` optional.
        ratio: imbalance ratio.
        backbone: shell pattern.
        method: shell pattern of the literature's or the recipe's name.
        track: shell pattern.
        status: ``paper``, ``claimed``, ``reproduced`` or ``verified``.
        origin: ``published`` or ``reproduced``.
        plot: ``true`` for rows trained with PLOT, ``false`` for the others.
        sort: column to sort by within each data set, ratio and track; by default ``overall``.
        folder: folder of the records, by default the committed ones.
        checked: see ``board_rows``.

    Raises:
        UserError: a filter or the column to sort by is not one of those above.
    """
    import pandas as pd

    if sort and sort not in COLUMNS:
        raise UserError(
            f"unknown column `{sort}`{did_you_mean(sort, COLUMNS)}; sort by one of "
            f"{', '.join(COLUMNS)}"
        )
    statuses = [s for s in get_args(Status) if s != "withdrawn"]
    wanted, with_plot = _number(ratio), _choice("plot", str(plot).lower(), ("true", "false"))
    status, origin = _choice("status", status, statuses), _choice("origin", origin, ORIGINS)
    rows = [
        row
        for row in board_rows(folder, checked=checked)
        if (not dataset or matches(dataset, *dataset_names(row["dataset"])))
        and (wanted is None or same_ratio(row["dataset"], row["imbalance_ratio"], wanted))
        and (not backbone or matches(backbone, row["backbone"], row.get("registered", "")))
        and (not method or matches(method, row["method"], row.get("recipe", "")))
        and (not track or matches(track, row["track"]))
        and (not with_plot or row["plot"] == (with_plot == "true"))
        and status in ("", row["status"])
        and origin in ("", row["origin"])
    ]
    column = sort or "overall"
    rows.sort(key=lambda row: _order(row, column))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = ["imbalance_ratio", *(c for c in COLUMNS if c.removesuffix("_std") in VALUES)]
    return frame.astype({**dict.fromkeys(numbers, "float64"), "n": "Int64"})


def board_rows(folder: Path | None = None, *, checked: bool = False) -> list[Row]:
    """Return all rows of the table, ours with the records they were made from.

    Args:
        folder: folder of the records, by default the committed ones.
        checked: leave records aside that are not of the recipe of their name; imports methods.

    Returns:
        Rows with the table's columns; of reproduced ones also ``recipe``, ``registered`` and
        ``records``.
    """
    found = records(folder)
    if checked:
        found = _of_their_recipes(found)
    ours = []
    for seeds in seeds_of_rows(found):
        (row,) = average_seeds(seeds)
        row["note"] = "; ".join(filter(None, (remark(seeds[0]), row["note"])))
        for column in ("dataset", "method", "backbone", "epochs", "source", "note"):
            row[column] = visible(row[column], None)
        cited = row["origin"] == "published"
        row["track"] = AS_PUBLISHED if cited else track_of(seeds[0])
        row["plot"] = uses_plot(seeds[0])
        row["footnotes"] = ""
        ours.append(row if cited else {**row, "records": seeds})
    rows = [*ours, *map(_cited, published())]
    _mark_ties(rows)
    return rows


def _of_their_recipes(found: Sequence[Record]) -> list[Record]:
    """Return the records but those, named in a warning, that are not of the recipe of their name.

    Records of other versions of ltbench, which cannot tell, and verified ones stay.
    """
    problems: dict[tuple[Any, ...], str] = {}
    kept = []
    for record in found:
        recipe = record.recipe
        key = (recipe.name, recipe.digest, recipe.overrides, record.shortened)
        if key not in problems and record.origin != "paper":
            problems[key] = ""
            try:
                check_recipe(record)
            except OtherVersion:
                pass
            except UserError as error:
                problems[key] = str(error)
        if problems.get(key) and record.status != "verified":
            line = f"run {record.run_id[:12]} left aside: {problems[key]}"
            warnings.warn(visible(line, None), stacklevel=3)
        else:
            kept.append(record)
    return kept


def track_of(record: Record) -> str:
    """Return the track of a record as one line; only results of one track are ranked together.

    It holds the budget (epochs of the longest stage, so that a short second stage does not part
    one-stage from two-stage methods), a mark if the recipe was shortened, the source of the initial
    weights, and the content of training and test data.
    """
    resolved = record.recipe.resolved
    steps = resolved.get("run", {}).get("max_steps")
    epochs = max((s.get("epochs") or 0 for s in resolved.get("stages", ())), default=0)
    budget = f"{epochs} epochs" if steps is None else f"{steps} steps"
    start = initial_weights(resolved)
    begin = "from scratch" if start is None else f"from {_abbreviated(start)}"
    data = f"data {record.dataset.train_sha256[:6]}/{record.dataset.test_sha256[:6]}"
    return ", ".join([budget, *(["shortened"] if record.shortened else []), begin, data])


def uses_plot(record: Record) -> bool:
    """Return whether a stage of a record's recipe takes PLOT steps."""
    updates = [stage.get("update") or {} for stage in record.recipe.resolved.get("stages", ())]
    return any(update.get("name") == "plot" for update in updates)


def is_tie(best: Mapping[Any, Any], row: Mapping[Any, Any]) -> bool:
    """Return whether two results are a tie.

    They are where the intervals mean ± standard deviation overlap; where one has no spread, they
    are if they differ by less than half a point, or by no more than the spread of the other.

    Args:
        best: the better row.
        row: the other one.
    """
    behind = round(best["overall"] - row["overall"], 9)
    spreads = [s for s in (best["overall_std"], row["overall_std"]) if s is not None]
    if len(spreads) == 2:
        return bool(behind <= sum(spreads))
    return bool(behind < UNRESOLVED or behind <= sum(spreads))


def render(frame: pd.DataFrame) -> Table:
    """Return ``table``'s rows for the terminal, in sections by data set, ratio and track.

    A row that ties with the best one of its section has the sign ``≈``; a number in brackets
    refers to a footnote, printed below.
    """
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    values = [v for v in VALUES if v == "overall" or frame[v].notna().any()]
    rows = frame.to_dict("records")
    places = list(dict.fromkeys(map(_place, rows)))
    tracks = list(dict.fromkeys(row["track"] for row in rows))
    networks = list(dict.fromkeys(row["backbone"] for row in rows))
    shared = [name for names in (places, networks) if len(names) == 1 for name in names]
    show = Table(
        title=escape(", ".join(shared)) or None,
        title_justify="left",
        caption="\n".join(_legend(rows)) or None,
        caption_justify="left",
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
        section = [_place(row)] * (len(places) > 1) + [row["track"]] * (len(tracks) > 1)
        if section and section != before:
            before = section
            show.add_section()
            show.add_row(escape(", ".join(section)), style="bold cyan")
        cited = row["origin"] == "published"
        seeds = f"ours, {row['status']}, n={row['n']}, {row['epochs']} epochs"
        origin = short_source(row["source"]) if cited else seeds
        numbers = [_plus_minus(row[v], row[f"{v}_std"]) for v in values]
        numbers[0] = f"{'≈' if row['tie'] else ''}{numbers[0]}"
        notes = f" [{row['footnotes']}]" if row["footnotes"] else ""
        texts = [row["method"] + notes, *([row["backbone"]] if len(networks) > 1 else [])]
        texts += [*numbers, f"{origin}; {row['note']}" if row["note"] else origin]
        show.add_row(*map(escape, texts), style=None if cited else "bold")
    return show


def to_markdown(frame: pd.DataFrame) -> str:
    """Return ``table``'s rows as a Markdown table, with its footnotes below."""
    heads = ("dataset", "ratio", "track", "method", "backbone", *VALUES, "n", "status", "source")
    lines = [heads, ["---"] * 5 + ["---:"] * (len(VALUES) + 1) + ["---"] * 2]
    for row in frame.to_dict("records"):
        numbers = [_plus_minus(row[v], row[f"{v}_std"]) for v in VALUES]
        numbers[0] = f"{'≈ ' if row['tie'] else ''}{numbers[0]}"
        notes = f" [{row['footnotes']}]" if row["footnotes"] else ""
        place = [row["dataset"], f"{row['imbalance_ratio']:g}", row["track"]]
        seeds = "" if row["origin"] == "published" else str(row["n"])
        texts = [*place, row["method"] + notes, row["backbone"], *numbers, seeds, row["status"]]
        source = f"{row['source']}; {row['note']}" if row["note"] else row["source"]
        lines.append([plain_markdown(text) for text in (*texts, source)])
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    legend = [plain_markdown(line) for line in _legend(frame.to_dict("records"), escaped=False)]
    return "\n\n".join([rows, *legend]) + "\n"


def plain_markdown(text: str) -> str:
    """Return a text that Markdown shows as it stands, in a cell of a table too."""
    for sign in "\\`*_[]<>|~":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _mark_ties(rows: Sequence[Row]) -> None:
    """Set ``tie`` for the best row of a track and those that tie with it, if there are any."""
    sections: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        sections.setdefault((_place(row), row["track"]), []).append(row)
    for section in sections.values():
        best = max(section, key=lambda row: row["overall"])
        ties = [is_tie(best, row) for row in section]
        several = sum(ties) > 1
        for row, tie in zip(section, ties, strict=True):
            row["tie"] = tie and several


def _cited(row: Row) -> Row:
    """Return a published row with the columns of the table."""
    return {
        **{c: row[c] for c in ("dataset", "method", "backbone", "source")},
        "imbalance_ratio": float(row["imbalance_ratio"]),
        **{v: float(row[v]) if row.get(v) else None for v in VALUES},
        **{f"{v}_std": None for v in VALUES},
        "track": AS_PUBLISHED,
        "plot": row["method"].endswith(" + PLOT"),
        "origin": "published",
        "status": "paper",
        "epochs": "",
        "note": "",
        "footnotes": ",".join(marks(row)),
    }


def _legend(rows: Sequence[Mapping[Any, Any]], *, escaped: bool = True) -> list[str]:
    """Return the legend of the signs in some rows, one line each."""
    from rich.markup import escape

    lines = ["≈ ties with the best of its track"] if any(r["tie"] for r in rows) else []
    shown = {mark for row in rows for mark in str(row["footnotes"]).split(",")}
    lines += [f"[{note.mark}] {note.text}" for note in footnotes() if note.mark in shown]
    return [escape(line) for line in lines] if escaped else lines


def _choice(name: str, value: str, known: Sequence[str]) -> str:
    if value and value not in known:
        raise UserError(
            f"`{name}`: expected {' or '.join(known)}, found `{value}`{did_you_mean(value, known)}"
        )
    return value


def _number(ratio: str | float) -> float | None:
    try:
        return float(ratio) if ratio != "" else None
    except ValueError as error:
        raise UserError(f"`ratio`: expected a number such as 100, found `{ratio}`") from error


def _order(row: Row, column: str) -> tuple[Any, ...]:
    """Sort by data set, ratio and track, then by a column: best first, missing values last."""
    return (*section_order(row), *_worth(row, column), *_worth(row, "overall"))


def section_order(row: Row) -> tuple[Any, ...]:
    """Return a section's sort key: data set, ratio, ours in full, published, ours shortened."""
    place = (tuple(natural(row["dataset"].lower())), row["imbalance_ratio"])
    track = row["track"]
    return (*place, ", shortened" in track, track == AS_PUBLISHED, tuple(natural(track)))


def _worth(row: Row, column: str) -> tuple[Any, ...]:
    value = row.get(column)
    if value in (None, ""):
        return (1,)
    if isinstance(value, str):
        return (0, natural(value.lower()))
    rising = column in ("ece", "imbalance_ratio") or column.endswith("_std")
    return (0, value if rising else -value)


def _abbreviated(start: str) -> str:
    """Return a source of weights, of a bare hash its beginning."""
    return start[:8] if len(start) >= 32 and ":" not in start else start


def _place(row: Mapping[Any, Any]) -> str:
    return f"{row['dataset']}, ratio {row['imbalance_ratio']:g}"


def _plus_minus(mean: float, spread: float) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.2f}" if math.isnan(spread) else f"{mean:.1f}±{spread:.1f}"
