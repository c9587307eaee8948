"""Figures of confusions and example images."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ltbench.data.shots import GROUPS
from ltbench.diagnose.base import Tables
from ltbench.plotting import (
    GREY,
    SERIES,
    blank,
    colours,
    legend_below,
    markers,
    shared_legend,
    tidy,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 50  # largest number of classes, or bins of classes, along an axis
WIDEST = 15  # largest width of panels side by side, in inches


def from_png(file: bytes) -> np.ndarray:
    """Return the pixels [H, W, 3] of a PNG file."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(file), formats=("PNG",)))


def groups_figure(results: Mapping[str, Tables]) -> Figure:
    """Draw the predicted shot groups of each true shot group, one matrix per subject."""
    figure = blank(3.4 * len(results) + 1.2, 3.9)
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (name, tables) in zip(panels, results.items(), strict=True):
        table = tables["groups"]
        groups = [g for g in GROUPS if g in set(table["true"])]
        share = table.pivot(index="true", columns="predicted", values="share")
        share = 100 * share.loc[groups, groups]
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
        for row in table.to_dict("records"):
            y, x = groups.index(row["true"]), groups.index(row["predicted"])
            text = f"{100 * row['share']:.1f} %"
            if x == y and row["images"]:
                text += f"\n{100 * row['share'] * row['correct'] / row['images']:.1f} % right"
            shade = "white" if row["share"] > 0.6 else "black"
            axes.text(x, y, text, ha="center", va="center", fontsize="small", color=shade)
        axes.set(title=name, xticks=range(len(groups)), yticks=range(len(groups)))
        axes.set(xticklabels=groups, yticklabels=groups, xlabel="predicted group")
    panels[0].set_ylabel("true group")
    figure.colorbar(image, ax=list(panels), label="test images of the true group, %", shrink=0.85)
    return figure


def classes_figure(results: Mapping[str, Tables]) -> Figure:
    """Draw prediction frequency and recall of the classes, one line per subject."""
    figure = blank(8.5, 6)
    above, below = figure.subplots(2, 1, sharex=True)
    colour, marker = colours(results), markers(results)
    ordered = {
        name: tables["classes"].sort_values(
            ["train_images", "class"], ascending=[False, True], kind="stable"
        )
        for name, tables in results.items()
    }
    first = next(iter(ordered.values()))
    alike = all(table["class"].tolist() == first["class"].tolist() for table in ordered.values())
    for name, table in ordered.items():
        parts = np.array_split(np.arange(len(table)), min(len(table), MOST))
        x = np.array([part.mean() for part in parts])
        if not alike:  # different data sets: normalise the ranks
            x = 100 * (x + 0.5) / len(table)
        style = {"color": colour[name], "marker": marker[name], "markersize": 4, "label": name}
        for axes, column, scale in ((above, "predicted_over_true", 1), (below, "recall", 100)):
            values = table[column].to_numpy(dtype=float)
            means = [_mean(values[part]) for part in parts]
            axes.plot(x, scale * np.array(means), linewidth=1.4, **style)
    above.axhline(1, color=GREY, linestyle=":", linewidth=1)
    above.set_ylabel("predictions / test images")
    below.set(ylabel="recall, %", ylim=(-3, 103))
    binned = max(map(len, ordered.values())) > MOST
    text = f"mean of {MOST} bins of classes" if binned else "class"
    if not alike:
        text = f"rank of the {text}, %" if not binned else f"{text}, rank in %"
    below.set_xlabel(f"{text}, most training images first")
    if alike and len(first) <= 20:
        _name_classes(below, first)
    for axes in (above, below):
        tidy(axes)
        if alike:
            _shade(axes, first["group"].tolist())
    shared_legend(figure)
    figure.align_ylabels()
    return figure


def _name_classes(axes: Axes, table: pd.DataFrame) -> None:
    names = [_short(n) for n in table["name"]]
    labels = [f"{n}\n{c:,}" for n, c in zip(names, table["train_images"], strict=True)]
    axes.set_xticks(range(len(table)), labels, fontsize="small")
    if len(table) * max(map(len, names)) > 120:
        axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel("class and its training images")


def _mean(values: np.ndarray) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else float("nan")


