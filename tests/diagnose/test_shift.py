from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ltbench.diagnose.shift import (
    Shift,
    drawn_accuracy,
    shift_table,
    shifted_accuracy,
    shifted_prior,
)

COUNTS = (50, 200, 5)  # in training; class 1 is the most frequent
CORRECT, TOTAL = (6, 9, 1), (10, 10, 10)


def test_three_classes_by_hand():
    # ratio 4 over three classes: shares 4 : 2 : 1 in the order of training frequency 1, 0, 2
    forward = shifted_prior(COUNTS, "forward", 4)
    assert forward == pytest.approx([2 / 7, 4 / 7, 1 / 7])
    backward = shifted_prior(COUNTS, "backward", 4)
    assert backward == pytest.approx([2 / 7, 1 / 7, 4 / 7])
    assert shifted_accuracy(CORRECT, TOTAL, forward) == pytest.approx((1.2 + 3.6 + 0.1) / 7)
    assert shifted_accuracy(CORRECT, TOTAL, backward) == pytest.approx((1.2 + 0.9 + 0.4) / 7)


@pytest.mark.parametrize("direction", ["forward", "backward", "uniform"])
def test_ratio_one_is_balanced_accuracy(direction):
    prior = shifted_prior(COUNTS, direction, 1)
    uneven = (10, 30, 20)  # the shares are those of classes, whatever the test set holds
    expected = np.mean([6 / 10, 9 / 30, 1 / 20])
    assert shifted_accuracy(CORRECT, uneven, prior) == pytest.approx(expected)


def test_ties_go_by_number_and_classes_without_images_are_left_out():
    assert shifted_prior((7, 7), "forward", 3) == pytest.approx([0.75, 0.25])
    assert shifted_accuracy((1, 0), (2, 0), (0.75, 0.25)) == 0.5
    assert shifted_prior((7,), "backward", 3) == pytest.approx([1.0])


def test_a_drawn_subset_against_all_draws():
    rng = np.random.default_rng(0)
    correct, total = (3, 5, 1), (8, 8, 8)
    prior = shifted_prior(COUNTS, "forward", 4)  # takes 4, 8 and 2 images
    mean, deviation, size = drawn_accuracy(correct, total, prior)
    assert size == 4 + 8 + 2
    answers = [np.arange(8) < c for c in correct]
    draws = [
        sum(rng.permutation(a)[:n].sum() for a, n in zip(answers, (4, 8, 2), strict=True)) / size
        for _ in range(4000)
    ]
    assert mean == pytest.approx((4 * 3 / 8 + 5 + 2 / 8) / size)
    assert np.mean(draws) == pytest.approx(mean, abs=4 * deviation / 4000**0.5)
    assert np.std(draws) == pytest.approx(deviation, rel=0.06)


def test_a_record_is_enough(subject):
    alone = replace(subject, method=None, data=None)
    table = Shift(Shift.Options()).measure(alone)["shift"]
    assert table["direction"].tolist() == ["forward"] * 5 + ["uniform"] + ["backward"] * 5
    assert table["ratio"].tolist() == [50, 25, 10, 5, 2, 1, 2, 5, 10, 25, 50]
    metrics = subject.record.metrics
    assert table["accuracy"][5] == pytest.approx(metrics.mean_recall)
    evaluated = Shift(Shift.Options()).measure(replace(subject, record=None))["shift"]
    assert np.allclose(evaluated["accuracy"], table["accuracy"], atol=2 / sum(metrics.total))


def test_options_and_figures(subject):
    with pytest.raises(ValueError, match="above 1"):
        Shift.Options(ratios=(1.0, 5.0))
    diagnostic = Shift(Shift.Options(ratios=(5, 2, 5)))
    table = shift_table(subject.record.metrics, diagnostic.options.ratios)
    assert table["ratio"].tolist() == [5, 2, 1, 2, 5]
    figure = diagnostic.draw({"a": {"shift": table}, "b": {"shift": table}})["shift"]
    labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert labels == ["5", "2", "1", "2", "5"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["a", "b"]
