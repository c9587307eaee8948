from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ltbench.config import schema
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.predictions import groups_of, see, shot_rule
from ltbench.diagnose.sentences import interval, number, percent
from ltbench.diagnose.tables import MINUS
from ltbench.errors import UserError
from ltbench.evaluation.metrics import BINS, Accumulator, Metrics
from ltbench.plotting import GREY, blank, colours, legend_below, markers, paper, tidy
from ltbench.seeding import derive, keyed_permutation

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

AS_TRAINED = "as trained"
ENOUGH = 10  # smallest number of images of a plotted bin
COOLEST, HOTTEST = 0.05, 20.0  # range of temperatures


class Calibration(Diagnostic):
    """Calibration of confidences, overall and for each shot group."""

    title = "Calibration"
    shown = (
        "Top: reliability diagrams, the accuracy of test images by confidence, overall and for "
        "each shot group; bottom: the distribution of confidences. The accuracy of bins with fewer "
        "than 10 images is in the table only. Then the expected calibration error, the negative "
        "log-likelihood and the Brier score."
    )
    computed = (
        "Confidence is the softmax probability of the predicted class. Images are assigned to 15 "
        "equal confidence bins (lo, hi]; the expected calibration error (ECE) is the mean over "
        "images of |accuracy - mean confidence| of their bin, as in the run's record. NLL is the "
        "mean of -log p(true class) in nats, Brier the mean squared distance between the "
        "probabilities and the one-hot label, in [0, 2]. An optional temperature is fitted to "
        "validation or training images, never to test images. The papers report one ECE; the "
        "split by shot group is ours."
    )
    see = (
        "Points below the diagonal are over-confident. Models trained on a long tail are usually "
        "over-confident on few-shot classes and less or not at all on many-shot ones, so that "
        "neither a single number nor a single temperature fits both; mixed training images and "
        "balanced losses often make them under-confident."
    )

    captions: ClassVar[dict[str, str]] = {
        "reliability": "Accuracy against confidence (top) and how often each confidence occurs "
        "(bottom), by shot group. On the dotted line confidence equals accuracy; below it the "
        "model is over-confident, above it under-confident.",
        "scores": "Calibration error, negative log-likelihood and Brier score by shot group; "
        "lower is better.",
    }
    headings: ClassVar[dict[str, str]] = {
        "bins": "Bins of confidence",
        "summary": "Scores by shot group",
    }

    class Options(schema.Config):
        """Options of the calibration."""

        temperature: Literal["none", "val", "train"] = "none"
        """Split for temperature scaling, in addition to the unscaled logits; training images are
        not augmented, and a model that has memorised them looks too well calibrated."""
        temperature_images: int = Field(5000, ge=1)
        """Largest number of these images, drawn at random."""

    options: Options

    def measure(self, subject: Subject) -> Tables:
        """Return tables ``bins`` (a row per group and bin) and ``summary`` (a row per group).

        Raises:
            UserError: a temperature needs validation images, and there are none.
        """
        import pandas as pd

        temperatures = {AS_TRAINED: 1.0}
        if self.options.temperature != "none":
            fitted = self._fit(subject)
            temperatures[f"temperature from {self.options.temperature}"] = fitted
        counts, rule = subject.data.info.class_counts, shot_rule(subject)
        groups = {"overall": list(range(len(counts))), **groups_of(subject)}
        tallies = {
            (variant, group): Tally(classes, len(counts), subject.device)
            for variant in temperatures
            for group, classes in groups.items()
        }
        for seen in see(subject, subject.data.test):
            for (variant, _), tally in tallies.items():
                tally.update(seen.logits / temperatures[variant], seen.labels)
        bins, summary = [], []
        for (variant, group), tally in tallies.items():
            if not tally.images:
                continue
            metrics = tally.counts.metrics(counts, rule)
            where = {"variant": variant, "group": group}
            bins += [{**where, **row} for row in bin_rows(metrics)]
            summary.append(
                {
                    **where,
                    "temperature": temperatures[variant],
                    "images": tally.images,
                    "accuracy": metrics.top1,
                    "confidence": sum(metrics.bin_confidence) / tally.images,
                    "ece": metrics.ece,
                    "nll": tally.nll / tally.images,
                    "brier": tally.brier / tally.images,
                }
            )
        return {"bins": pd.DataFrame(bins), "summary": pd.DataFrame(summary)}

    def _fit(self, subject: Subject) -> float:
        """Return the temperature fitted to validation or training images."""
        split = subject.data.val if self.options.temperature == "val" else subject.data.train
        if split is None:
            raise UserError(
                "calibration.temperature=val needs validation images, and "
                f"{subject.data.info.name} has none; use calibration.temperature=train or none"
            )
        order = keyed_permutation(derive(subject.recipe.seed, "temperature"), len(split))
        chosen = np.sort(order[: self.options.temperature_images])
        parts = [(seen.logits.cpu(), seen.labels.cpu()) for seen in see(subject, split, chosen)]
        logits, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        return fit_temperature(logits, labels)

    def describe(self, tables: Tables) -> list[str]:
        """Say where the model is over- or under-confident, and what a temperature changes."""
        summary = tables["summary"]
        rows = summary[summary["variant"] == AS_TRAINED].to_dict("records")
        overall, groups = rows[0], rows[1:]
        right = percent(overall["accuracy"], interval(overall["accuracy"], overall["images"]))
        sentence = (
            f"the model is {_verdict(overall)}: mean confidence {percent(overall['confidence'])}, "
            f"accuracy {right} on {overall['images']:,} test images, ECE {percent(overall['ece'])}"
        )
        parts = [
            f"{row['group']} {_gap(row)} points ({_verdict(row)}, ECE {percent(row['ece'])})"
            for row in groups
        ]
        if len(parts) > 1:
            sentence += f". Confidence minus accuracy by shot group: {', '.join(parts)}"
        found = [f"{sentence}."]
        for variant, scaled in summary[summary["variant"] != AS_TRAINED].groupby("variant"):
            row = scaled.iloc[0]
            found.append(
                f"the {variant} ({number(row['temperature'])}) changes the ECE from "
                f"{percent(overall['ece'])} to {percent(row['ece'])}."
            )
        return found

    def compare(self, results: Mapping[str, Tables]) -> list[str]:
        """Rank the models by their calibration errors."""
        rows = {name: tables["summary"].iloc[0] for name, tables in results.items()}
        ordered = sorted(rows, key=lambda name: float(rows[name]["ece"]))
        parts = [
            f"{name} {percent(rows[name]['ece'])} ({_verdict(rows[name])})" for name in ordered
        ]
        return [f"ECE over all test images, lowest first: {', '.join(parts)}."]

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return the figures ``reliability`` and ``scores``."""
        return {"reliability": _reliability(results), "scores": _scores(results)}


class Tally:
    """Accumulated scores of the test images of some classes.

    Args:
        classes: labels of these classes.
        num_classes: number of classes C.
        device: device of the logits.
    """

    def __init__(self, classes: list[int], num_classes: int, device: torch.device | str) -> None:
        self.counts = Accumulator(num_classes, device=device)
        self.images = 0
        self.nll = 0.0
        self.brier = 0.0
        self._mine = torch.zeros(num_classes, dtype=torch.bool, device=device)
        self._mine[classes] = True

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Accumulate a batch, logits [B, C] and labels [B]; images of other classes are ignored."""
        mine = self._mine[labels]
        logits, labels = logits[mine], labels[mine]
        if not len(labels):
            return
        self.counts.update(logits, labels)
        self.images += len(labels)
        nll, brier = proper_scores(logits, labels)
        self.nll += float(nll.sum())
        self.brier += float(brier.sum())


