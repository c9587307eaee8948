"""Curves of a run as a table and as a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ltbench.files import write_atomic
from ltbench.plotting import GREY, SERIES, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ltbench.config.recipe import Recipe

MEASURED = ("top1", "many", "medium", "few")  # accuracies, with the split's name in front
TRAINING = ("stage", "epoch", "lr", "loss", *(f"train_{name}" for name in MEASURED))
TITLES = {"val": "validation", "test": "test"}
History = Sequence[Mapping[str, Any]]
Shown = Literal["val", "test", ""]  # split that the curves show, besides training batches


def write_curves(
    folder: Path, history: History, recipe: Recipe | None = None, on: Shown = ""
) -> None:
    """Write ``curves.csv`` and ``curves.png`` to the folder of a run.

    Args:
        folder: of the run.
        history: one mapping per epoch: stage, epoch (1-based within the stage), lr, loss, training
            accuracy and recall of the shot groups, and ``val_top1`` or ``test_top1`` and so on
            where they were evaluated; missing or ``None`` where there is no value. Accuracies are
            in [0, 1].
        recipe: of the run, for the title and the names of its stages.
        on: split of the evaluations; empty for none.

    Raises:
        UserError: they could not be written.
    """
    write_atomic(folder / "curves.csv", _table(history, on).encode())
    write_atomic(folder / "curves.png", _picture(history, recipe, on))


def columns(on: Shown) -> tuple[str, ...]:
    """Return the columns of ``curves.csv``."""
    measured = (f"{on}_{name}" for name in MEASURED) if on else ()
    return (*TRAINING, *measured, "images_per_second")


def _table(history: History, on: Shown) -> str:
    known = dict.fromkeys(columns(on))
    more = dict.fromkeys(key for row in history for key in row if key not in known)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*known, *more], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _picture(history: History, recipe: Recipe | None, on: Shown) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8.5, 8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    if recipe is not None:
        shown = f"accuracy on {TITLES[on]} images" if on else "training batches only"
        title = f"{recipe.name} on {recipe.data.name}, seed {recipe.seed}: {shown}"
        figure.suptitle(title, fontsize="medium")
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 1))
    _line(loss, history, "loss", color="#000000")
    loss.set_ylabel("training loss")
    _accuracies(accuracy, history, on)
    rates = [row["lr"] for row in history if row.get("lr")]
    if rates and max(rates) > 50 * min(rates):
        rate.set_yscale("log", nonpositive="mask")
    _line(rate, history, "lr", color="#009E73", drawstyle="steps-mid")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch, counted over all stages")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.align_ylabels()
    _stages(loss, [loss, accuracy, rate], history, recipe)
    for axes in (loss, accuracy, rate):
        tidy(axes)
    if not history:
        accuracy.text(0.5, 0.5, "no epoch was trained", ha="center", transform=accuracy.transAxes)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def _accuracies(axes: Axes, history: History, on: Shown) -> None:
    """Draw evaluated accuracies as marked lines and training recalls as thin dashed ones."""
    from matplotlib.lines import Line2D

    shown = {}
    for name, (label, color) in SERIES.items():
        before = len(axes.lines)
        _line(axes, history, f"{on}_{name}", scale=100, color=color, marker="o")
        faint: dict[str, Any] = {"color": color, "linestyle": "--", "linewidth": 1, "alpha": 0.7}
        _line(axes, history, f"train_{name}", scale=100, **faint)
        if len(axes.lines) > before:
            shown[label] = Line2D([], [], color=color, linewidth=3)
    axes.set_ylabel("accuracy by shot group, %")
    axes.set_ylim(-2, 102)
    if shown:
        if on:
            shown[f"{TITLES[on]} images"] = Line2D([], [], color=GREY, marker="o", markersize=3.5)
        # Lower than on other images where a method mixes images or draws rare classes more often.
        training = "training batches\n(augmented, mixed)"
        shown[training] = Line2D([], [], color=GREY, linestyle="--", linewidth=1)
        axes.legend(
            shown.values(), shown.keys(), loc="upper left", bbox_to_anchor=(1.0, 1.0),
            frameon=False, fontsize="small",
        )  # fmt: skip


def _line(axes: Axes, history: History, key: str, *, scale: float = 1.0, **style: Any) -> None:
    """Draw the values that exist, joined over those that do not but not across stages."""
    xs: list[float] = []
    ys: list[float] = []
    stage: Any = None
    for epoch, row in enumerate(history, start=1):  # counted over all stages
        value = row.get(key)
        if value is None:
            continue
        if xs and row["stage"] != stage:
            xs.append(epoch)
            ys.append(math.nan)
        stage = row["stage"]
        xs.append(epoch)
        ys.append(scale * value)
    if xs:
        marker = "o" if len(xs) == 1 else style.pop("marker", None)
        axes.plot(xs, ys, **{"linewidth": 1.5, "markersize": 3.5, **style, "marker": marker})


def _stages(top: Axes, every: Sequence[Axes], history: History, recipe: Recipe | None) -> None:
    """Mark where stages begin, and the epochs of PLOT or SAM; name both above the first panel."""
    starts = [
        i for i, row in enumerate(history) if i == 0 or row["stage"] != history[i - 1]["stage"]
    ]
    for i, end in zip(starts, [*starts[1:], len(history)], strict=False):
        index, text = history[i]["stage"], f"stage {history[i]['stage'] + 1}"
        if recipe is not None:
            stage = recipe.stages[index]
            text, update = f"{text}: {stage.method.name}", stage.update
            if update.name != "plain":
                window = getattr(update.config, "epochs", None) or end - i
                last = min(end, i + window)
                for axes in every:
                    axes.axvspan(i + 0.5, last + 0.5, color="#56B4E9", alpha=0.15, linewidth=0)
                text += f"\n(shaded: {update.name}, epochs 1 to {last - i})"
        if i:
            for axes in every:
                axes.axvline(i + 0.5, color=GREY, linestyle=":", linewidth=1.2)
        top.text(
            (i + end + 1) / 2,
            1.02,
            text,
            ha="center",
            va="bottom",
            fontsize="small",
            transform=top.get_xaxis_transform(),
        )
