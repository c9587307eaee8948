"""Figures of the agreement of class gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ltbench import plotting as panels
from ltbench.config.registry import natural
from ltbench.diagnose.base import Tables

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STATES = 3  # columns of a figure at most
NUMBERED = 12  # classes up to which a heat map shows its numbers
NAMED = 20  # classes up to which an axis names them


def of_part(table: pd.DataFrame, state: str | None = None, part: str | None = None) -> pd.DataFrame:
    """Return the rows of a state and a part; of the first part if none is given."""
    table = table[table["part"] == (table["part"].iloc[0] if part is None else part)]
    return table if state is None else table[table["state"] == state]


def ends(tables: Tables) -> list[str]:
    """Return the labels of the last state of each stage, the last few of them."""
    last = tables["conflicts"].groupby("stage", sort=True)["state"].last()
    return [str(label) for label in last][-STATES:]


def matrices(results: Mapping[str, Tables]) -> Figure:
    """Draw a row of matrices for each subject, the end of each stage in a column."""
    columns = max(len(ends(t)) for t in results.values())
    figure = panels.blank(1.2 + 4.6 * columns, 4.4 * len(results))
    axes = figure.subplots(len(results), columns, squeeze=False)
    off = [of_part(t["cosines"])["cosine"].abs().max() for t in results.values()]
    reach = next((r for r in (0.1, 0.2, 0.3, 0.5) if np.nanmax([*off, 0.0]) <= r), 1.0)
    image = None
    for row, (name, tables) in zip(axes, results.items(), strict=True):
        for place, axis in enumerate(row):
            if place >= len(ends(tables)):
                axis.set_axis_off()
                continue
            state = ends(tables)[place]
            image = _matrix(axis, tables, state, reach)
            axis.set_title(f"{name}\n{state}", fontsize="medium")
    if image is not None:
        bar = figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.8, pad=0.01)
        bar.set_label("cosine of the gradients of two classes")
    return figure


def _matrix(axis: Axes, tables: Tables, state: str, reach: float) -> Any:
    classes = of_part(tables["classes"], state)
    classes = classes[classes["in_matrix"]].sort_values("rank")
    place = {k: i for i, k in enumerate(classes["class"])}
    size = len(place)
    values = np.full((size, size), np.nan)
    for row in of_part(tables["cosines"], state).itertuples():
        i, j = place[cast(int, row.class_i)], place[cast(int, row.class_j)]
        values[i, j] = values[j, i] = row.cosine
    axis.set_facecolor(panels.GREY)
    image = axis.imshow(values, cmap="RdBu_r", vmin=-reach, vmax=reach)
    if size <= NUMBERED:
        for i, j in np.argwhere(~np.isnan(values)):
            dark = abs(values[i, j]) > 0.6 * reach
            text = f"{round(values[i, j], 2) + 0.0:.2f}".replace("0.", ".", 1)
            axis.text(
                *(j, i, text),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
            )
    labels = [f"{n} ({c:,})" for n, c in zip(classes["name"], classes["images"], strict=True)]
    short = [label if len(label) <= 22 else label[:20] + "..." for label in labels]
    axis.set_xticks(range(size), short, rotation=90, fontsize=7)
    axis.set_yticks(range(size), short, fontsize=7)
    axis.set_xlabel("class (training images)")
    return image


def counts(results: Mapping[str, Tables]) -> Figure:
    """Draw the share of conflicting and of dominated pairs at each state."""
    import pandas as pd

    every = pd.concat([of_part(t["conflicts"]) for t in results.values()])
    labels = _ordered(every)
    figure = panels.blank(max(7.5, 3 + 1.2 * len(labels)), 3.8)
    left, right = figure.subplots(1, 2)
    _bars(left, results, "conflicts", labels, "state")
    _bars(right, results, "dominated", labels, "state")
    left.set_title("conflicts: negative cosine", fontsize="medium")
    right.set_title("dominated conflicts", fontsize="medium")
    panels.shared_legend(figure)
    return figure


def parts(results: Mapping[str, Tables]) -> Figure:
    """Draw conflicts and dominated conflicts by part, at the end of the first stage."""
    first = {
        name: {"conflicts": t["conflicts"][t["conflicts"]["state"] == ends(t)[0]]}
        for name, t in results.items()
    }
    labels = list(dict.fromkeys(p for t in first.values() for p in t["conflicts"]["part"]))
    figure = panels.blank(max(7.5, 3 + 1.2 * len(labels)), 3.6)
    left, right = figure.subplots(1, 2)
    _bars(left, first, "conflicts", labels, "part")
    _bars(right, first, "dominated", labels, "part")
    states = ", ".join(dict.fromkeys(ends(t)[0] for t in results.values()))
    left.set_title(f"conflicts, {states}", fontsize="medium")
    right.set_title("dominated conflicts", fontsize="medium")
    panels.shared_legend(figure)
    return figure


def _bars(
    axis: Axes, results: Mapping[str, Tables], what: str, labels: Sequence[str], key: str
) -> None:
    """Draw bars of a share of pairs by subject; whiskers are the standard deviation of batches."""
    width, colour = 0.8 / len(results), panels.colours(results)
    for i, (name, tables) in enumerate(results.items()):
        table = tables["conflicts"] if key == "part" else of_part(tables["conflicts"])
        share = 100 * table[what] / table["pairs"].clip(lower=1)
        grouped = share.groupby(table[key])
        mean, deviation = grouped.mean(), grouped.std(ddof=0)
        places = [n for n, label in enumerate(labels) if label in mean.index]
        axis.bar(
            [n + (i - (len(results) - 1) / 2) * width for n in places],
            [mean[labels[n]] for n in places],
            0.92 * width,
            yerr=[deviation[labels[n]] for n in places],
            color=colour[name],
            error_kw={"elinewidth": 1, "ecolor": panels.ink(), "capsize": 2},
            label=name,
        )
    axis.set_xticks(range(len(labels)), [label.replace(", ", "\n") for label in labels])
    axis.tick_params(axis="x", labelsize="small")
    axis.set_ylabel("share of all pairs of classes, %")
    axis.set_ylim(bottom=0)
    panels.tidy(axis, grid="y")


def _ordered(table: pd.DataFrame) -> list[str]:
    """Return the labels of states in the order of training."""
    labels = table.drop_duplicates("state")["state"]
    return sorted(map(str, labels), key=natural)


def by_class(results: Mapping[str, Tables]) -> Figure:
    """Draw norm ratio, cosine with the average, and share of the loss, class by class."""
    columns = max(len(ends(t)) for t in results.values())
    figure = panels.blank(1.5 + 3.6 * columns, 7.5)
    axes = figure.subplots(3, columns, squeeze=False, sharex="col", sharey="row")
    colour, marker = panels.colours(results), panels.markers(results)
    rows = (
        ("norm_ratio", "length of gradient\nover that of g_0"),
        ("cosine_mean", "cosine with g_0"),
        ("loss_share", "share of the batch loss\nB_k l_k / B"),
    )
    for name, tables in results.items():
        for column, state in enumerate(ends(tables)):
            classes = of_part(tables["classes"], state).sort_values("rank")
            few = len(classes) <= 50
            for axis, (key, _) in zip(axes[:, column], rows, strict=True):
                axis.plot(
                    classes["rank"],
                    classes[key],
                    marker[name],
                    color=colour[name],
                    markersize=5 if few else 2.5,
                    linestyle="-" if few else "none",
                    linewidth=1,
                    alpha=0.9 if few else 0.6,
                    label=name,
                )
            title = axes[0, column].get_title()
            axes[0, column].set_title(title if state in title else state, fontsize="medium")
    for axis, (_, label) in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(label)
    for axis in axes.ravel():
        panels.tidy(axis)
    for axis in axes[1]:
        axis.axhline(0, color=panels.GREY, linewidth=0.8)
    for column in range(columns):
        _name_classes(axes[2, column], results, column)
    panels.shared_legend(figure)
    return figure


def _name_classes(axis: Axes, results: Mapping[str, Tables], column: int) -> None:
    """Name few classes along an axis of ranks, if they are the same for all subjects."""
    axis.set_xlabel("class, from the most to the least frequent")
    tables = [
        of_part(t["classes"], ends(t)[column]) for t in results.values() if len(ends(t)) > column
    ]
    found = {pair for t in tables for pair in zip(t["rank"], t["name"], strict=True)}
    names = dict(sorted(found))
    if len(names) == len(found) <= NAMED:
        axis.set_xticks(list(names), [str(n)[:14] for n in names.values()], fontsize=8)
        if sum(map(len, map(str, names.values()))) > 40:
            axis.tick_params(axis="x", rotation=90)
