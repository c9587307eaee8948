"""Boxes, mixed losses and the curriculum of strengths: authors' values and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ltbench.config.optim import Schedule
from ltbench.data.samplers import class_probabilities
from ltbench.losses import (
    balanced_softmax_rows,
    consistency_rows,
    cumulative_rows,
    cut_box,
    generalised_weights,
    kept_share,
    mixup_rows,
    next_levels,
    paste,
    trial_counts,
    weighted_mixup_rows,
)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def close(found, expected, tolerance):
    torch.testing.assert_close(found, double(expected), rtol=0, atol=tolerance)


def test_boxes_rounded_up(vector):
    v = vector("glmc_boxes")
    found = [
        cut_box(height, width, lam, (row, column), "up")
        for height, width, lam, row, column in v["inputs"]["cases"]
    ]
    assert [list(box) for box in found] == v["expected"]


def test_boxes_rounded_down(vector):
    v = vector("cmo_boxes")
    for case, box, lam in zip(
        v["inputs"]["cases"], v["expected"]["boxes"], v["expected"]["lam"], strict=True
    ):
        height, width, share, row, column = case
        found = cut_box(height, width, share, (row, column))
        assert list(found) == box
        assert kept_share(found, height, width) == pytest.approx(lam, abs=v["tolerance"])


def test_boxes_are_never_outside_and_what_cannot_be_cut_is_an_error():
    for lam in (0.0, 1e-12, 0.5, 1.0):
        for rounding in ("down", "up"):
            for centre in ((0, 0), (6, 8), (3, 4)):
                top, left, bottom, right = cut_box(7, 9, lam, centre, rounding)
                assert 0 <= top <= bottom <= 7
                assert 0 <= left <= right <= 9
    assert cut_box(8, 8, 1.0, (3, 3), "up") == (3, 3, 3, 3)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        cut_box(8, 8, 1.5, (0, 0))
    with pytest.raises(ValueError, match="down or up"):
        cut_box(8, 8, 0.5, (0, 0), "nearest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        weighted_mixup_rows(
            torch.zeros(1, 2), torch.tensor([0]), torch.tensor([1]), -0.1, torch.ones(2)
        )


def test_step_of_cmo(vector):
    v = vector("cmo_step")
    i, p, wanted = v["inputs"], v["params"], v["expected"]
    assert p["draw"] < p["prob"]
    background, pasted = double(i["background"]), double(i["pasted"])
    height, width = background.shape[2:]
    box = cut_box(height, width, p["lam"], tuple(p["centre"]))
    mixed, lam = paste(background, pasted, box), kept_share(box, height, width)
    close(mixed, wanted["mixed"], v["tolerance"])
    weight = double(i["weight"]).requires_grad_()
    logits = mixed.flatten(1) @ weight
    first, second = (
        balanced_softmax_rows(logits, torch.tensor(labels), i["counts"]).mean()
        for labels in (i["labels"], i["pasted_labels"])
    )
    loss = lam * first + (1 - lam) * second
    loss.backward()
    close(loss.detach(), wanted["loss"], v["tolerance"])
    close(weight.grad, wanted["gradient"], v["tolerance"])


def test_weights_of_pasted_images(vector):
    v = vector("cmo_sampler_weights")
    labels, counts = np.array(v["inputs"]["labels"]), v["inputs"]["counts"]
    for a, weights in zip(v["params"]["alpha"], v["expected"], strict=True):
        of_classes = class_probabilities(np.array(counts), "power", exponent=1 - a)
        chance = (of_classes / counts)[labels]
        np.testing.assert_allclose(chance, np.array(weights) / sum(weights), atol=v["tolerance"])


def test_class_weights_of_glmc(vector):
    v = vector("glmc_class_weights")
    for r, weights in zip(v["params"]["k"], v["expected"], strict=True):
        close(generalised_weights(v["inputs"]["counts"], r), weights, v["tolerance"])


def test_step_of_glmc(vector):
    v = vector("glmc_step")
    i, p = v["inputs"], v["params"]
    labels, partner = torch.tensor(i["labels"]), torch.tensor(i["other_labels"])
    first, second, other, cut = (
        double(i[name]) for name in ("view1", "view2", "other_view1", "other_view2")
    )
    box = cut_box(*second.shape[2:], p["lam"], tuple(p["centre"]), "up")
    weights = generalised_weights(i["counts"], p["label_weighting"])
    for wanted in v["expected"]:
        close(p["lam"] * first + (1 - p["lam"]) * other, wanted["mixup"], v["tolerance"])
        close(paste(second, cut, box), wanted["cutmix"], v["tolerance"])
        leaves = {
            name: {key: double(values).requires_grad_() for key, values in i[name].items()}
            for name in ("mixup_pass", "cutmix_pass")
        }
        mix, box_pass = leaves["mixup_pass"], leaves["cutmix_pass"]
        alpha = 1 - (wanted["epoch"] / p["epochs"]) ** 2
        rows = [
            cumulative_rows(
                one["logits"], one["logits_balanced"], labels, partner, p["lam"], weights, alpha
            )
            for one in (mix, box_pass)
        ]
        agreement = consistency_rows(mix["p"], box_pass["z"]) + consistency_rows(
            box_pass["p"], mix["z"]
        )
        loss = (rows[0] + rows[1] + p["contrast_weight"] * agreement).mean()
        loss.backward()
        close(loss.detach(), wanted["loss"], v["tolerance"])
        found = [
            one[key].grad if one[key].grad is not None else torch.zeros_like(one[key])
            for one in (mix, box_pass)
            for key in ("logits", "logits_balanced", "z", "p")
        ]
        for gradient, expected in zip(found, wanted["gradients"], strict=True):
            close(gradient, expected, v["tolerance"])


def test_equal_weights_are_plain_mixup():
    logits, labels, partner = torch.randn(6, 4), torch.arange(6) % 4, torch.arange(6) % 3
    found = weighted_mixup_rows(logits, labels, partner, 0.3, torch.ones(4))
    torch.testing.assert_close(found, mixup_rows(logits, labels, partner, 0.3))


def test_rates_of_glmc_on_large_sets(vector):
    v = vector("lr_glmc_large")
    p = v["params"]
    schedule = Schedule(name="cosine", warmup=p["warmup"], warmup_extra=1, shift=1, tail=1)
    late = schedule.model_copy(update={"late": 1})
    for e, rate in zip(v["inputs"]["e"], v["expected"], strict=True):
        assert p["lr"] * schedule.factor(e, p["epochs"]) == pytest.approx(rate, abs=v["tolerance"])
        assert late.factor(e + 1, p["epochs"]) == schedule.factor(e, p["epochs"])  # set after e
    assert late.factor(0, p["epochs"]) == 1.0


def test_rates_of_cmo_over_400_epochs(vector):
    v = vector("lr_cmo_cifar_400")
    schedule = Schedule(
        name="multistep", warmup=10, warmup_extra=1, milestones=(321, 361), gamma=0.1
    )
    for e, rate in zip(v["inputs"]["epochs"], v["expected"], strict=True):
        assert v["params"]["lr"] * schedule.factor(e, 400) == pytest.approx(rate, abs=1e-8)


def test_levels(vector):
    v = vector("cuda_levels")
    i, p = v["inputs"], v["params"]

    def table(rows):
        return torch.tensor([row + [0] * (p["max_level"] + 1 - len(row)) for row in rows])

    levels, trials = torch.tensor(i["levels"]), table(i["trials"])
    assert torch.equal(trial_counts(levels, p["max_level"]), trials)
    found = next_levels(levels, table(i["correct"]), trials, p["accept"], p["max_level"])
    assert found.tolist() == v["expected"]


@pytest.mark.parametrize("accept", [0.0, 0.4, 0.6, 0.7])
def test_a_share_that_is_just_reached_is_not_enough(accept):
    for s in range(11):
        trials = trial_counts(torch.tensor([s]))
        need = torch.floor(trials * accept + 1e-9).long()
        enough = need + (trials > 0)
        assert next_levels(torch.tensor([s]), enough, trials, accept).item() == min(10, s + 1)
        enough[0, s] -= 1
        assert next_levels(torch.tensor([s]), enough, trials, accept).item() == max(0, s - 1)


def test_no_cosine_of_a_zero_vector_is_not_a_number():
    rows = consistency_rows(torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3))
    assert torch.equal(rows, torch.zeros(2))
    assert math.isfinite(rows.sum().item())
