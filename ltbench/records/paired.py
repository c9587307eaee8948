"""Statistics of paired differences over a few seeds, and over the images of one test set.

A method's result varies with the seed, and three to five seeds are usual. Differences between two
methods with the same seed and images are compared with a paired t-test, whose interval has the
right coverage from two seeds on if the differences are about normal (Colas et al., How Many Random
Seeds?, arXiv:1806.08295). An exact sign-flip test cannot reach p < 0.05 with fewer than six seeds:
its smallest p is 2 / 2^n, 0.25 for three. A percentile bootstrap over three seeds covers the true
difference in about 75 % of cases instead of 95 %, so neither is used here.

That interval is for new seeds and the same test images. Where the predictions of both models are
known, a second one is for new test images too: the squares of its half width are added, that over
seeds and that over images (Howe, Approximate Confidence Limits on the Mean of X + Y, JASA 1974). It
needs no resampling and is never narrower than the first; it is wider than it need be (about 99 %
in simulations), since the noise of single images is part of both, while a hierarchical bootstrap
would be too narrow with three seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95  # of intervals
ALPHA = 0.05  # of tests, family-wise
POWER = 0.8  # of a test with the number of seeds that is proposed
MOST_SEEDS = 1000  # that are proposed


@dataclass(frozen=True)
class Estimate:
    """Mean of a few differences with its interval.

    Args:
        mean: of the differences.
        sd: their standard deviation; None for one.
        n: their number.
        low: lower end of the 95 % interval; None if there is none.
        high: upper end.
        p: of the test that the true mean is 0; None if there is no test.
    """

    mean: float
    sd: float | None
    n: int
    low: float | None = None
    high: float | None = None
    p: float | None = None


def paired_t(differences: Sequence[float]) -> Estimate:
    """Return the mean of paired differences, its t interval with n - 1 degrees of freedom, and p.

    One difference has no interval; neither have several that are all equal, which say nothing
    about their spread.

    Args:
        differences: one for each seed, at least one.
    """
    from scipy import special  # ten times as fast as scipy.stats, for thousands of classes

    values = np.asarray(differences, dtype=float)
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Estimate(mean, None, n)
    sd = float(values.std(ddof=1))
    if sd <= 1e-9 * max(1.0, float(np.abs(values).max())):
        return Estimate(mean, 0.0, n)
    error = sd / math.sqrt(n)
    half = float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * error
    p = float(2 * special.stdtr(n - 1, -abs(mean) / error))
    return Estimate(mean, sd, n, mean - half, mean + half, p)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return p values adjusted for several comparisons (Holm, 1979).

    Args:
        ps: unadjusted; None for a comparison without a test, which is not counted.
    """
    known = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        adjusted[i] = largest
    return adjusted


def seeds_needed(mean: float, sd: float, alpha: float = ALPHA) -> int | None:
    """Return how many seeds a paired t-test needs to find a difference with 80 % power.

    Args:
        mean: the true difference.
        sd: standard deviation of the differences over seeds.
        alpha: of the test, two-sided.

    Returns:
        A number of at least 2; None if it is above 1,000 or the difference is 0.
    """
    if mean == 0 or power(mean, sd, MOST_SEEDS, alpha) < POWER:
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(mean, sd, middle, alpha) >= POWER else (middle, high)
    return high


def power(mean: float, sd: float, n: int, alpha: float = ALPHA) -> float:
    """Return the probability that a two-sided paired t-test finds a difference.

    Args:
        mean: the true difference.
        sd: standard deviation of the differences, above 0.
        n: number of seeds, at least 2.
        alpha: of the test.
    """
    from scipy import stats

    shift = abs(mean) / sd * math.sqrt(n)
    if shift > 30:
        return 1.0
    limit = stats.t.ppf(1 - alpha / 2, n - 1)
    with np.errstate(all="ignore"):  # a tail that vanishes is nan
        tails = (stats.nct.sf(limit, n - 1, shift), stats.nct.cdf(-limit, n - 1, shift))
    return float(np.nan_to_num(tails).sum())


def image_variance(
    gains: np.ndarray, labels: np.ndarray, classes: Sequence[int], *, mean_recall: bool
) -> tuple[float, int]:
    """Return the variance of an accuracy difference over samples of test images.

    Args:
        gains: right minus right of the baseline for each image, in [-1, 1], averaged over seeds.
        labels: class of each image.
        classes: those that count.
        mean_recall: every class has the same weight, else every image.

    Returns:
        The variance, of a difference in [-1, 1], and the number of images.
    """
    chosen = np.isin(labels, classes)
    values, groups = gains[chosen].astype(float), labels[chosen]
    _, index, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if not len(values):
        return 0.0, 0
    means = np.bincount(index, values) / counts
    squares = np.bincount(index, (values - means[index]) ** 2)
    pooled = squares.sum() / max(1, len(values) - len(counts))  # for classes of one image
    spread = np.where(counts > 1, squares / np.maximum(counts - 1, 1), pooled)
    weights = np.full(len(counts), 1 / len(counts)) if mean_recall else counts / len(values)
    return float((weights**2 * spread / counts).sum()), len(values)


def with_images(seeds: Estimate, variance: float, images: int) -> tuple[float, float] | None:
    """Return the interval for new seeds and new test images, or for new images alone.

    Args:
        seeds: from ``paired_t``; of one seed, the interval is for these two models.
        variance: of the difference over samples of test images, in the square of its unit.
        images: number of test images.
    """
    from scipy import special

    if images < 2 or (seeds.n > 1 and seeds.low is None):
        return None
    over_seeds = 0.0 if seeds.low is None else seeds.mean - seeds.low
    over_images = float(special.stdtrit(images - 1, (1 + LEVEL) / 2)) * math.sqrt(variance)
    half = math.hypot(over_seeds, over_images)
    return (seeds.mean - half, seeds.mean + half) if half > 0 else None


def mcnemar(better: int, worse: int) -> float:
    """Return the p value of McNemar's exact test of two models on the same images.

    Args:
        better: images that only the first model gets right.
        worse: images that only the second one gets right.
    """
    from scipy import stats

    if better + worse == 0:
        return 1.0
    return float(stats.binomtest(better, better + worse).pvalue)
