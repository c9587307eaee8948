from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from ltbench.data.shots import shot_groups
from ltbench.diagnose.calibration import Calibration, fit_temperature, proper_scores
from ltbench.errors import UserError
from ltbench.evaluation.evaluate import evaluate_split
from ltbench.evaluation.metrics import BINS


def brute_force_ece(confidence: np.ndarray, right: np.ndarray) -> float:
    """15 bins (lo, hi], straight from the definition."""
    total = 0.0
    for b in range(BINS):
        inside = (confidence > b / BINS) & (confidence <= (b + 1) / BINS)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def test_ece_is_that_of_the_evaluation_and_of_the_definition(subject):
    tables = Calibration(Calibration.Options()).measure(subject)
    summary = tables["summary"].set_index("group")
    info = subject.data.info
    metrics = evaluate_split(
        subject.method, subject.data.test, info.class_counts, device=subject.device
    )
    assert summary.loc["overall", "ece"] == metrics.ece
    assert summary.loc["overall", "accuracy"] == metrics.top1
    bins = tables["bins"][tables["bins"]["group"] == "overall"]
    assert tuple(bins["images"]) == metrics.bin_count
    assert tuple(bins["correct"]) == metrics.bin_correct

    order = np.arange(len(subject.data.test))
    images = subject.data.test.load(order, key=None, positions=order)[0]
    with torch.no_grad():
        p, predicted = subject.method(images).double().softmax(dim=1).max(dim=1)
    labels = subject.data.test.labels
    for group, classes in shot_groups(info.class_counts).items():
        mine = np.isin(labels, classes)
        if mine.any():
            right = (predicted.numpy() == labels)[mine]
            found = summary.loc[group, "ece"]
            assert found == pytest.approx(brute_force_ece(p.numpy()[mine], right), abs=1e-6)
            assert summary.loc[group, "accuracy"] == pytest.approx(right.mean())


def test_likelihood_and_brier_by_hand():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))
    nll, brier = proper_scores(logits, torch.tensor([1, 2]))
    assert nll.tolist() == pytest.approx([-math.log(0.3), -math.log(0.8)], abs=1e-6)
    by_hand = [0.5**2 + 0.7**2 + 0.2**2, 0.1**2 + 0.1**2 + 0.2**2]
    assert brier.tolist() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("scale", [2.5, 0.4])
def test_temperature_that_was_put_in_is_found(scale):
    # Labels occur exactly as often as softmax(logits) says, so that T is the scale.
    logits = torch.log(torch.tensor([[3.0, 1.0], [1.0, 7.0]]))
    rows = [(0, 0, 3), (0, 1, 1), (1, 0, 1), (1, 1, 7)]
    z = torch.cat([logits[i].repeat(n, 1) for i, _, n in rows]) * scale
    y = torch.cat([torch.full((n,), k) for _, k, n in rows])
    assert fit_temperature(z, y) == pytest.approx(scale, rel=1e-4)


def test_temperature_of_what_is_always_right_is_the_coolest():
    assert fit_temperature(torch.eye(3), torch.arange(3)) == pytest.approx(0.05)


def test_a_fitted_temperature_changes_confidence_only(subject):
    options = Calibration.Options(temperature="train", temperature_images=100)
    summary = Calibration(options).measure(subject)["summary"]
    plain, cooled = (rows.set_index("group") for _, rows in summary.groupby("variant"))
    assert (plain["accuracy"] == cooled["accuracy"]).all()
    assert cooled["temperature"].nunique() == 1
    assert cooled.loc["overall", "temperature"] != 1
    assert plain.loc["overall", "confidence"] != cooled.loc["overall", "confidence"]
    with pytest.raises(UserError, match="needs validation images"):
        Calibration(Calibration.Options(temperature="val")).measure(subject)


def test_measuring_twice_gives_the_same_and_leaves_the_model_alone(subject):
    subject.method.train()
    before = {k: v.clone() for k, v in subject.method.state_dict().items()}
    state = torch.get_rng_state()
    diagnostic = Calibration(Calibration.Options())
    first, second = diagnostic.measure(subject), diagnostic.measure(subject)
    for name, table in first.items():
        pd.testing.assert_frame_equal(table, second[name], check_exact=True)
    assert subject.method.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in subject.method.state_dict().items())
    subject.method.eval()


def test_figures_of_one_and_of_two(subject):
    diagnostic = Calibration(Calibration.Options())
    tables = diagnostic.measure(subject)
    for results in ({"a": tables}, {"a": tables, "b": tables}):
        figures = diagnostic.draw(results)
        assert set(figures) == {"reliability", "scores"}
        (legend,) = figures["reliability"].legends
        assert [t.get_text() for t in legend.get_texts()] == list(results)
        low = figures["reliability"].axes[-1]
        assert low.get_xlabel() == "confidence, %"
