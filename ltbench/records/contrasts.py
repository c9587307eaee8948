"""Paired differences between methods and a baseline, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from ltbench.records.paired import Estimate


@dataclass(frozen=True)
class Difference:
    """Difference of one value between a method and the baseline, in percentage points.

    Args:
        name: overall, many, medium, few, ece, or the number of a class.
        baseline: mean of the baseline over the shared seeds, in percent.
        mean: mean of the method, in percent.
        by_seed: difference of each seed.
        estimate: of the differences; with one seed and predictions, ``p`` is McNemar's.
        p_holm: ``p`` after Holm's correction for all methods compared; None without a test.
        images: 95 % interval for new test images too; None without predictions.
    """

    name: str
    baseline: float
    mean: float
    by_seed: tuple[float, ...]
    estimate: Estimate
    p_holm: float | None = None
    images: tuple[float, float] | None = None


@dataclass(frozen=True)
class Contrast:
    """Comparison of one method with the baseline.

    Args:
        label: of the method: its recipe's name, and values if several have that name.
        seeds: that both have.
        groups: differences overall, by shot group, and in ECE.
        classes: difference of each class that has test images.
    """

    label: str
    seeds: tuple[int, ...]
    groups: tuple[Difference, ...]
    classes: tuple[Difference, ...]


@dataclass(frozen=True)
class Contrasts:
    """Comparisons of methods with one baseline on the same images.

    Args:
        baseline: label of the baseline.
        dataset: name of the data set.
        class_counts: training images of each class.
        contrasts: one for each other method.
        notes: what a reader should know, one line each.
    """

    baseline: str
    dataset: str
    class_counts: tuple[int, ...]
    contrasts: tuple[Contrast, ...]
    notes: tuple[str, ...] = ()
