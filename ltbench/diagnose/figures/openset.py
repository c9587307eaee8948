"""Figures of the separation of known and unknown images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ltbench.diagnose.base import Tables
from ltbench.plotting import GREY, SERIES, blank, colours, legend_below, markers, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Scores of images, higher for known ones.
SCORES = {
    "softmax": "largest softmax probability",
    "energy": "log-sum-exp of the logits",
    "cosine": "cosine to the nearest prototype",
}


def scores_figure(results: Mapping[str, Tables]) -> Figure:
    """Draw the distributions of the scores, one row per subject."""
    figure = blank(11, 2.5 * len(results) + 0.9)
    grid = figure.subplots(len(results), len(SCORES), squeeze=False)
    for line, (name, tables) in zip(grid, results.items(), strict=True):
        table = tables["histogram"]
        for axes, (kind, label) in zip(line, SCORES.items(), strict=True):
            here = table[table["score"] == kind]
            for of, rows in here.groupby("images_of", sort=False):
                edges = np.append(rows["low"], rows["high"].iloc[-1])
                style: dict[str, Any] = (
                    {"fill": True, "color": GREY, "alpha": 0.45, "label": "unknown"}
                    if of == "unknown"
                    else {"color": SERIES[str(of)][1], "linewidth": 1.5}
                    | {"label": f"known, {of}-shot"}
                )
                axes.stairs(100 * rows["share"], edges, **style)
            axes.set_xlabel(label)
            axes.set_ylim(bottom=0)
            tidy(axes)
        line[0].set_ylabel("share of the group's images, %")
        line[0].set_title(name, loc="left", fontsize="medium")
    found = dict(zip(*grid[0, 0].get_legend_handles_labels()[::-1], strict=True))
    legend_below(figure, list(found.values()), list(found))
    return figure


def f_figure(results: Mapping[str, Tables]) -> Figure:
    """Draw the F-measure at every threshold, one panel per score."""
    figure = blank(11, 4)
    panels = figure.subplots(1, len(SCORES), sharey=True)
    colour = colours(results)
    style = {"oltr": "-", "decoupling": "--"}
    for axes, (kind, label) in zip(panels, SCORES.items(), strict=True):
        for name, tables in results.items():
            curve = tables["curve"][tables["curve"]["score"] == kind]
            for definition, line in style.items():
                axes.plot(
                    curve["threshold"], curve[definition], line, color=colour[name],
                    linewidth=1.5, label=f"{name}, {definition}",
                )  # fmt: skip
            points = tables["f_measure"]
            points = points[(points["score"] == kind) & (points["kind"] == "as published")]
            if len(points):
                axes.axvline(points["threshold"].iloc[0], color=GREY, linestyle=":", linewidth=1)
        axes.set(xlabel=f"threshold on the {label}")
        tidy(axes)
    panels[0].set_ylabel("F-measure")
    panels[0].set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    legend_below(figure, handles, labels)
    return figure


def roc_figure(results: Mapping[str, Tables]) -> Figure:
    """Draw ROC curves, one panel per score."""
    figure = blank(11, 4.3)
    panels = figure.subplots(1, len(SCORES), sharey=True)
    colour, marker = colours(results), markers(results)
    for axes, (kind, label) in zip(panels, SCORES.items(), strict=True):
        axes.plot((0, 100), (0, 100), color=GREY, linestyle=":", linewidth=1)
        for name, tables in results.items():
            roc = tables["roc"][tables["roc"]["score"] == kind]
            table = tables["separation"]
            at = table[(table["score"] == kind) & (table["group"] == "overall")].iloc[0]
            axes.plot(
                100 * roc["unknown_accepted"], 100 * roc["known_accepted"], color=colour[name],
                linewidth=1.5, label=f"{name}: AUROC {at['auroc']:.3f}",
            )  # fmt: skip
            axes.plot(100 * at["fpr95"], 95, color=colour[name], marker=marker[name], markersize=6)
        axes.set(title=label, xlabel="unknown images accepted, %", xlim=(-2, 102), ylim=(-2, 102))
        axes.set_aspect("equal")
        axes.legend(
            frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize="small"
        )
        tidy(axes)
    panels[0].set_ylabel("known images accepted, %")
    return figure
