"""`ltbench data show`: tables and figure of a prepared data set."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from ltbench.data.shards.reader import ShardSource
from ltbench.data.shots import shot_groups
from ltbench.plotting import SERIES


def part_rows(parts: Mapping[str, ShardSource]) -> list[dict[str, Any]]:
    """Return one row per split: images, classes, class sizes (max, median, min), shards, bytes.

    Args:
        parts: the splits by name.
    """
    rows = []
    for name, source in parts.items():
        counts = np.array(source.manifest.class_counts)
        there = counts[counts > 0]
        rows.append(
            {
                "part": name,
                "images": len(source),
                "classes": len(there),
                "largest": int(there.max()),
                "median": float(np.median(there)),
                "smallest": int(there.min()),
                "ratio": float(there.max() / there.min()),
                "shards": len(source.manifest.shards),
                "bytes": sum(shard.bytes for shard in source.manifest.shards),
            }
        )
    return rows


def group_rows(class_counts: tuple[int, ...], rule: str = "strict") -> list[dict[str, Any]]:
    """Return one row per shot group: classes and training images.

    Args:
        class_counts: training images of each class [C].
        rule: see ``ltbench.data.shots.shot_groups``.
    """
    counts = np.array(class_counts)
    groups = shot_groups(class_counts, rule)
    return [
        {"group": name, "classes": len(members), "images": int(counts[list(members)].sum())}
        for name, members in groups.items()
    ]


def picture(title: str, class_counts: tuple[int, ...], rule: str = "strict") -> bytes:
    """Return a PNG of the long tail: images per class, largest first, coloured by shot group.

    Args:
        title: title of the figure.
        class_counts: training images of each class [C].
        rule: see ``ltbench.data.shots.shot_groups``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = np.array(class_counts)
    order = np.argsort(-counts, kind="stable")
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, members in shot_groups(class_counts, rule).items():
        inside = np.isin(order, list(members))
        if inside.any():
            at = np.flatnonzero(inside)
            label, colour = SERIES[name]
            text = f"{label}: {len(at):,} classes, {counts[order[at]].sum():,} images"
            axes.fill_between(
                np.r_[at, at[-1] + 1], np.r_[counts[order[at]], counts[order[at[-1]]]],
                step="post", color=colour, label=text, linewidth=0,
            )  # fmt: skip
    axes.set(
        title=title, xlabel="class, largest first", ylabel="training images",
        yscale="log", xlim=(0, len(counts)), ylim=(0.8, None),
    )  # fmt: skip
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
