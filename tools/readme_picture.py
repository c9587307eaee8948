"""Draw the README's picture from the runs of `tools/examples/paper_table.sh`, light and dark.

python tools/readme_picture.py runs/table
"""

from __future__ import annotations

import io
import statistics
import sys
from pathlib import Path
from typing import Any

from ltbench.files import write_atomic
from ltbench.plotting import MARKERS, blank, tidy
from ltbench.records.record import Record

FOLDER = Path(__file__).parent / "examples"
TITLES = {  # of the recipes that are drawn, in this order
    "ce": "cross-entropy",
    "balanced_softmax": "Balanced Softmax",
    "balanced_softmax_plot": "Balanced Softmax + PLOT",
}
THEMES = {  # ink, bars, and a colour for each recipe; the background is transparent
    "light": ("#1f2328", "#8c959f", ("#57606a", "#0072B2", "#D55E00")),
    "dark": ("#e6edf3", "#6e7681", ("#9198a1", "#56B4E9", "#E69F00")),
}


def picture(records: dict[str, list[Record]], theme: str) -> bytes:
    """Return an SVG: class counts, and the accuracy of each class by recipe.

    Args:
        records: of every seed, by recipe.
        theme: ``light`` or ``dark``.
    """
    import matplotlib

    ink, bars, colours = THEMES[theme]
    style: dict[str, Any] = {
        "svg.hashsalt": "ltbench",
        "font.size": 11,
        "text.color": ink,
        "axes.edgecolor": ink,
    }
    style |= {"axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink}
    with matplotlib.rc_context(style):
        figure = blank(8.2, 3.1)
        figure.patch.set_alpha(0)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        counts = next(iter(records.values()))[0].metrics.class_counts
        classes = range(len(counts))
        left.bar(classes, counts, color=bars)
        for k, count in enumerate(counts):
            left.text(k, count + 1.5, str(count), ha="center", va="bottom", fontsize=9)
        left.set_title("training images of each class", fontsize=11, loc="left")
        left.set_ylim(0, 1.12 * max(counts))
        left.set_yticks([])
        left.spines["left"].set_visible(False)
        for i, (recipe, seeds) in enumerate(records.items()):
            results = [
                [100 * r.metrics.correct[k] / r.metrics.total[k] for r in seeds] for k in classes
            ]
            right.errorbar(
                classes,
                [statistics.fmean(values) for values in results],
                [statistics.stdev(values) for values in results],
                color=colours[i],
                marker=MARKERS[i],
                markersize=4.5,
                linewidth=1.8,
                elinewidth=1,
                label=TITLES[recipe],
            )
        right.set_title("test accuracy of each class, %", fontsize=11, loc="left")
        right.set_ylim(0, 104)
        right.legend(frameon=False, loc="lower left", fontsize=10)
        for axes in (left, right):
            axes.set_xticks(list(classes))
            axes.set_facecolor("none")
        tidy(left, grid="x")
        left.grid(visible=False)
        tidy(right, grid="y")
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def main(arguments: list[str]) -> int:
    """Draw the picture of a grid and return the exit status."""
    if len(arguments) != 1:
        print("expected the folder of a grid, e.g. runs/table")
        return 2
    found: dict[str, list[Record]] = {name: [] for name in TITLES}
    for file in sorted(Path(arguments[0]).rglob("record.json")):
        record = Record.load(file)
        found.get(record.recipe.name, []).append(record)
    few = [name for name, seeds in found.items() if len(seeds) < 2]
    if few:
        print(f"{arguments[0]}: expected two seeds or more of {', '.join(few)}")
        return 1
    for theme in THEMES:
        write_atomic(FOLDER / f"paper_table_{theme}.svg", picture(found, theme))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
