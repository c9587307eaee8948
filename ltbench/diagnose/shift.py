from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from ltbench.config import schema
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.sentences import number, percent
from ltbench.evaluation.metrics import Metrics
from ltbench.plotting import GREY, blank, colours, markers, shared_legend, tidy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Direction = Literal["forward", "uniform", "backward"]


class Shift(Diagnostic):
    """Accuracy on long-tailed test priors, in or against the direction of the training prior."""

    title = "Shifted test priors"
    shown = (
        "Accuracy on long-tailed test sets: forward, with the class order of the training set, "
        "uniform, and backward, with the reversed order. The number is the ratio of the most to "
        "the least frequent class."
    )
    computed = (
        "Computed from the correct and total test images of each class; the model is not run "
        "again. Classes are sorted by training images (ties by label); class r of C has a share "
        "proportional to ratio^(-r/(C-1)) forward and ratio^(-(C-1-r)/(C-1)) backward, as in LADE "
        "and SADE. Accuracy is the mean recall weighted by these shares, the exact expectation. "
        "Those papers draw a subset with integer numbers of images once: the table also has the "
        "mean (drawn) and the standard deviation (drawn_sd) over such draws, the sampling noise "
        "that the exact value does not have. The model does not know the test prior: gains of LADE "
        "and SADE by adaptation to it are not included."
    )
    see = (
        "A steep decrease to the right means that the model relies on the frequent classes; a flat "
        "line means that recall does not depend on the frequency of a class."
    )

    captions: ClassVar[dict[str, str]] = {
        "shift": "Expected accuracy by the class prior of the test set: as in training on the "
        "left, uniform at the dotted line, reversed on the right. The band is ± one standard "
        "deviation over randomly drawn subsets.",
    }
    headings: ClassVar[dict[str, str]] = {"shift": "Accuracy by test prior"}

    class Options(schema.Config):
        """Options of the shifted priors."""

        ratios: tuple[float, ...] = Field((2, 5, 10, 25, 50), min_length=1)
        """Ratios of the most to the least frequent class of the test sets, above 1."""

        @field_validator("ratios")
        @classmethod
        def _above_one(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
            if min(ratios) <= 1:
                raise ValueError(f"every ratio must be above 1, found {min(ratios):g}")
            return tuple(sorted(set(ratios)))

    options: Options

    def measure(self, subject: Subject) -> Tables:
        """Return the table ``shift``, from the record or, without one, from an evaluation."""
        if subject.record is not None:
            metrics = subject.record.metrics
        else:
            from ltbench.evaluation.evaluate import evaluate_split

            metrics = evaluate_split(
                subject.method,
                subject.data.test,
                subject.data.info.class_counts,
                device=subject.device,
                rule=subject.recipe.shot_rule,
                workers=subject.recipe.run.workers,
            )
        return {"shift": shift_table(metrics, self.options.ratios)}

    def images(self, subject: Subject) -> int:
        """Return 0 with a record, whose counts are enough."""
        return 0 if subject.record is not None else super().images(subject)

    def describe(self, tables: Tables) -> list[str]:
        """Say how accuracy changes from the prior of training to its reverse."""
        table = tables["shift"]
        first, last = table.iloc[0], table.iloc[-1]
        noise = 1.96 * float(np.hypot(first["drawn_sd"], last["drawn_sd"]))
        ends = [percent(row["accuracy"], row["drawn_sd"]) for row in (first, last)]
        gap = last["accuracy"] - first["accuracy"]
        if abs(gap) <= noise:
            verb = "does not change beyond the noise"
        else:
            verb = "falls" if gap < 0 else "rises"
        return [
            f"accuracy {verb} from test sets as long-tailed as training to reversed ones (ratio "
            f"{number(first['ratio'])}): {ends[0]}, then {ends[1]} (± standard deviation of "
            "drawn subsets)."
        ]

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return the figure ``shift``."""
        return {"shift": _picture({name: tables["shift"] for name, tables in results.items()})}


def shifted_prior(
    class_counts: Sequence[int], direction: Direction, ratio: float = 1.0
) -> np.ndarray:
    """Return the class shares of a shifted test set, with sum 1 [C].

    Reference: Hong et al., Disentangling Label Distribution for Long-tailed Visual Recognition,
        CVPR 2021, arXiv:2012.00321 (LADE); Zhang et al., Self-Supervised Aggregation of Diverse
        Experts for Test-Agnostic Long-Tailed Recognition, NeurIPS 2022, arXiv:2107.09249 (SADE).
    Departures: shares instead of integer numbers of images; LADE's code for CIFAR sorts by label,
        which is the order by training images there.

    Args:
        class_counts: training images of each class [C].
        direction: ``"forward"`` (as in training), ``"uniform"`` or ``"backward"``.
        ratio: largest over smallest share, >= 1; ignored if uniform.
    """
    counts = np.asarray(class_counts)
    rank = np.empty(len(counts), dtype=int)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    last = max(len(counts) - 1, 1)
    exponent = {"forward": rank, "uniform": 0 * rank, "backward": last - rank}[direction] / last
    share = float(ratio) ** -exponent
    prior: np.ndarray = share / share.sum()
    return prior


def shifted_accuracy(
    correct: Sequence[int], total: Sequence[int], prior: Sequence[float] | np.ndarray
) -> float:
    """Return the expected accuracy on test images with the class prior ``prior``.

    Classes without test images are ignored, and the other shares are renormalised.

    Args:
        correct: correctly classified test images of each class [C].
        total: test images of each class [C].
        prior: share of each class [C].
    """
    right, of, share = (np.asarray(x, dtype=float) for x in (correct, total, prior))
    there = of > 0
    return float(np.sum(share[there] * right[there] / of[there]) / share[there].sum())


def drawn_accuracy(
    correct: Sequence[int], total: Sequence[int], prior: Sequence[float] | np.ndarray
) -> tuple[float, float, int]:
    """Return mean and standard deviation of the accuracy on a random subset, and its size.

    The subset has floor(n share_k / largest share) images of class k, drawn without replacement,
    where n is the smallest number of images of a class. Both are exact, over all draws.

    Args:
        correct: correctly classified test images of each class [C].
        total: test images of each class [C].
        prior: share of each class [C].
    """
    right, of, share = (np.asarray(x, dtype=float) for x in (correct, total, prior))
    there = of > 0
    right, of, share = right[there], of[there], share[there]
    taken = np.floor(of.min() * share / share.max() + 1e-9)
    recall = right / of
    rest = (of - taken) / np.maximum(of - 1, 1)  # of a draw without replacement
    size = taken.sum()
    mean = float((taken * recall).sum() / size)
    deviation = float(np.sqrt((taken * recall * (1 - recall) * rest).sum()) / size)
    return mean, deviation, int(size)


def shift_table(metrics: Metrics, ratios: Sequence[float]) -> pd.DataFrame:
    """Return one row per test prior, from forward over uniform to backward.

    Args:
        metrics: metrics of a record or an evaluation.
        ratios: ratios of the largest to the smallest class of the test sets.
    """
    import pandas as pd

    cases: list[tuple[Direction, float]] = [
        *(("forward", float(r)) for r in sorted(ratios, reverse=True)),
        ("uniform", 1.0),
        *(("backward", float(r)) for r in sorted(ratios)),
    ]
    rows = []
    for direction, ratio in cases:
        prior = shifted_prior(metrics.class_counts, direction, ratio)
        drawn, deviation, images = drawn_accuracy(metrics.correct, metrics.total, prior)
        rows.append(
            {
                "direction": direction,
                "ratio": ratio,
                "accuracy": shifted_accuracy(metrics.correct, metrics.total, prior),
                "drawn": drawn,
                "drawn_sd": deviation,
                "drawn_images": images,
            }
        )
    return pd.DataFrame(rows)


def _picture(results: Mapping[str, pd.DataFrame]) -> Figure:
    first = next(iter(results.values()))
    figure = blank(8, 4.2)
    axes = figure.subplots()
    colour, marker = colours(results), markers(results)
    x = np.arange(len(first))
    for name, table in results.items():
        y = 100 * table["accuracy"]
        axes.plot(x, y, color=colour[name], marker=marker[name], markersize=5, label=name)
        low, high = (y + sign * 100 * table["drawn_sd"] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=colour[name], alpha=0.15, linewidth=0)
    axes.axvline(int((first["direction"] == "uniform").argmax()), color=GREY, linestyle=":", lw=1)
    names = ["1" if d == "uniform" else f"{r:g}" for d, r in
             zip(first["direction"], first["ratio"], strict=True)]  # fmt: skip
    axes.set(xticks=x, xticklabels=names, ylabel="expected accuracy, %")
    axes.set_xlabel("forward  ←  ratio of the test set's largest to smallest class  →  backward")
    tidy(axes)
    shared_legend(figure)
    return figure
