"""Figures of the similarity of head and tail, and of models."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

from ltbench.diagnose.base import Tables
from ltbench.plotting import GREY, blank, colours, ink, markers, shared_legend, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {"svcca": "mean SVCCA correlation", "cka": "linear CKA"}


def draw_head_tail(results: Mapping[str, Tables]) -> Figure:
    """Draw the similarities with their references, and the canonical correlations."""
    figure = blank(9.6, 0.5 + max(3.6, 0.5 * len(results) + 1.6))
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    colour, marker = colours(results), markers(results)
    ticks, places = [], []
    for m, (measure, title) in enumerate(MEASURES.items()):
        for i, (name, tables) in enumerate(results.items()):
            row = tables["similarity"].set_index("measure").loc[measure]
            y = m * (len(results) + 1) + i
            low, high = sorted((row["chance"], row["head_head"]))
            first = m == i == 0
            left.plot([low, high], [y, y], color=GREY, linewidth=1)
            left.plot(
                row["chance"], y, "|", color=ink(), markersize=13, markeredgewidth=1.6,
                label="by chance (tail rotated)" if first else None,
            )  # fmt: skip
            left.plot(
                row["head_head"], y, "x", color=ink(), markersize=7,
                label="head and other head images" if first else None,
            )  # fmt: skip
            left.plot(
                row["head_tail"], y, marker[name], color=colour[name], markersize=8,
                label="head and tail" if first else None,
            )  # fmt: skip
            left.annotate(
                f"{row['head_tail']:.3f}", (row["head_tail"], y), xytext=(0, 8), fontsize=8,
                textcoords="offset points", ha="center",
            )  # fmt: skip
            ticks.append(f"{name}\n{title}" if len(results) == 1 else f"{name}, {measure.upper()}")
            places.append(y)
    left.set_yticks(places, ticks, fontsize=8)
    left.invert_yaxis()
    left.set_ylim(max(places) + 0.8, -0.9)
    left.set_xlim(-0.03, 1.03)
    left.set_xlabel("similarity of head and tail features")
    tidy(left, grid="x")
    for name, tables in results.items():
        table, row = tables["correlations"], tables["similarity"].iloc[0]
        label = f"{name} ({row['head_directions']} and {row['tail_directions']} directions)"
        right.plot(
            table["rank"], table["correlation"], color=colour[name], marker=marker[name],
            markersize=3, label=label,
        )  # fmt: skip
    right.set_ylim(-0.03, 1.03)
    right.set_xlabel("rank of the canonical correlation")
    right.set_ylabel("canonical correlation, head and tail")
    tidy(right)
    shared_legend(figure)
    return figure


def draw_models(found: Mapping[str, Any]) -> Figure:
    """Draw a matrix of models for each measure and group of images."""
    names, values = found["names"], found["values"]
    parts = ("all", "head", "tail")
    side = max(2.6, 0.62 * len(names) + 1.5)
    figure = blank(3 * side + 1.2, 2 * side + 0.4)
    panels = figure.subplots(2, 3, sharex=True, sharey=True, squeeze=False)
    shade: Any = None
    for row, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        for axes, part in zip(row, parts, strict=True):
            matrix = values[measure][part]
            shade = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1)
            for i, j in combinations_with_replacement(range(len(names)), 2):
                for a, b in {(i, j), (j, i)}:
                    ink = "black" if matrix[a, b] > 0.55 else "white"
                    axes.text(
                        b, a, f"{matrix[a, b]:.2f}", ha="center", va="center", color=ink, fontsize=8
                    )
            axes.set_title(f"{title}, {part} images", fontsize=9)
            axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
            axes.set_yticks(range(len(names)), names, fontsize=8)
    figure.colorbar(shade, ax=panels, shrink=0.6, label="similarity of two models' features")
    return figure
