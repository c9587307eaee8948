"""Leaderboard as text: an overview, a table for the terminal, Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltbench.data.shots import GROUPS
from ltbench.leaderboard.layout import Column, Line, fitted, line_up, measure, wrap
from ltbench.leaderboard.merged import merged
from ltbench.leaderboard.settings import SETTINGS
from ltbench.leaderboard.tables import place, plain_markdown
from ltbench.records.aggregate import VALUES, Row
from ltbench.records.literature import UNKNOWN, footnotes, short_source

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderResult

METHOD = Column("method", "method", least=19)
OVERALL, SOURCE = Column("overall", "overall"), Column("source", "source", least=16)
MIDDLE = (
    *(Column(group, group) for group in GROUPS),
    Column("ece", "ECE"),
    Column("epochs", "epochs"),
)
WORDS = (
    Column("augmentation", "augmentation", least=12),
    Column("selection", "selection", least=12),
)
# What a narrow table goes without, in this order.
SACRIFICES = ("deviations", "ece", "backbone", "augmentation", "selection", "epochs", "groups")
TIES = "≈ ties with the best of its track"
NOT_STATED = (
    "setting not stated: epochs, augmentation or network are in neither the source nor its "
    "authors' code; these rows may belong to any table"
)


@dataclass(frozen=True)
class Text:
    """Lines for rich's console, made for its width.

    Args:
        rows: of the table, merged.
        notes: with footnotes.
        limited: fit the width of the console; otherwise a row is one line.
    """

    rows: Sequence[Row]
    notes: bool = False
    limited: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        yield from segments(listing(self.rows, options.max_width if self.limited else None, self))


def segments(lines: Iterable[Line]) -> RenderResult:
    """Yield lines as rich's segments."""
    from rich.segment import Segment
    from rich.style import Style

    for line in lines:
        yield Segment(line.text, Style.parse(line.style) if line.style else None)
        yield Segment.line()


