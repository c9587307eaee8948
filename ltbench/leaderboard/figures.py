"""SVG figures of the page; colours come from its style sheet, light or dark."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltbench.digest import canonical
from ltbench.leaderboard.reproduce import changed
from ltbench.leaderboard.settings import SETTINGS
from ltbench.leaderboard.tables import UNRESOLVED, is_tie, section_order
from ltbench.records.aggregate import Row, plus_minus
from ltbench.records.literature import short_source
from ltbench.records.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stand for the page's own; no two of them may be equal.
INK, MUTED, LINE, CARD = "#010101", "#010102", "#010103", "#010104"
OURS, CITED, BAND = "#010105", "#010106", "#010107"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    CARD: "--card",
    OURS: "--ours",
    CITED: "--cited",
    BAND: "--band",
}
MARKERS = "osD^vP"
MOST_POINTS = 60  # of a figure: ours, and those with the best results
WIDTH = 4.5  # inches; the page shows 100 to 115 pixels for each
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ltbench",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class Gain:
    """Gain of PLOT over a baseline, in points.

    Args:
        method: the baseline.
        ratio: imbalance ratio.
        value: difference of the two overall accuracies.
        spread: standard deviation of the difference, or ``None``.
        ours: True if both were run here.
        label: the two numbers and their source; says "not resolved" of a tie.
    """

    method: str
    ratio: float
    value: float
    spread: float | None
    ours: bool
    label: str


@dataclass(frozen=True)
class Cost:
    """Training cost of a row of ours.

    Args:
        method: with or without PLOT.
        plot: True if PLOT was used.
        hours: device hours, mean over seeds.
        overall: accuracy in percent.
        label: all of it and the hardware, as text.
        spread: standard deviation of the accuracy, or ``None``.
        tie: True if it ties with the best of its track.
    """

    method: str
    plot: bool
    hours: float
    overall: float
    label: str
    spread: float | None = None
    tie: bool = False


def gains(rows: Sequence[Row]) -> list[Gain]:
    """Return the gain of PLOT for each baseline that has a partner differing in nothing else.

    Published partners are of one source and network; ours of one track and network, with the same
    options but those of the update. A pair that is printed twice counts once.

    Args:
        rows: of ``board_rows``, of one data set.
    """
    pairs: dict[tuple[Any, ...], dict[bool, Row]] = {}
    for row in rows:
        base = row["method"].removesuffix(" + PLOT")
        source = row["source"] if row["origin"] == "published" else row["track"]
        options = _options(row["records"][0]) if row.get("records") else ""
        place = (base, row["imbalance_ratio"], row["backbone"], source, options)
        known = pairs.setdefault(place, {}).get(row["plot"])
        if known is None or (row.get("n") or 0) > (known.get("n") or 0):
            pairs[place][row["plot"]] = row
    found: dict[tuple[Any, ...], Gain] = {}
    for (base, ratio, backbone, source, options), pair in pairs.items():
        if len(pair) == 2:
            without, given = pair[False], pair[True]
            ours = given["origin"] != "published"
            spreads = [row["overall_std"] for row in pair.values()]
            numbers = f"{without['overall']:.2f} → {given['overall']:.2f}"
            value = given["overall"] - without["overall"]
            name = f"ours, {source}" if ours else short_source(source)
            spread = None if None in spreads else math.hypot(*spreads)
            text = f"{base}, ratio {ratio:g}, {backbone}: {numbers} ({value:+.2f}"
            text += f" ± {spread:.2f}), {name}" if spread is not None else f"), {name}"
            text += ", not resolved" * is_tie(*sorted(pair.values(), key=_falling))
            key = (base, ratio, backbone, options, ours, numbers)
            found.setdefault(key, Gain(base, ratio, value, spread, ours, text))
    return sorted(found.values(), key=lambda gain: not gain.ours)[:MOST_POINTS]


def _falling(row: Row) -> float:
    return -float(row["overall"])


def _options(record: Record) -> str:
    """Return the changed options of a record's recipe, those of the update left out."""
    options = changed(record).items()
    return canonical({key: value for key, value in options if ".update." not in key})


