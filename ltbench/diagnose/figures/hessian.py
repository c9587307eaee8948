"""Figures of the curvature of the loss of classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ltbench.diagnose.base import Tables
from ltbench.plotting import GREY, blank, colours, markers, shared_legend, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_density(results: Mapping[str, Tables]) -> Figure:
    """Draw one panel per class and one line per subject, with a common scale."""
    first = next(iter(results.values()))["summary"]
    classes = list(first["class"])
    nodes = {name: tables["nodes"] for name, tables in results.items()}
    every = np.concatenate([table["node"].to_numpy() for table in nodes.values()])
    reach = max(float(np.abs(every).max()), 1e-12)
    linear = reach * 1e-3
    low, high = squash(np.array([every.min(), every.max()]), linear)
    grid = np.linspace(low - 0.4, high + 0.4, 800)
    figure = blank(max(6.4, 3.4 * len(classes) + 0.6), 3.9)
    panels = figure.subplots(1, len(classes), sharey=True, squeeze=False)[0]
    colour = colours(results)
    for axes, k in zip(panels, classes, strict=True):
        for name, table in nodes.items():
            own = table[table["class"] == k]
            starts = max(1, own["start"].nunique())
            line = density(
                grid, own["node"].to_numpy(), own["weight"].to_numpy() / starts, linear=linear
            )
            axes.semilogy(grid, line.clip(1e-12), color=colour[name], label=name, linewidth=1.6)
        axes.axvline(0, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_ylim(1e-8, 20)
        row = first[first["class"] == k].iloc[0]
        axes.set_title(
            f"class {row['name']}, {row['count']:,} images, {row['images']} of them used",
            fontsize=9,
        )
        _eigenvalue_ticks(axes, low, high, linear)
        axes.set_xlabel("eigenvalue")
        tidy(axes)
    panels[0].set_ylabel("density of eigenvalues, per decade")
    if len(results) > 1:
        shared_legend(figure)
    return figure


def _eigenvalue_ticks(axes: Any, low: float, high: float, linear: float) -> None:
    """Label a squashed axis with eigenvalues: powers of ten on both sides of zero."""
    powers = [10.0**e for e in np.arange(np.ceil(np.log10(linear)), 20)]
    marks = [0.0]
    for sign in (1, -1):
        inside = [p for p in powers if low <= squash(np.array(sign * p), linear) <= high]
        marks += [sign * p for p in inside[-1::-2]]
    marks.sort()
    axes.set_xticks([float(squash(np.array(mark), linear)) for mark in marks])
    axes.set_xticklabels([f"{mark:g}" for mark in marks], fontsize=8)


def draw_sharpness(results: Mapping[str, Tables]) -> Figure:
    """Draw largest eigenvalue, trace and most negative eigenvalue by class."""
    first = next(iter(results.values()))["summary"]
    figure = blank(9.6, 3.7)
    panels = figure.subplots(1, 3)
    what: tuple[tuple[Literal["largest", "trace", "smallest"], str], ...] = (
        ("largest", "largest eigenvalue"),
        ("trace", "trace, ± standard error"),
        ("smallest", "most negative eigenvalue"),
    )
    colour, marker = colours(results), markers(results)
    for axes, (column, title) in zip(panels, what, strict=True):
        for i, (name, tables) in enumerate(results.items()):
            table = tables["summary"]
            x = np.arange(len(table)) + 0.16 * (i - (len(results) - 1) / 2)
            error = table["trace_error"] if column == "trace" else None
            axes.errorbar(
                x, table[column], yerr=error, fmt=marker[name], color=colour[name], label=name,
                capsize=3, markersize=6,
            )  # fmt: skip
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.set_xticks(range(len(first)))
        labels = [f"{n}\n{c:,}" for n, c in zip(first["name"], first["count"], strict=True)]
        axes.set_xticklabels(labels, fontsize=8)
        axes.set_xlim(-0.6, len(first) - 0.4)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("class, training images")
        tidy(axes, grid="y")
    panels[0].set_ylabel("of the Hessian of the class's loss")
    if len(results) > 1:
        shared_legend(figure)
    return figure


def density(
    grid: np.ndarray, nodes: np.ndarray, weights: np.ndarray, *, linear: float, width: float = 0.08
) -> np.ndarray:
    """Return the spectral density per unit of ``squash(eigenvalue)``, with area 1.

    Args:
        grid: squashed eigenvalues at which to evaluate [G].
        nodes: eigenvalues [m].
        weights: quadrature weights with sum 1 [m].
        linear: see ``squash``.
        width: standard deviation of the Gaussians, in squashed units.
    """
    distance = (grid[:, None] - squash(nodes, linear)) / width
    bumps = np.exp(-(distance**2) / 2) / (width * np.sqrt(2 * np.pi))
    result: np.ndarray = bumps @ weights
    return result


def squash(values: np.ndarray, linear: float) -> np.ndarray:
    """Map values to a scale that is linear below ``linear`` and logarithmic (base 10) above."""
    result: np.ndarray = np.arcsinh(np.asarray(values) / linear) / np.log(10)
    return result
