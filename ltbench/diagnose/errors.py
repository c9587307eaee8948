from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from ltbench.config import schema
from ltbench.data.shots import GROUPS
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.predictions import groups_of, see
from ltbench.plotting import GREY, SERIES, blank, colours, legend_below, markers, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 50  # largest number of classes, or bins of classes, along an axis
WIDEST = 15  # largest width of panels side by side, in inches
SIDE = 64  # largest side of an example image in pixels


class Errors(Diagnostic):
    """Confusions by shot group and by class, with example images."""

    title = "Errors"
    shown = (
        "Predicted shot groups for the test images of each shot group; prediction frequency and "
        "recall of each class, ordered by training images; the classes with the lowest recall, "
        "their most frequent confusions, and misclassified images."
    )
    computed = (
        "The predicted class is the one with the largest logit. Groups follow the record's rule. "
        "The diagonal of the first figure contains images predicted as any class of their own "
        "group; the share of correct predictions is given below. A class predicted as often as it "
        "occurs in the test set has the ratio 1. With more than 50 classes, the lines are means "
        "over up to 50 bins of equally many classes. The worst classes are those with the lowest "
        "recall; ties go to the rarer class. Their images are the misclassified ones with the "
        "highest confidence, as seen by the model."
    )
    see = (
        "A model biased by class frequencies classifies few-shot images as many-shot classes, "
        "hardly ever the reverse, and predicts frequent classes too often. Confusions of similar "
        "classes remain when this bias is removed."
    )

    class Options(schema.Config):
        """Options of the errors."""

        worst: int = Field(10, ge=1, le=30)
        """Number of classes in the figure of the worst classes; the table contains all."""
        confusions: int = Field(3, ge=1, le=20)
        """Number of confusions listed for each class."""
        example_classes: int = Field(5, ge=0, le=20)
        """Number of worst classes with example images; 0 for none."""
        examples: int = Field(8, ge=1, le=20)
        """Example images per class."""

    options: Options

    def measure(self, subject: Subject) -> Tables:
        """Return tables ``groups``, ``classes``, ``confusions`` and ``examples``."""
        info = subject.data.info
        parts = []
        for seen in see(subject, subject.data.test):
            best = seen.logits.argmax(dim=1)
            share = seen.logits.double().softmax(dim=1).gather(1, best[:, None])[:, 0]
            parts.append([x.cpu().numpy() for x in (seen.labels, best, share, seen.index)])
        labels, predicted, sure, index = (np.concatenate(p) for p in zip(*parts, strict=True))
        members = groups_of(subject)
        classes = class_table(labels, predicted, info.class_counts, info.class_names, members)
        order = classes.sort_values(
            ["recall", "train_images", "class"], na_position="last", kind="stable"
        )["class"]
        return {
            "groups": group_table(labels, predicted, members),
            "classes": classes,
            "confusions": confusion_table(
                labels, predicted, info.class_names, self.options.confusions
            ),
            "examples": self._examples(
                subject, order.tolist()[: self.options.example_classes],
                labels, predicted, sure, index,
            ),
        }  # fmt: skip

    def _examples(
        self,
        subject: Subject,
        classes: Sequence[int],
        labels: np.ndarray,
        predicted: np.ndarray,
        sure: np.ndarray,
        index: np.ndarray,
    ) -> pd.DataFrame:
        """Return misclassified images of some classes, by descending confidence."""
        import pandas as pd

        names = subject.data.info.class_names
        rows = []
        for k in classes:
            wrong = np.flatnonzero((labels == k) & (predicted != k))
            wrong = wrong[np.lexsort((index[wrong], -sure[wrong]))][: self.options.examples]
            pictures = pixels_of(subject, index[wrong])
            rows += [
                {
                    "class": k,
                    "name": names[k],
                    "place": place,
                    "index": int(index[i]),
                    "predicted": int(predicted[i]),
                    "predicted_name": names[predicted[i]],
                    "confidence": float(sure[i]),
                    "png": as_text(picture),
                }
                for place, (i, picture) in enumerate(zip(wrong, pictures, strict=True))
            ]
        columns = ["class", "name", "place", "index", "predicted", "predicted_name"]
        return pd.DataFrame(rows, columns=[*columns, "confidence", "png"])

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return figures ``groups``, ``classes``, ``worst``, and ``examples`` if any."""
        figures = {
            "groups": _groups_figure(results),
            "classes": _classes_figure(results),
            "worst": _worst_figure(results, self.options.worst),
        }
        if any(len(tables["examples"]) for tables in results.values()):
            figures["examples"] = _examples_figure(results)
        return figures


def group_table(
    labels: np.ndarray, predicted: np.ndarray, members: Mapping[str, Sequence[int]]
) -> pd.DataFrame:
    """Return one row per pair of true and predicted shot group.

    Args:
        labels: true class of each image [N].
        predicted: predicted class [N].
        members: classes of each group, a partition of all classes.

    Returns:
        Table with columns true, predicted, images, correct (images with the correct class) and
        share (of the images of the true group).
    """
    import pandas as pd

    rows = []
    for true, own in members.items():
        here = np.isin(labels, list(own))
        for group, others in members.items():
            there = here & np.isin(predicted, list(others))
            images, correct = int(there.sum()), int((there & (labels == predicted)).sum())
            share = images / max(int(here.sum()), 1)
            rows.append((true, group, images, correct, share))
    return pd.DataFrame(rows, columns=["true", "predicted", "images", "correct", "share"])


def class_table(
    labels: np.ndarray,
    predicted: np.ndarray,
    class_counts: Sequence[int],
    class_names: Sequence[str],
    members: Mapping[str, Sequence[int]],
) -> pd.DataFrame:
    """Return one row per class: images, predictions, recall and precision.

    Args:
        labels: true class of each image [N].
        predicted: predicted class [N].
        class_counts: training images of each class [C].
        class_names: [C].
        members: classes of each shot group.
    """
    import pandas as pd

    size = len(class_counts)
    total = np.bincount(labels, minlength=size)
    answers = np.bincount(predicted, minlength=size)
    correct = np.bincount(labels[labels == predicted], minlength=size)
    group = {k: name for name, own in members.items() for k in own}
    with np.errstate(invalid="ignore", divide="ignore"):
        return pd.DataFrame(
            {
                "class": np.arange(size),
                "name": list(class_names),
                "group": [group[k] for k in range(size)],
                "train_images": list(class_counts),
                "test_images": total,
                "predictions": answers,
                "correct": correct,
                "recall": np.where(total > 0, correct / total, np.nan),
                "precision": np.where(answers > 0, correct / answers, np.nan),
                "predicted_over_true": np.where(total > 0, answers / total, np.nan),
            }
        )


def confusion_table(
    labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str], most: int
) -> pd.DataFrame:
    """Return the most frequent confusions of each class; ties go to the smaller class number.

    Args:
        labels: true class of each image [N].
        predicted: predicted class [N].
        class_names: [C].
        most: rows per class.

    Returns:
        Table with columns class, name, place (0 is the most frequent), predicted, predicted_name,
        images and share (of the images of the class).
    """
    import pandas as pd

    wrong = labels != predicted
    pairs, images = np.unique(
        np.stack([labels[wrong], predicted[wrong]]), axis=1, return_counts=True
    )
    true, taken = pairs
    order = np.lexsort((taken, -images, true))
    true, taken, images = true[order], taken[order], images[order]
    place = np.arange(len(true)) - np.searchsorted(true, true, side="left")
    kept = place < most
    true, taken, images, place = true[kept], taken[kept], images[kept], place[kept]
    names, total = np.asarray(class_names, dtype=object), np.bincount(labels)
    return pd.DataFrame(
        {
            "class": true,
            "name": names[true],
            "place": place,
            "predicted": taken,
            "predicted_name": names[taken],
            "images": images,
            "share": images / total[true],
        }
    )


def pixels_of(subject: Subject, index: np.ndarray) -> list[np.ndarray]:
    """Return preprocessed test images without normalisation, uint8 [H, W, 3] each."""
    import torch

    if not len(index):
        return []
    split, info = subject.data.test, subject.data.info
    positions = np.arange(len(index))
    (view,) = split.finish(
        split.load(index, key=None, positions=positions), key=None, positions=positions
    )
    mean, std = (torch.tensor(v)[:, None, None] for v in (info.mean, info.std))
    bytes_ = ((view.cpu() * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
    return list(bytes_.permute(0, 2, 3, 1).numpy())


def as_text(pixels: np.ndarray) -> str:
    """Return an image [H, W, 3] as base64-encoded PNG, with sides of at most 64 pixels."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, format="png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def as_pixels(text: str) -> np.ndarray:
    """Return the pixels [H, W, 3] of a text made by ``as_text``."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text)), formats=("PNG",)))


def _groups_figure(results: Mapping[str, Tables]) -> Figure:
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


def _classes_figure(results: Mapping[str, Tables]) -> Figure:
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
    above.legend(frameon=False)
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


def _worst_figure(results: Mapping[str, Tables], worst: int) -> Figure:
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


def _examples_figure(results: Mapping[str, Tables]) -> Figure:
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
            axes.imshow(as_pixels(row["png"]), interpolation="nearest", extent=extent)
            text = f"{_short(row['predicted_name'], 12)}\n{100 * row['confidence']:.0f} %"
            axes.text(place + 0.5, low - 0.02, text, ha="center", va="bottom", fontsize="x-small")
    axes.set(xlim=(0, columns), ylim=(1.3 * table["class"].nunique(), 0))
    axes.set_axis_off()


def _short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
