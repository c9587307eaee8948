"""The leaderboard on one screen: a line per data set, ratio and setting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ltbench.config.registry import natural
from ltbench.data import DATASETS
from ltbench.leaderboard.layout import Column, Line, fitted, line_up, wrap
from ltbench.leaderboard.merged import merged
from ltbench.leaderboard.settings import SETTINGS
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
USUAL = "plain"  # the setting that need not be named


class Place(NamedTuple):
    """A line of the overview.

    Args:
        dataset: title of the data set.
        ratio: imbalance ratio.
        setting: name of the setting.
        ours: the best row of ours.
        printed: the best printed one.
    """

    dataset: str
    ratio: float
    setting: str
    ours: Row | None
    printed: Row | None


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
    """Return the best row of ours and the best printed one of the same setting.

    A data set and ratio has a line for each setting with rows of ours, or one for the first setting
    with printed rows. Rows of ours come first, complete runs before shortened ones. Printed results
    that were not read in their paper or their authors' repository are left out.

    Args:
        rows: of ``board_rows``.
        width: in columns; ``None`` for no limit.
    """
    places: dict[tuple[str, float], dict[str, list[Row]]] = {}
    for row in merged(rows):
        here = places.setdefault((row["dataset"], _ratio(row)), {name: [] for name in SETTINGS})
        here[row["setting"]].append(row)
    found: list[Place] = []
    for (dataset, ratio), tables in places.items():
        every = [Place(dataset, ratio, name, *_bests(table)) for name, table in tables.items()]
        own = [place for place in every if place.ours]
        printed = [place for place in every if place.printed]
        found += own or printed[:1]
    found.sort(key=lambda at: (at.ours is None, tuple(natural(at.dataset.lower())), at.ratio))
    cells = [_cells(place) for place in found]
    widths = fitted(COLUMNS, cells, width) or [25, 9, 12, 7, 19]
    heads = {column.name: column.head for column in COLUMNS}
    count = Counter(row["origin"] for row in rows)
    others = f" {count['imported']:,} imported," if count["imported"] else ""
    printed_ = f"{count['published']:,} printed ones; best top-1, %"
    lines = [f"{count['reproduced']:,} rows of ours,{others} {printed_}"]
    styled = [Line(line, "bold") for line in line_up(COLUMNS, widths, heads)]
    for cell, place in zip(cells, found, strict=True):
        style = "bold cyan" if place.ours else ""
        styled += [Line(line, style) for line in line_up(COLUMNS, widths, cell)]
    signs = [TIES] * any("≈" in cell["ours"] + cell["best"] for cell in cells)
    signs += [SHORT] * any("*" in cell["seeds"] for cell in cells)
    legend = [
        *signs,
        "Printed: as in the source; networks, budgets and choice of the epoch differ.",
        f"A line is of one setting: {USUAL} (one network, crop and flip) unless named.",
        f"More: ltbench leaderboard {_example(found)} (setting=strong, all=true)",
        "      ltbench leaderboard build (a page with filters and figures)",
    ]
    shown = [*(Line(x) for x in lines), *styled, Line("")]
    return shown + [Line(x) for line in legend for x in wrap(line, width)]


def best(rows: Iterable[Row]) -> Row | None:
    """Return the row with the highest accuracy."""
    return max(rows, key=lambda row: row["overall"], default=None)


def _bests(table: Sequence[Row]) -> tuple[Row | None, Row | None]:
    """Return the best row of ours and the best printed one of a table."""
    own = [row for row in table if row["origin"] == "reproduced"]
    complete = [row for row in own if not row["records"][0].shortened]
    printed = [row for row in table if row["origin"] == "published" and not _unread(row)]
    return best(complete or own), best(printed)


def _cells(place: Place) -> dict[str, str]:
    ours, printed = place.ours, place.printed
    named = "" if place.setting == USUAL else f", {place.setting}"
    short = "*" if ours and ours["records"][0].shortened else ""
    return {
        "place": f"{place.dataset} {place.ratio:g}{named}",
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
    """Return method and first source, once what both name."""
    method, source = row["method"], short_sources(row["sources"][:1])
    if source.startswith(method):
        return source
    return method if method.startswith(source) else f"{method}, {source}"


def _ratio(row: Row) -> float:
    """Return a row's ratio; that of iNaturalist is printed in two ways."""
    ratio: float = row["imbalance_ratio"]
    return min(INAT_RATIOS) if same_ratio(row["dataset"], ratio, max(INAT_RATIOS)) else ratio


def _unread(row: Row) -> bool:
    return all(map(second_hand, row.get("sources", [row["source"]])))


def _example(found: Sequence[Place]) -> str:
    """Return filters that show the first data set of the overview with printed rows."""
    shown = [place for place in found if place.printed] or found
    dataset, ratio = (shown[0].dataset, shown[0].ratio) if shown else ("cifar100", 100)
    name = DATASETS.facts(dataset_name(dataset)).suffix or dataset_name(dataset)
    return f"dataset={name} ratio={ratio:g}"