def _shade(axes: Axes, groups: Sequence[str]) -> None:
    """Shade the ranges of classes of each shot group in the background."""
    for name in GROUPS:
        at = [i for i, g in enumerate(groups) if g == name]
        if at:
            label, colour = SERIES[name]
            axes.axvspan(at[0] - 0.5, at[-1] + 0.5, color=colour, alpha=0.07, linewidth=0)
            axes.text(
                (at[0] + at[-1]) / 2, 1, label, transform=axes.get_xaxis_transform(),
                ha="center", va="bottom", fontsize="small", color=colour,
            )  # fmt: skip


def worst_figure(results: Mapping[str, Tables], worst: int) -> Figure:
    """Draw the classes with the lowest recall and what they are taken for."""
    shown = {name: _worst(tables, worst) for name, tables in results.items()}
    longest = max(len(text) for table in shown.values() for text in table["taken_for"])
    end = 106 + 3.5 * longest  # end of the text right of the bars, in data units
    width, height = 2 + end / 50, 0.36 * max(map(len, shown.values())) + 0.9
    columns = len(shown) if len(shown) * width <= WIDEST else 1
    lines = -(-len(shown) // columns)
    figure = blank(columns * width, lines * height + 0.4)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, table) in zip(panels, shown.items(), strict=True):
        y = np.arange(len(table))
        axes.barh(y, 100 * table["recall"], color=[SERIES[g][1] for g in table["group"]])
        for at, text in zip(y, table["taken_for"], strict=True):
            axes.text(104, at, text, va="center", fontsize="small")
        pairs = zip(table["name"], table["train_images"], strict=True)
        axes.set_yticks(y, [f"{_short(n)} ({c:,})" for n, c in pairs])
        axes.set(title=name, xlabel="recall, %", xlim=(0, end), xticks=[0, 25, 50, 75, 100])
        axes.set(ylabel="class (training images)", ylim=(len(table) - 0.4, -0.6))
        axes.xaxis.set_label_coords(50 / end, -0.45 / height)
        tidy(axes, grid="x")
    from matplotlib.patches import Patch

    present = {g for tables in results.values() for g in tables["classes"]["group"]}
    patches = [Patch(color=SERIES[g][1], label=f"{g}-shot") for g in GROUPS if g in present]
    legend_below(figure, patches, [str(p.get_label()) for p in patches])
    return figure


def _worst(tables: Tables, worst: int) -> pd.DataFrame:
    """Return the classes with the lowest recall, with a description of their confusions."""
    table = tables["classes"].dropna(subset=["recall"])
    table = table.sort_values(["recall", "train_images", "class"], kind="stable").head(worst)
    texts = []
    for k in table["class"]:
        others = tables["confusions"][tables["confusions"]["class"] == k]
        pairs = zip(others["predicted_name"], others["share"], strict=True)
        text = ", ".join(f"{_short(name)} {100 * share:.0f} %" for name, share in pairs)
        texts.append(f"→ {text}" if text else "")
    return table.assign(taken_for=texts)


def examples_figure(results: Mapping[str, Tables]) -> Figure:
    """Draw misclassified images of the worst classes."""
    shown = {name: t["examples"] for name, t in results.items() if len(t["examples"])}
    lines = [table["class"].nunique() for table in shown.values()]
    columns = max(int(table["place"].max()) + 1 for table in shown.values())
    figure = blank(1.1 * columns + 1.4, 1.42 * sum(lines) + 0.35 * len(shown))
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=lines)[:, 0]
    for axes, (name, table) in zip(panels, shown.items(), strict=True):
        axes.set_title(name, fontsize="medium")
        _mosaic(axes, table, columns)
    return figure


def _mosaic(axes: Axes, table: pd.DataFrame, columns: int) -> None:
    """Draw one row of images per class, each below its predicted class; a cell is 1 x 1.3."""
    for line, k in enumerate(dict.fromkeys(table["class"])):
        mine = table[table["class"] == k].to_dict("records")
        low = 1.3 * line + 0.35
        text = f"{_short(mine[0]['name'])} →"
        axes.text(-0.06, low + 0.45, text, ha="right", va="center", fontsize="small")
        for place, row in enumerate(mine):
            extent = (place + 0.05, place + 0.95, low + 0.9, low)
            axes.imshow(from_png(row["png"]), interpolation="nearest", extent=extent)
            text = f"{_short(row['predicted_name'], 12)}\n{100 * row['confidence']:.0f} %"
            axes.text(place + 0.5, low - 0.02, text, ha="center", va="bottom", fontsize="x-small")
    axes.set(xlim=(0, columns), ylim=(1.3 * table["class"].nunique(), 0))
    axes.set_axis_off()


def _short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
