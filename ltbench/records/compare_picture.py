"""Picture of a comparison: differences by shot group, with intervals."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ltbench.errors import visible
from ltbench.plotting import COLOURS, MARKERS, blank, legend_below, tidy
from ltbench.records.compare_text import bounds, resolved
from ltbench.records.contrasts import Contrasts, Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUPS = ("overall", "many", "medium", "few")
STEP = 0.22  # distance of two methods within a group, in groups
DOTS = 0.085  # of the seeds, below their mean
LONGEST = 60  # characters of a label
DPI = 200
DRAWN = 24  # methods


def draw_comparison(comparison: Contrasts) -> bytes:
    """Return the differences to the baseline by shot group as PNG.

    Markers are means, bars their 95 % intervals, faint dots single seeds; markers are filled where
    the difference is resolved.

    Args:
        comparison: what is drawn.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    contrasts = comparison.contrasts[:DRAWN]
    names = [n for n in GROUPS if any(d.name == n for c in contrasts for d in c.groups)]
    block = max(1.0, STEP * (len(contrasts) + 1))  # height of a group
    figure = blank(6.0, 1.3 + 0.55 * block * len(names) + 0.22 * len(contrasts))
    axes = figure.add_subplot()
    axes.axvline(0, color="black", linewidth=1.0)
    handles, texts = [], []
    for i, contrast in enumerate(contrasts):
        colour = COLOURS[i % len(COLOURS)]
        marker = MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]
        shift = STEP * (i - (len(contrasts) - 1) / 2)
        for d in contrast.groups:
            if d.name in names:
                y = block * names.index(d.name) + shift
                _draw(axes, d, y, colour, marker)
        handles.append(Line2D([], [], color=colour, marker=marker, linewidth=1.6))
        texts.append(f"{_plain(contrast.label)}, n = {len(contrast.seeds)}")
    axes.set_yticks([block * k for k in range(len(names))], names)
    axes.set_ylim(block * (len(names) - 0.45), -0.55 * block)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"difference to {_plain(comparison.baseline)}, percentage points", fontsize=9)
    some = f", {DRAWN} of {len(comparison.contrasts)} methods"
    axes.set_title(
        f"{_plain(comparison.dataset)}: mean, 95 % interval and single seeds; filled: resolved"
        f"{some if len(comparison.contrasts) > DRAWN else ''}",
        fontsize=9,
        loc="left",
    )
    tidy(axes, grid="x")
    legend_below(figure, handles, texts)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, d: Difference, y: float, colour: str, marker: str) -> None:
    """Draw one difference at a height."""
    mean, ends = d.estimate.mean, bounds(d)
    axes.plot(
        d.by_seed, [y + DOTS] * len(d.by_seed), "o", color=colour, markersize=2.5, alpha=0.6,
        markeredgewidth=0,
    )  # fmt: skip
    axes.errorbar(
        mean, y, xerr=None if ends is None else [[mean - ends[0]], [ends[1] - mean]], fmt=marker,
        color=colour, markersize=5.5, linewidth=1.6, capsize=3,
        markerfacecolor=colour if resolved(d) else "white",
    )  # fmt: skip


def _plain(text: str) -> str:
    """Return a text without formulas, shortened."""
    shown = visible(text, LONGEST)
    return shown.replace("$", r"\$")
