"""Picture of a confusion matrix."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ltbench.plotting import blank

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUMBERS = 25  # classes up to which each cell shows its percentage
NAMED = 160  # classes up to which each row and column has its name
BLOCKS = 100  # blocks of classes where there are more
LONGEST = 24  # characters of a name
LINES = "#D55E00"


def draw_confusion(
    confusion: np.ndarray,
    names: Sequence[str],
    class_counts: Sequence[int],
    groups: Mapping[str, Sequence[int]],
    title: str,
) -> bytes:
    """Return a confusion matrix as PNG, classes ordered from most to fewest training images.

    With more than 160 classes, a cell stands for a block of classes that follow each other.

    Args:
        confusion: number of images by label and predicted class [C, C].
        names: name of each class [C].
        class_counts: training images of each class [C].
        groups: classes of each shot group, from many to few; lines separate the groups.
        title: of the picture.
    """
    from matplotlib.colors import Normalize, PowerNorm

    counts = np.asarray(class_counts)
    order = np.argsort(-counts, kind="stable")
    classes = len(order)
    cells = confusion[order][:, order].astype(float)
    share = 100 * cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    if classes > NAMED:
        share = _blocks(share, cells.sum(axis=1) > 0)
    rows = len(share)
    side = 2.5 + (0.42 if classes <= NUMBERS else 0.1) * rows
    side = min(16.0, max(5.5, side))
    figure = blank(side + 1.0, side)
    axes = figure.add_subplot()
    # A square root makes rare confusions visible where no number states them.
    norm = Normalize(0, 100) if classes <= NUMBERS else PowerNorm(0.5, 0, 100)
    shown = axes.imshow(share, cmap="Blues", norm=norm, interpolation="nearest")
    figure.colorbar(shown, ax=axes, shrink=0.75, aspect=30, label="test images of the class, %")
    if classes <= NAMED:
        size = 9.0 if classes <= NUMBERS else max(4.5, min(7.0, 58 * (side - 2.0) / classes))
        labels = [_short(names[k]) for k in order]
        axes.set_xticks(range(classes), labels, rotation=90, fontsize=size)
        axes.set_yticks(range(classes), labels, fontsize=size)
        axes.tick_params(length=0)
    if classes <= NUMBERS:
        _numbers(axes, share)
    ends = np.cumsum([len(inside) for inside in groups.values()])[:-1]
    for end in sorted({int(end) for end in ends} - {0, classes}):
        axes.axhline(end * rows / classes - 0.5, color=LINES, linewidth=0.9)
        axes.axvline(end * rows / classes - 0.5, color=LINES, linewidth=0.9)
    present = [name for name, inside in groups.items() if inside]
    block = "" if rows == classes else f", blocks of {classes / rows:.3g}"
    axes.set_xlabel(f"predicted class{block}")
    axes.set_ylabel(f"class{block}")
    what = "classes" if rows == classes else f"{classes:,} classes in {rows} blocks"
    separated = f"; lines separate {', '.join(present)}" if len(present) > 1 else ""
    axes.set_title(
        f"{_plain(title)}\n{what} from most ({counts.max():,}) to fewest ({counts.min():,}) "
        f"training images{separated}",
        fontsize=9,
        loc="left",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _blocks(share: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Return the mean share of classes in a block that is predicted as any class of a block."""
    blocks = np.array_split(np.arange(len(share)), BLOCKS)
    columns = np.stack([share[:, block].sum(axis=1) for block in blocks], axis=1)
    rows = [columns[block[tested[block]]] for block in blocks]
    return np.stack([row.mean(axis=0) if len(row) else np.zeros(len(blocks)) for row in rows])


def _numbers(axes: Axes, share: np.ndarray) -> None:
    for i, j in zip(*share.nonzero(), strict=True):
        ink = "white" if share[i, j] > 55 else "#08306B"
        axes.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", fontsize=8, color=ink)


def _short(name: str) -> str:
    return _plain(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…")


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # no formulas
