"""The README's tables of methods and of results; `python tools/docs.py` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from marked_section import replaced
from method_gallery import KINDS, places

from ltbench.leaderboard import nearest_published
from ltbench.leaderboard.catalogue import catalogue
from ltbench.leaderboard.findings import find
from ltbench.leaderboard.findings_text import summary
from ltbench.leaderboard.settings import SETTINGS
from ltbench.leaderboard.tables import board_rows, plain_markdown, section_order
from ltbench.methods import METHODS
from ltbench.records.literature import marks

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- results: tools/readme_table.py -->", "<!-- end of results -->"
METHODS_BEGIN, METHODS_END = "<!-- methods: tools/readme_table.py -->", "<!-- end of methods -->"
HEADS = ("method", "alone", "with PLOT", "gain", "printed alone", "printed with PLOT", "seeds")
Row = dict[str, Any]


def results(folder: Path | None = None) -> str:
    """Return what was found and the table in Markdown: a section per place, setting and track.

    A method is one line of it.

    Shortened runs are left to the leaderboard.

    Args:
        folder: where records lie, by default the committed ones.
    """
    full = [
        row
        for row in board_rows(folder)
        if row["origin"] == "reproduced" and not row["records"][0].shortened
    ]
    ours = sorted(full, key=section_order)
    if not ours:
        return "No full run is committed yet: `ltbench leaderboard` shows published numbers only."
    told = [f"- {plain_markdown(line)}" for line in summary(find(folder))]
    found = "\n".join(["[What was found](leaderboard/README.md#what-was-found):", "", *told])
    sections: dict[tuple[str, ...], list[Row]] = {}
    for row in ours:
        place = f"{row['dataset']}, ratio {row['imbalance_ratio']:g}, {row['backbone']}"
        where = f"{SETTINGS[row['setting']]}; {row['track']}"
        sections.setdefault((place, where), []).append(row)
    parts = [
        found,
        "Overall accuracy in percent, mean ± standard deviation. ≈ ties with the best of its "
        "track; † has a footnote in `ltbench leaderboard`.",
    ]
    for (place, track), rows in sections.items():
        pairs: dict[tuple[str, str], dict[bool, Row]] = {}
        for row in rows:
            base = row["method"].removesuffix(" + PLOT")
            pairs.setdefault((base, _changes(row)), {})[row["plot"]] = row
        lines = sorted((_line(*key, pair) for key, pair in pairs.items()), reverse=True)
        used = [i for i in range(len(HEADS)) if any(cells[i] for _, cells in lines)]
        table = [HEADS, ["---", *["---:"] * 6], *(cells for _, cells in lines)]
        table = [[cells[i] for i in used] for cells in table]
        text = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
        parts.append(f"**{plain_markdown(place)}**: {plain_markdown(track)}\n\n{text}")
    return "\n\n".join(parts)


def methods() -> str:
    """Return a line per kind of method in Markdown, each method linked to the gallery.

    Later stages of other methods are left out.
    """
    titles: dict[str, list[str]] = {kind: [] for kind in KINDS}
    place = places()
    for entry in catalogue():
        if METHODS.facts(entry.name).stage_of:
            continue
        title = METHODS.title(entry.name)
        titles[entry.kind].append(f"[{title}](ltbench/methods/README.md#{place[entry.name]})")
    lines = [f"| {KINDS[kind]} | {', '.join(found)} |" for kind, found in titles.items() if found]
    return "\n".join(["| kind | methods |", "| --- | --- |", *lines])


def updated(text: str, folder: Path | None = None) -> str:
    """Return the README with its tables as they should be.

    Args:
        text: the README.
        folder: where records lie, by default the committed ones.

    Raises:
        SystemExit: the marks are missing.
    """
    text = replaced(text, METHODS_BEGIN, METHODS_END, methods())
    return replaced(text, BEGIN, END, results(folder))


def _changes(row: Row) -> str:
    """Return the modified settings of a row, but for the update and what a shorter budget moves."""
    before, _, keys = row["note"].partition("modified ")
    follow = (".update.", ".schedule.") if "shortened" in before else (".update.",)
    return ", ".join(k for k in keys.split(", ") if k and not any(part in k for part in follow))


def _line(method: str, changes: str, pair: dict[bool, Row]) -> tuple[float, list[str]]:
    """Return the best accuracy of a line, and its cells."""
    first = next(iter(pair.values()))
    gain = pair[True]["overall"] - pair[False]["overall"] if len(pair) == 2 else None
    cells = [plain_markdown(f"{method} ({changes})" if changes else method)]
    cells += [_number(pair.get(plot)) for plot in (False, True)]
    cells.append("" if gain is None else f"{gain:+.2f}")
    cells += [_printed(first, method, plot) for plot in (False, True)]
    cells.append("/".join(str(n) for n in dict.fromkeys(row["n"] for row in pair.values())))
    return max(row["overall"] for row in pair.values()), cells


def _number(row: Row | None) -> str:
    if row is None:
        return ""
    spread = "" if row["overall_std"] is None else f" ± {row['overall_std']:.2f}"
    mark = "" if row["status"] == "claimed" else f" ({row['status']})"
    return f"{'≈ ' if row['tie'] else ''}{row['overall']:.2f}{spread}{mark}"


def _printed(row: Row, method: str, plot: bool) -> str:
    name = f"{method} + PLOT" if plot else method
    found = nearest_published(row["dataset"], row["imbalance_ratio"], name, row["backbone"])
    if found is None or found["backbone"] != row["backbone"]:
        return ""
    return f"{found['overall']}{'†' if marks(found) else ''}"