def costs(rows: Sequence[Row]) -> tuple[str, list[Cost]]:
    """Return the training costs of our rows in the section with most of them, and its name.

    Args:
        rows: of ``board_rows``, of one data set.
    """
    sections: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.get("records"):
            sections.setdefault(section_order(row), []).append(row)
    if not sections:
        return "", []
    section = max(sections.values(), key=len)
    found = []
    for row in section:
        runs = [record.execution for record in row["records"]]
        hours = sum(run.wall_seconds * run.ranks[-1] for run in runs) / len(runs) / 3600
        if hours > 0:
            where = ", ".join(dict.fromkeys(run.gpu or run.cpu for run in runs))
            result = plus_minus(row["overall"], row["overall_std"])
            text = f"{row['method']}: {result} % in {duration(hours)} on {where}"
            text += ", ties with the best of its track" * row["tie"]
            values = (row["overall"], text, row["overall_std"], row["tie"])
            found.append(Cost(row["method"], row["plot"], hours, *values))
    found.sort(key=lambda cost: -cost.overall)
    ratio = f"ratio {section[0]['imbalance_ratio']:g}"
    where = f"{ratio}, {SETTINGS[section[0]['setting']]}, {section[0]['track']}"
    return where, found[:MOST_POINTS]


def resolved(found: Sequence[Cost]) -> bool:
    """Return whether two rows have spreads and do not tie: others say nothing about a cost."""
    known = [{"overall": c.overall, "overall_std": c.spread} for c in found if c.spread is not None]
    return bool(known) and any(not is_tie(known[0], row) for row in known)


def duration(hours: float) -> str:
    """Return a number of hours in hours, minutes or seconds."""
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"


def gain_figure(found: Sequence[Gain], name: str) -> str:
    """Return the gains by baseline as SVG.

    Args:
        found: at least one gain.
        name: prefix of the identifiers in the SVG; unique in a page.
    """
    methods = sorted({g.method for g in found}, key=str.lower)
    ratios = sorted({g.ratio for g in found})
    figure, axes = _figure(0.75 + 0.34 * len(methods))
    axes.axvspan(-UNRESOLVED, UNRESOLVED, color=BAND, linewidth=0, zorder=0)
    axes.axvline(0, color=MUTED, linewidth=1, zorder=1)
    tips = {}
    for row in range(len(methods)):
        axes.axhline(row, color=LINE, linewidth=0.6, zorder=0)
    for number, gain in enumerate(found):
        at = ratios.index(gain.ratio) - (len(ratios) - 1) / 2
        y = methods.index(gain.method) + 0.2 * at + (0.08 if gain.ours else -0.08)
        colour = OURS if gain.ours else CITED
        if gain.spread is not None:
            ends = [gain.value - gain.spread, gain.value + gain.spread]
            axes.plot(ends, [y, y], color=colour, linewidth=1.2, zorder=2)
        tips[f"tip{number}"] = gain.label
        faint = gain.label.endswith("not resolved")
        mark = MARKERS[ratios.index(gain.ratio) % 6]
        _point(axes, gain.value, y, mark, gain.ours, colour, faint=faint)
        axes.lines[-1].set_gid(f"tip{number}")
    axes.set_yticks(range(len(methods)), [_cut(m) for m in methods], parse_math=False)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.set_xlabel("points gained over the baseline")
    several = len(ratios) > 1
    handles = [(MARKERS[i % 6], False, INK, f"ratio {r:g}") for i, r in enumerate(ratios)]
    kinds = {g.ours for g in found}
    handles = handles if several else []
    handles += [("o", False, CITED, "published")] * (False in kinds)
    handles += [("o", True, OURS, "ours")] * (True in kinds)
    _legend(figure, handles)
    return _svg(figure, name, "Gain of PLOT in points", tips)