def proper_scores(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood in nats and the Brier score of each image, both [B].

    Args:
        logits: [B, C].
        labels: class of each image [B].
    """
    log_p = F.log_softmax(logits.double(), dim=1)
    at = log_p.gather(1, labels[:, None])[:, 0]
    p = log_p.exp()
    return -at, (p**2).sum(dim=1) - 2 * at.exp() + 1


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T in [0.05, 20] that maximises the likelihood of softmax(logits / T).

    Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599.
    Departures: a bounded scalar search instead of L-BFGS; the log-likelihood is concave in 1/T, so
        that the optimum is unique. If all images are classified correctly, the end of the range
        is returned.

    Args:
        logits: [N, C].
        labels: class of each image [N].
    """
    from scipy.optimize import minimize_scalar

    values = logits.double()

    def loss(inverse: float) -> float:
        return float(F.cross_entropy(values * inverse, labels))

    ends = 1 / HOTTEST, 1 / COOLEST
    found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-8})
    best = min((*ends, float(found.x)), key=loss)
    return 1 / best


def bin_rows(metrics: Metrics) -> list[dict[str, float | int | None]]:
    """Return one row per confidence bin; means of empty bins are ``None``."""
    rows: list[dict[str, float | int | None]] = []
    for b in range(BINS):
        count = metrics.bin_count[b]
        rows.append(
            {
                "bin": b,
                "low": b / BINS,
                "high": (b + 1) / BINS,
                "images": count,
                "correct": metrics.bin_correct[b],
                "confidence": metrics.bin_confidence[b] / count if count else None,
                "accuracy": metrics.bin_correct[b] / count if count else None,
            }
        )
    return rows


