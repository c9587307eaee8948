"""Shared style of all figures: palette, markers, axes, legend."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without black and yellow, which vanish in lines over a grid.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#888888"
# Distinguishable for colour-blind readers and in greyscale (Okabe and Ito's palette).
SERIES = {
    "top1": ("overall", "#000000"),
    "many": ("many", "#0072B2"),
    "medium": ("medium", "#E69F00"),
    "few": ("few", "#D55E00"),
}


def blank(width: float, height: float) -> Figure:
    """Return an empty figure, sized in inches, that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def colours(names: Iterable[str]) -> dict[str, str]:
    """Return a colour for each name, in their order."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def markers(names: Iterable[str]) -> dict[str, str]:
    """Return a marker for each name, in their order."""
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def ink() -> str:
    """Return the colour of text in the current style, for marks that must stand out."""
    import matplotlib as mpl

    return str(mpl.rcParams["text.color"])


def paper() -> str:
    """Return the colour of the background in the current style."""
    import matplotlib as mpl

    return str(mpl.rcParams["figure.facecolor"])


def tidy(axes: Axes, *, grid: str = "both") -> None:
    """Remove the top and right spines and draw a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, alpha=0.25, linewidth=0.6)  # type: ignore[arg-type]


def shared_legend(figure: Figure) -> None:
    """Draw one legend below all panels, with each of their labels once; none for one label."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if len(found) > 1:
        legend_below(figure, list(found.values()), list(found))


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Draw a legend below all panels, with as many columns as its longest label allows."""
    needed = 0.6 + 0.085 * max(map(len, labels))  # inches, at the default size
    columns = min(4, len(labels), int(figure.get_figwidth() / needed))
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, columns), frameon=False)