def cost_figure(found: Sequence[Cost], name: str) -> str:
    """Return accuracy against training cost as SVG; rows that no cheaper one beats are named.

    Args:
        found: at least one cost.
        name: prefix of the identifiers in the SVG; unique in a page.
    """
    figure, axes = _figure(2.9)
    axes.set_xscale("log")
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    partners = {c.method: c for c in found}
    tips = {}
    for number, cost in enumerate(sorted(found, key=lambda c: c.plot)):
        base = partners.get(cost.method.removesuffix(" + PLOT"))
        if cost.plot and base is not None and base is not cost:
            ends = ([base.hours, cost.hours], [base.overall, cost.overall])
            axes.plot(*ends, color=MUTED, linewidth=0.8, zorder=1)
        tips[f"tip{number}"] = cost.label
        if cost.spread is not None:
            whisker = [cost.overall - cost.spread, cost.overall + cost.spread]
            axes.plot([cost.hours, cost.hours], whisker, color=OURS, linewidth=1.2, zorder=2)
        _point(axes, cost.hours, cost.overall, "o", cost.plot, OURS)
        axes.lines[-1].set_gid(f"tip{number}")
    for cost in front(found):  # PLOT is the dearer of a pair: names stand outside of it
        axes.annotate(
            f"{'≈ ' if cost.tie else ''}{_cut(cost.method)}",
            (cost.hours, cost.overall),
            xytext=(6 if cost.plot else -6, 0),
            textcoords="offset points",
            ha="left" if cost.plot else "right",
            va="center",
            fontsize=8,
            color=INK,
            parse_math=False,
        )
    low, high = min(c.hours for c in found), max(c.hours for c in found)
    room = max(1.5, (high / low) ** 0.4)
    axes.set_xlim(low / room, high * room)
    axes.margins(y=0.12)
    _hour_ticks(axes)
    axes.set_xlabel("training time, summed over devices")
    axes.set_ylabel("overall accuracy, %")
    kinds = {c.plot for c in found}
    handles = [("o", False, OURS, "without PLOT")] * (False in kinds)
    _legend(figure, handles + [("o", True, OURS, "with PLOT")] * (True in kinds))
    return _svg(figure, name, "Overall accuracy against training time", tips)


def front(found: Sequence[Cost]) -> list[Cost]:
    """Return the rows that are more accurate than all cheaper ones."""
    best: list[Cost] = []
    for cost in sorted(found, key=lambda c: (c.hours, -c.overall)):
        if not best or cost.overall > best[-1].overall:
            best.append(cost)
    return best


def _figure(height: float) -> tuple[Figure, Axes]:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):  # type: ignore[arg-type]  # stubs know no plain dict
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        return figure, figure.add_subplot()


def _point(
    axes: Axes, x: float, y: float, marker: str, filled: bool, colour: str, *, faint: bool = False
) -> None:
    axes.plot(
        [x],
        [y],
        marker=marker,
        markersize=5.5,
        markerfacecolor=colour if filled else CARD,
        markeredgecolor=colour,
        markeredgewidth=1.3,
        linestyle="none",
        alpha=0.45 if faint else None,
        zorder=3,
    )


def _legend(figure: Figure, entries: Sequence[tuple[str, bool, str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            marker=marker,
            linestyle="none",
            markersize=5,
            markerfacecolor=colour if filled else CARD,
            markeredgecolor=colour,
            label=label,
        )
        for marker, filled, colour, label in entries
    ]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=len(handles),
        handletextpad=0.2,
        columnspacing=1.2,
        borderaxespad=0,
        labelcolor=INK,
        frameon=False,
        fontsize=8,
    )


def _hour_ticks(axes: Axes) -> None:
    """Label a logarithmic axis of hours by seconds, minutes, hours and days."""
    from matplotlib.ticker import FixedLocator, NullLocator

    names = {
        **{n / 3600: f"{n} s" for n in (1, 2, 5, 10, 20, 30)},
        **{n / 60: f"{n} min" for n in (1, 2, 5, 10, 20, 30)},
        **{float(n): f"{n} h" for n in (1, 2, 5, 10)},
        **{24.0 * n: f"{n} d" for n in (1, 2, 5, 10, 20, 50, 100, 200)},
    }
    low, high = axes.get_xlim()
    shown = [hours for hours in names if low <= hours <= high]
    shown = shown[:: 1 + len(shown) // 7]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(shown, [names[h] for h in shown])


def _svg(figure: Figure, name: str, title: str, tips: Mapping[str, str]) -> str:
    """Return a figure as an SVG element that can stand beside others in one page."""
    from markupsafe import escape
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    for mark, tip in tips.items():
        svg = svg.replace(f'<g id="{mark}">', f'<g class="point"><title>{escape(tip)}</title>', 1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    box = re.search(r'viewBox="[^"]+"', svg)
    label = f"{title}. {'; '.join(tips.values())}."
    head = f'<svg class="figure" role="img" aria-label="{escape(label)}" {box[0] if box else ""}'
    return re.sub(r"<svg[^>]*", lambda _: head, svg, count=1).rstrip()


def _cut(text: str) -> str:
    return text if len(text) <= 24 else text[:23] + "…"