def _verdict(row: Mapping[Any, Any] | pd.Series[Any]) -> str:
    """Return whether a row of the summary is over- or under-confident beyond the noise."""
    gap = row["confidence"] - row["accuracy"]
    if abs(gap) <= interval(row["accuracy"], row["images"]):
        return "neither over- nor under-confident beyond the noise"
    return f"{'over' if gap > 0 else 'under'}-confident"


def _gap(row: Mapping[Any, Any]) -> str:
    """Return confidence minus accuracy in points, with the 95 % interval of the accuracy."""
    gap, error = row["confidence"] - row["accuracy"], interval(row["accuracy"], row["images"])
    return f"{100 * gap:+.1f}".replace("-", MINUS) + f" ± {100 * error:.1f}"


def _reliability(results: Mapping[str, Tables]) -> Figure:
    bins = {name: tables["bins"] for name, tables in results.items()}
    present = {group for table in bins.values() for group in table["group"]}
    groups = [g for g in ("overall", "many", "medium", "few") if g in present]
    figure = blank(2.9 * len(groups) + 0.8, 5.4)
    axes = figure.subplots(
        2, len(groups), squeeze=False, sharex=True, sharey="row", height_ratios=(2.4, 1)
    )
    colour, marker = colours(results), markers(results)
    for column, group in enumerate(groups):
        above, below = axes[:, column]
        above.plot((0, 100), (0, 100), color=GREY, linestyle=":", linewidth=1)
        for name, table in bins.items():
            here = table[table["group"] == group]
            for variant, rows in here.groupby("variant", sort=False):
                full = rows[rows["images"] >= ENOUGH]
                plain = variant == AS_TRAINED
                above.plot(
                    100 * full["confidence"].astype(float), 100 * full["accuracy"].astype(float),
                    color=colour[name], linewidth=1.4, linestyle="-" if plain else "--",
                    marker=marker[name], markersize=4, markerfacecolor=None if plain else paper(),
                    label=name if plain else f"{name}, {variant}",
                )  # fmt: skip
                below.stairs(
                    100 * rows["images"] / rows["images"].sum(), 100 * np.arange(BINS + 1) / BINS,
                    color=colour[name], linewidth=1.4, linestyle="-" if plain else "--",
                )  # fmt: skip
        above.set(title=group if group == "overall" else f"{group}-shot classes", ylim=(-3, 103))
        below.set(xlabel="confidence, %", xlim=(-2, 102))
        tidy(above)
        tidy(below)
    axes[0, 0].set_ylabel("accuracy, %")
    axes[1, 0].set_ylabel("test images, %")
    axes[1, 0].set_ylim(bottom=0)  # shared by the row; set after plotting
    figure.align_ylabels()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    legend_below(figure, handles, labels)
    return figure


def _scores(results: Mapping[str, Tables]) -> Figure:
    series = [
        (name, variant, rows)
        for name, tables in results.items()
        for variant, rows in tables["summary"].groupby("variant", sort=False)
    ]
    present = {group for _, _, rows in series for group in rows["group"]}
    groups = [g for g in ("overall", "many", "medium", "few") if g in present]
    figure = blank(10.5, 3.6)
    panels = figure.subplots(1, 3)
    colour = colours(results)
    width = 0.8 / len(series)
    for axes, (column, scale, title) in zip(
        panels,
        [("ece", 100, "ECE, %"), ("nll", 1, "NLL, nats"), ("brier", 1, "Brier score")],
        strict=True,
    ):
        for i, (name, variant, rows) in enumerate(series):
            values = rows.set_index("group")[column].reindex(groups)
            plain = variant == AS_TRAINED
            bars = axes.bar(
                np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width,
                scale * values, width=0.94 * width, color=colour[name] if plain else paper(),
                edgecolor=colour[name], hatch=None if plain else "///",
                label=name if plain else f"{name}, {variant}",
            )  # fmt: skip
            if len(series) <= 3:
                axes.bar_label(bars, fmt="%.1f" if scale == 100 else "%.2f", fontsize="x-small")
        axes.set(title=title, xticks=range(len(groups)), xticklabels=groups)
        tidy(axes, grid="y")
    handles, labels = panels[0].get_legend_handles_labels()
    legend_below(figure, handles, labels)
    return figure
