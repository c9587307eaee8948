"""Intervals and tests for a few paired differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from ltbench.records.paired import (
    Estimate,
    holm,
    image_variance,
    mcnemar,
    paired_t,
    power,
    seeds_needed,
    with_images,
)


def test_interval_and_p_are_those_of_a_paired_t_test() -> None:
    ours, theirs = np.array([22.1, 23.0, 21.6]), np.array([21.0, 21.5, 22.2])
    found = paired_t(list(ours - theirs))
    known = stats.ttest_rel(ours, theirs)
    low, high = known.confidence_interval(0.95)
    assert found.p == pytest.approx(known.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)
    assert (found.mean, found.sd, found.n) == pytest.approx((2 / 3, 1.1150486, 3), rel=1e-6)


def test_the_interval_excludes_zero_exactly_if_p_is_below_its_level() -> None:
    random = np.random.default_rng(1)
    seen = set()
    for _ in range(300):
        found = paired_t(random.normal(1.5, 1.0, size=random.integers(2, 6)))
        assert found.p is not None
        assert found.low is not None
        assert found.high is not None
        assert (found.low > 0 or found.high < 0) == (found.p < 0.05)
        seen.add(found.p < 0.05)
    assert seen == {True, False}


def test_one_seed_and_equal_differences_have_no_interval() -> None:
    assert paired_t([1.25]) == Estimate(1.25, None, 1)
    assert paired_t([0.5, 0.5, 0.5]) == Estimate(0.5, 0.0, 3)
    assert paired_t([0.1 + 0.2, 0.3, 0.3]).p is None  # equal but for rounding


def test_holm_is_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.02, None, 0.04]) == pytest.approx([0.04, None, 0.04])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_holm_never_rejects_what_its_steps_keep() -> None:
    random = np.random.default_rng(2)
    for _ in range(200):
        ps = list(random.beta(0.5, 3, size=4))
        rejected, order = set(), np.argsort(ps)
        for rank, i in enumerate(order):
            if ps[i] * (4 - rank) >= 0.05:
                break
            rejected.add(int(i))
        adjusted = holm(ps)
        assert {i for i, p in enumerate(adjusted) if p is not None and p < 0.05} == rejected


def test_the_number_of_seeds_is_the_first_with_enough_power() -> None:
    n = seeds_needed(0.68, 1.10)
    assert n == 23
    assert power(0.68, 1.10, n) >= 0.8 > power(0.68, 1.10, n - 1)
    assert seeds_needed(-0.68, 1.10) == n
    assert seeds_needed(100.0, 0.1) == 2
    assert seeds_needed(0.001, 1.0) is None
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(0.68, 1.10, alpha=0.01) > n
    assert all(0.9 < power(1.83, 4.48, n) <= 1 for n in (100, 500, 1000))  # no nan of scipy's


def test_power_is_the_share_of_tests_that_find_the_difference() -> None:
    random = np.random.default_rng(3)
    draws = random.normal(1.0, 1.0, size=(4000, 5))
    found = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert power(1.0, 1.0, 5) == pytest.approx(found.mean(), abs=0.025)


def test_mcnemar_is_the_sum_over_all_ways_to_split_the_differing_images() -> None:
    splits = [sum(signs) for signs in itertools.product((0, 1), repeat=7)]
    assert mcnemar(6, 1) == pytest.approx(np.mean([abs(s - 3.5) >= 2.5 for s in splits]))
    assert mcnemar(1, 6) == mcnemar(6, 1)
    assert mcnemar(0, 0) == 1.0


def test_the_variance_over_images_is_that_of_a_stratified_mean() -> None:
    gains = np.array([1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
    one, two = gains[:4].var(ddof=1) / 4, gains[4:7].var(ddof=1) / 3
    recall, count = image_variance(gains, labels, [0, 1], mean_recall=True)
    assert (recall, count) == pytest.approx(((one + two) / 4, 7))
    overall, _ = image_variance(gains, labels, [0, 1], mean_recall=False)
    assert overall == pytest.approx((4 / 7) ** 2 * one + (3 / 7) ** 2 * two)
    assert image_variance(gains, labels, [5], mean_recall=True) == (0.0, 0)


def test_images_widen_the_interval_over_seeds() -> None:
    seeds = paired_t([0.5, 1.0, 1.2])
    assert seeds.low is not None
    assert seeds.high is not None
    same = with_images(seeds, 0.0, 1000)
    assert same == pytest.approx((seeds.low, seeds.high))
    wide = with_images(seeds, 4.0, 1000)
    assert wide is not None
    over_images = 2 * 1.9623 * 2.0
    expected = math.hypot(seeds.high - seeds.low, over_images)
    assert wide[1] - wide[0] == pytest.approx(expected, rel=1e-4)
    alone = with_images(Estimate(1.0, None, 1), 4.0, 1000)
    assert alone == pytest.approx((1 - 1.9623 * 2, 1 + 1.9623 * 2), rel=1e-4)
    assert with_images(Estimate(0.0, None, 1), 0.0, 1000) is None


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 5])
def test_intervals_cover_the_true_difference_in_95_percent_of_cases(n: int) -> None:
    """Simulated runs of two methods on images drawn anew; bounds are 4 standard errors wide."""
    random = np.random.default_rng(n)
    trials, classes, each, true = 2000, 5, 40, 0.05
    labels = np.repeat(np.arange(classes), each)
    difficulty = random.normal(size=(trials, classes * each))
    covered = {"seeds": 0, "images": 0, "bootstrap": 0}
    for i in range(trials):
        # Probability of being right: of the image, of the seed's model; the mean gain is `true`.
        base = 0.6 + 0.1 * np.tanh(difficulty[i])
        own = 0.1 * random.choice([-1.0, 1.0], size=classes * each)  # who gains, who loses
        level = random.normal(0, 0.02, size=(n, 1))
        one = random.random((n, len(labels))) < base
        other = random.random((n, len(labels))) < base + true + own + level
        gains = other.astype(float) - one
        differences = gains.mean(axis=1)
        here = true + own.mean()  # expected over seeds, on these images
        found = paired_t(list(differences))
        if found.low is None or found.high is None:
            continue
        covered["seeds"] += found.low <= here <= found.high
        variance, count = image_variance(
            gains.mean(axis=0), labels, range(classes), mean_recall=False
        )
        both = with_images(found, variance, count)
        assert both is not None
        covered["images"] += both[0] <= true <= both[1]
        means = differences[random.integers(0, n, size=(400, n))].mean(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        covered["bootstrap"] += low <= here <= high
    share = {name: count / trials for name, count in covered.items()}
    assert share["seeds"] == pytest.approx(0.95, abs=0.02)
    assert 0.94 <= share["images"] <= 0.998  # it counts the noise within seeds twice
    assert share["bootstrap"] < 0.9  # why it is not used
