from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from ltbench.config import schema
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.figures import errors as figures
from ltbench.diagnose.predictions import groups_of, see
from ltbench.diagnose.sentences import interval, listing, number, percent

if TYPE_CHECKING:
    import pandas as pd

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

    captions: ClassVar[dict[str, str]] = {
        "groups": "Each row is a true shot group and sums to 100 %; `right` is the share with the "
        "correct class.",
        "classes": "Predictions per test image (the dotted line is 1) and recall of each class, "
        "most training images first.",
        "worst": "Recall of the worst classes and, on the right, the share of their images "
        "taken for other classes.",
        "examples": "Misclassified images of the worst classes, with the predicted class above "
        "and its probability.",
    }
    headings: ClassVar[dict[str, str]] = {
        "groups": "Predicted by true shot group",
        "classes": "Classes",
        "confusions": "Most frequent confusions of each class",
        "examples": "Example images",
    }

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
        """Return tables ``groups``, ``classes``, ``confusions`` and ``examples``.

        ``examples`` holds the images as PNG files, which the CSV leaves out: ``index`` is their
        position in the test set.
        """
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
                    "png": as_png(picture),
                }
                for place, (i, picture) in enumerate(zip(wrong, pictures, strict=True))
            ]
        columns = ["class", "name", "place", "index", "predicted", "predicted_name"]
        return pd.DataFrame(rows, columns=[*columns, "confidence", "png"])

    def describe(self, tables: Tables) -> list[str]:
        """Say which groups and classes lose most, to whom, and what is predicted too often."""
        groups, classes = tables["groups"], tables["classes"]
        images, right = int(classes["test_images"].sum()), int(classes["correct"].sum())
        wrong = 1 - right / max(1, images)
        found = [
            f"{images - right:,} of {images:,} test images are misclassified "
            f"({percent(wrong, interval(wrong, images))})" + _loss(groups) + "."
        ]
        worst = classes.dropna(subset=["recall"])
        worst = worst[worst["recall"] < 1].sort_values(["recall", "train_images", "class"])
        if len(worst):
            parts = [_taken(row, tables["confusions"]) for row in worst.head(3).to_dict("records")]
            found.append(f"lowest recall: {'; '.join(parts)}.")
        total = groups.groupby("true", sort=False)["images"].sum()
        taken = groups.groupby("predicted")["images"].sum()
        if len(total) > 1:
            parts = [f"{g}-shot {number(taken[str(g)] / n)}" for g, n in total.items() if n]
            found.append(f"predictions per test image: {', '.join(parts)} (1 is balanced).")
        return found

    def compare(self, results: Mapping[str, Tables]) -> list[str]:
        """List the error rates of the models."""
        parts = []
        for name, tables in results.items():
            classes = tables["classes"]
            images = int(classes["test_images"].sum())
            wrong = 1 - int(classes["correct"].sum()) / max(1, images)
            parts.append(f"{name} {percent(wrong, interval(wrong, images))}")
        return [f"misclassified test images, 95 % interval: {', '.join(parts)}."]

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return figures ``groups``, ``classes``, ``worst``, and ``examples`` if any."""
        drawn = {
            "groups": figures.groups_figure(results),
            "classes": figures.classes_figure(results),
            "worst": figures.worst_figure(results, self.options.worst),
        }
        if any(len(tables["examples"]) for tables in results.values()):
            drawn["examples"] = figures.examples_figure(results)
        return drawn


def _loss(groups: pd.DataFrame) -> str:
    """Return which shot group loses most and to whom, or that the groups do not differ."""
    sums = groups.groupby("true", sort=False)[["images", "correct"]].sum()
    rows = zip(map(str, sums.index), sums["images"].tolist(), sums["correct"].tolist(), strict=True)
    counts = {g: (images, correct) for g, images, correct in rows if images}
    rates = {g: 1 - correct / images for g, (images, correct) in counts.items()}
    if len(rates) < 2:
        return ""
    errors = {g: interval(rate, counts[g][0]) for g, rate in rates.items()}
    said = {g: f"{percent(rates[g], errors[g])} of the {g}-shot images" for g in rates}
    high, low = max(rates, key=rates.__getitem__), min(rates, key=rates.__getitem__)
    if rates[high] - rates[low] <= float(np.hypot(errors[high], errors[low])):
        return f"; shot groups do not differ beyond the noise: {listing([*said.values()])}"
    own = groups[groups["true"] == high].set_index("predicted")
    lost = (own["images"] - own["correct"]).sort_values(ascending=False, kind="stable")
    lost = lost[lost > 0]
    to = listing([f"{g}-shot ({n:,})" for g, n in lost.items()])
    return (
        f"; {high}-shot classes lose most: {said[high]} against {said[low]}. Their "
        f"{lost.sum():,} errors go to {to} classes"
    )


def _taken(row: Mapping[Any, Any], confusions: pd.DataFrame) -> str:
    """Return the recall of a class and its most frequent confusion."""
    mine = confusions[confusions["class"] == row["class"]].iloc[0]
    return (
        f"{row['name']} {percent(row['recall'])} ({row['train_images']:,} training images; "
        f"{mine['images']:,} of {row['test_images']:,} taken for {mine['predicted_name']})"
    )


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


def as_png(pixels: np.ndarray) -> bytes:
    """Return an image [H, W, 3] as PNG, with sides of at most 64 pixels."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, format="png", optimize=True)
    return file.getvalue()