def render(frame: pd.DataFrame, *, notes: bool = False) -> Text:
    """Return ``table``'s rows for rich's console, a section per data set, ratio, setting and track.

    What several tables of the literature print alike is one row. A row that ties with the best one
    of its section has the sign ``≈``.

    Args:
        frame: from ``table``.
        notes: refer to footnotes by numbers in brackets, and print them below.
    """
    rows = [
        {str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        for row in frame.to_dict("records")
    ]
    return Text(merged(rows), notes)


def listing(rows: Sequence[Row], width: int | None, text: Text) -> list[Line]:
    """Return rows as a table of a width, with a legend.

    Args:
        rows: merged.
        width: in columns; ``None`` for no limit.
        text: says whether footnotes are wanted.
    """
    if not rows:
        return []
    places, tracks = _distinct(map(place, rows)), _distinct(row["track"] for row in rows)
    settings = _distinct(SETTINGS[row["setting"]] for row in rows)
    networks = _distinct(row["backbone"] for row in rows)
    usual = max(networks, key=[row["backbone"] for row in rows].count)
    kept, columns, widths, cells = _chosen(rows, width, usual, text.notes)
    folded = "backbone" not in kept and len(networks) > 1
    title = [one for (one, *others) in (places, settings, tracks) if not others]
    title += [usual] * (len(networks) == 1) + [f"{usual} unless another is named"] * folded
    lines = [Line(line, "bold cyan") for line in wrap(", ".join(title), width, "  ") if line]
    lines += [Line(line, "bold") for line in line_up(columns, widths, _heads(columns))]
    lines.append(Line("─" * (sum(widths) + sum(2 if c.least else 1 for c in columns[1:]))))
    before = None
    for row, cell in zip(rows, cells, strict=True):
        heads = (place(row), SETTINGS[row["setting"]], row["track"])
        counts = map(len, (places, settings, tracks))
        section = [head for head, several in zip(heads, counts, strict=True) if several > 1]
        if section and section != before:
            before = section
            lines += [Line(line, "bold cyan") for line in wrap(", ".join(section), width, "  ")]
        style = "bold" if row["origin"] == "reproduced" else ""
        lines += [Line(line, style) for line in line_up(columns, widths, cell)]
        if row["note"]:
            lines += [Line(line, style) for line in wrap(f"  {row['note']}", width, "  ")]
    lines.append(Line(""))
    return lines + [Line(x) for line in _legend(rows, text.notes, kept) for x in wrap(line, width)]


def to_markdown(frame: pd.DataFrame) -> str:
    """Return ``table``'s rows as a Markdown table, with its footnotes below."""
    heads = ["dataset", "ratio", "setting", "track", "method", "backbone", *VALUES, "n"]
    heads += ["epochs", "augmentation", "selection", "status", "source"]
    lines = [heads, ["---"] * 6 + ["---:"] * (len(VALUES) + 1) + ["---"] * 5]
    rows = frame.to_dict("records")
    for row in rows:
        numbers = [result_text(row[v], row[f"{v}_std"]) for v in VALUES]
        numbers[0] = f"{'≈ ' if row['tie'] else ''}{numbers[0]}"
        notes = f" [{row['footnotes']}]" if row["footnotes"] else ""
        where = [row["dataset"], f"{row['imbalance_ratio']:g}", row["setting"], row["track"]]
        seeds = str(row["n"]) if row["origin"] == "reproduced" else ""
        texts = [*where, row["method"] + notes, row["backbone"], *numbers, seeds]
        texts += [row[k] for k in ("epochs", "augmentation", "selection", "status")]
        source = f"{row['source']}; {row['note']}" if row["note"] else row["source"]
        lines.append([plain_markdown(text) for text in (*texts, source)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    ties = [TIES] * any(row["tie"] for row in rows)
    ties += [f"{name}: {SETTINGS[name]}" for name in _distinct(row["setting"] for row in rows)]
    legend = [plain_markdown(line) for line in (*ties, *_notes(rows))]
    return "\n\n".join([table, *legend]) + "\n"


def _chosen(
    rows: Sequence[Row], width: int | None, usual: str, notes: bool
) -> tuple[set[str], list[Column], list[int], list[dict[str, str]]]:
    """Return what fits a width: parts, columns, their widths and the cells of each row."""
    several = any(row["backbone"] != usual for row in rows)
    networks = [Column("backbone", "backbone", least=9)] * several
    every = [METHOD, *networks, OVERALL, *MIDDLE, *WORDS, SOURCE]
    filled = {c.name for c in every if any(row.get(c.name) is not None for row in rows)}
    for number in range(len(SACRIFICES) + 1):
        gone = set(SACRIFICES[:number])
        gone |= set(GROUPS) if "groups" in gone else set()
        columns = [c for c in every if c.name in filled and c.name not in gone]
        cells = [_cells(row, gone, usual, notes) for row in rows]
        widths = fitted(columns, cells, width)
        if widths is not None:
            break
    else:  # narrower than any table: as wide as its words
        widths = [max(c.least, max(measure(x[c.name]) for x in cells)) for c in columns]
    return {c.name for c in columns}, columns, widths, cells


def _cells(row: Row, gone: set[str], usual: str, notes: bool) -> dict[str, str]:
    """Return the texts of a row by column."""
    method = row["method"]
    if "backbone" in gone and row["backbone"] not in ("", usual):
        method += f", {row['backbone']}"
    if notes and row["footnotes"]:
        method += f" [{row['footnotes']}]"
    if row["origin"] == "published":
        source = short_sources(row.get("sources", [row["source"]]))
    elif row["origin"] == "imported":
        source = f"{short_source(row['source'])}, {row['status']}"
    else:
        source = f"ours, {row['status']}, n={row['n']}"
    deviations = "deviations" not in gone
    return {
        "method": method,
        "backbone": row["backbone"],
        "overall": f"{'≈' if row['tie'] else ''}{result_text(row['overall'], row['overall_std'])}",
        **{v: result_text(row[v], row[f"{v}_std"] if deviations else None) for v in VALUES[1:]},
        **{k: "?" if row[k] == UNKNOWN else row[k] for k in ("augmentation", "selection")},
        "epochs": "?" if row["epochs"] == UNKNOWN else row["epochs"],
        "source": source,
    }


def _heads(columns: Sequence[Column]) -> dict[str, str]:
    return {column.name: column.head for column in columns}


def _legend(rows: Sequence[Row], notes: bool, shown: set[str]) -> list[str]:
    """Return what signs mean, and the footnotes if they are wanted."""
    lines = [TIES] * any(row["tie"] for row in rows)
    if any(row["setting"] == UNKNOWN for row in rows):
        lines.append(NOT_STATED)
    if shown & {"epochs", "augmentation", "selection"}:
        lines.append("? is what neither the source nor its authors' code says")
    if notes:
        return lines + _notes(rows)
    marked = sum(bool(row["footnotes"]) for row in rows)
    if marked:
        which = "1 row has footnotes" if marked == 1 else f"{marked} rows have footnotes"
        lines.append(f"{which}: add notes=true")
    return lines


def _notes(rows: Iterable[Mapping[Any, Any]]) -> list[str]:
    """Return the footnotes of some rows, one line each."""
    shown = {mark for row in rows for mark in str(row["footnotes"]).split(",")}
    return [f"[{note.mark}] {note.text}" for note in footnotes() if note.mark in shown]


def short_sources(sources: Iterable[str]) -> str:
    """Return sources in short; tables of one paper as ``PLOT Table 2, app. 4``."""
    named: dict[str, list[str]] = {}
    for source in _distinct(map(short_source, sources)):
        paper, table, number = source.rpartition("Table ")
        if table and paper.count(" ") == 1:
            named.setdefault(f"{paper}Table", []).append(number)
        elif table and f"{paper.removesuffix('app. ')}Table" in named:
            named[f"{paper.removesuffix('app. ')}Table"].append(f"app. {number}")
        else:
            named[source] = []
    return ", ".join(f"{name} {', '.join(n)}".rstrip() for name, n in named.items())


def result_text(mean: float | None, spread: float | None) -> str:
    """Return a mean and its standard deviation in few characters."""
    if mean is None or math.isnan(mean):
        return ""
    whole = spread is None or math.isnan(spread)
    return f"{mean:.2f}" if whole else f"{mean:.1f}±{spread:.1f}"


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
