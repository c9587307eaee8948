"""The leaderboard on one screen: a line per data set and ratio."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltbench.config.registry import natural
from ltbench.data import DATASETS
from ltbench.leaderboard.layout import Column, Line, fitted, line_up, wrap
from ltbench.leaderboard.merged import merged
from ltbench.leaderboard.text import TIES, result_text, segments, short_sources
from ltbench.records.aggregate import Row
from ltbench.records.literature import INAT_RATIOS, same_ratio, second_hand
from ltbench.records.titles import dataset_name

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

COLUMNS = (
    Column("place", "data set, ratio", least=99),  # never squeezed
    Column("ours", "ours"),
    Column("seeds", "checked, n", least=99),
    Column("best", "printed"),
    Column("where", "by", least=16),
)
SHORT = "* shortened training, not comparable with full runs"


@dataclass(frozen=True)
class Overview:
    """Lines for rich's console, made for its width.

    Args:
        rows: of ``board_rows``.
        limited: fit the width of the console.
    """

    rows: Sequence[Row]
    limited: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        yield from segments(overview(self.rows, options.max_width if self.limited else None))


def overview(rows: Sequence[Row], width: int | None = None) -> list[Line]:
    """Return the best row of ours and the best printed one, a line per data set and ratio.

    Rows of ours come first, complete runs before shortened ones. Printed results that were not
    read in their paper or their authors' repository are left out.

    Args:
        rows: of ``board_rows``.
        width: in columns; ``None`` for no limit.
    """
    places: dict[tuple[str, float], list[Row]] = {}
    for row in merged(rows):
        places.setdefault((row["dataset"], _ratio(row)), []).append(row)
    found = []
    for (dataset, ratio), here in places.items():
        own = [row for row in here if row["origin"] != "published"]
        complete = [row for row in own if not row["records"][0].shortened]
        printed = [row for row in here if row["origin"] == "published" and not _unread(row)]
        found.append((dataset, ratio, best(complete or own), best(printed)))
    found.sort(key=lambda place: (place[2] is None, tuple(natural(place[0].lower())), place[1]))
    cells = [_cells(*place) for place in found]
    widths = fitted(COLUMNS, cells, width) or [19, 11, 13, 7, 24]
    heads = {column.name: column.head for column in COLUMNS}
    count = sum(row["origin"] != "published" for row in rows)
    lines = [f"{count:,} rows of ours, {len(rows) - count:,} printed ones; best top-1, %"]
    styled = [Line(line, "bold") for line in line_up(COLUMNS, widths, heads)]
    for cell, (_, _, ours, _) in zip(cells, found, strict=True):
        style = "bold cyan" if ours else ""
        styled += [Line(line, style) for line in line_up(COLUMNS, widths, cell)]
    signs = [TIES] * any("≈" in cell["ours"] + cell["best"] for cell in cells)
    signs += [SHORT] * any("*" in cell["seeds"] for cell in cells)
    legend = [
        *signs,
        "Printed: as in the source; networks, budgets and choice of the epoch differ.",
        f"More: ltbench leaderboard {_example(found)} (max_epochs=200, all=true)",
        "      ltbench leaderboard build (a page with filters and figures)",
    ]
    shown = [*(Line(x) for x in lines), *styled, Line("")]
    return shown + [Line(x) for line in legend for x in wrap(line, width)]


def best(rows: Iterable[Row]) -> Row | None:
    """Return the row with the highest accuracy."""
    return max(rows, key=lambda row: row["overall"], default=None)


def _cells(dataset: str, ratio: float, ours: Row | None, printed: Row | None) -> dict[str, str]:
    short = "*" if ours and ours["records"][0].shortened else ""
    return {
        "place": f"{dataset} {ratio:g}",
        "ours": _result(ours),
        "seeds": f"{ours['status']} n={ours['n']}{short}" if ours else "",
        "best": _result(printed),
        "where": _author(printed) if printed else "",
    }


def _result(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{'≈' if row['tie'] else ''}{result_text(row['overall'], row['overall_std'])}"


def _author(row: Row) -> str:
    """Return method and source, once what both name."""
    method, source = row["method"], short_sources(row["sources"])
    if source.startswith(method):
        return source
    return method if method.startswith(source) else f"{method}, {source}"


def _ratio(row: Row) -> float:
    """Return a row's ratio; that of iNaturalist is printed in two ways."""
    ratio: float = row["imbalance_ratio"]
    return min(INAT_RATIOS) if same_ratio(row["dataset"], ratio, max(INAT_RATIOS)) else ratio


def _unread(row: Row) -> bool:
    return all(map(second_hand, row.get("sources", [row["source"]])))


def _example(found: Sequence[tuple[str, float, Row | None, Row | None]]) -> str:
    """Return filters that show the first data set of the overview with printed rows."""
    dataset, ratio = next(
        (f[:2] for f in found if f[3]), found[0][:2] if found else ("cifar100", 100)
    )
    name = DATASETS.facts(dataset_name(dataset)).suffix or dataset_name(dataset)
    return f"dataset={name} ratio={ratio:g}"
