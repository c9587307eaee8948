from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ltbench.diagnose.base import Subject
from ltbench.diagnose.norms import Norms, classifier_of, geometry
from ltbench.methods.disalign import CalibratedHead
from ltbench.models.branches import ExpertHead
from ltbench.models.heads import CosineHead, LinearHead, ScaledHead, ShiftedHead


def simplex(classes: int, width: int) -> np.ndarray:
    """The vertices of a simplex equiangular tight frame [C, D]."""
    frame = np.sqrt(classes / (classes - 1)) * (np.eye(classes) - 1 / classes)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(width, classes)))[0]
    return frame @ basis.T


def test_a_simplex_without_spread_is_full_collapse():
    means, labels = simplex(5, 12), np.repeat(np.arange(5), [9, 5, 4, 3, 2])
    shape = geometry(2 * means[labels] + 3, labels)
    found = shape.collapse(np.ones(5, bool), 7 * means)
    for name in ("nc1", "equinorm", "equiangle", "duality"):
        assert found[name] == pytest.approx(0, abs=1e-12), name
    assert found["cosine"] == pytest.approx(-1 / 4)
    np.testing.assert_allclose(shape.mean_norms, 2)
    np.testing.assert_allclose(shape.spreads, 0, atol=1e-12)
    two = shape.collapse(np.array([True, False, False, True, False]), 7 * means)
    assert two["equiangle"] == pytest.approx(0, abs=1e-12)
    assert two["duality"] == pytest.approx(0, abs=1e-12)


def test_nc1_is_papyans_trace():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 30)
    features = rng.normal(size=(120, 10)) + 3 * rng.normal(size=(4, 10))[labels]
    shape = geometry(features, labels)
    means = np.stack([features[labels == k].mean(axis=0) for k in range(4)])
    between = np.cov(means.T, bias=True)
    within = np.mean([np.cov(features[labels == k].T) for k in range(4)], axis=0)
    expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 4
    assert shape.collapse(np.ones(4, bool))["nc1"] == pytest.approx(expected)
    wanted = [np.sqrt(np.trace(np.cov(features[labels == k].T))) for k in range(4)]
    np.testing.assert_allclose(shape.spreads, wanted)


def test_departures_from_collapse_are_seen():
    """Two means on a line: one twice as far, in the opposite direction of its classifier."""
    features = np.array([[3.0, 0], [3, 0], [-1, 1], [-1, -1], [-2, 0]])
    shape = geometry(features, np.array([0, 0, 1, 1, 2]))
    assert np.isnan(shape.spreads[2]), "one image has no spread"
    assert shape.spreads[1] == pytest.approx(np.sqrt(2))
    np.testing.assert_allclose(shape.means[:, 0], [3, -1, -2])
    found = shape.collapse(np.ones(3, bool), -features[[0, 2, 4]] * [1, 0])
    assert found["duality"] == pytest.approx(4)
    assert found["equinorm"] == pytest.approx(np.std([3, 1, 2]) / 2)
    assert found["equiangle"] == pytest.approx(np.mean([0.5, 0.5, 1.5]))
    alone = shape.collapse(np.array([False, False, True]))
    assert np.isnan(alone["equiangle"])
    assert np.isnan(alone["nc1"])
    assert np.isnan(alone["duality"])


class Model(nn.Module):
    """As much of a method as the classifier's measures look at."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head


def found_for(subject: Subject, head: nn.Module):
    features = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    logits = head(features).detach() if not isinstance(head, ExpertHead) else torch.zeros(7, 3)
    one = replace(subject, method=Model(head))
    return classifier_of(one, features.double().numpy(), logits.double().numpy())


def test_weights_are_those_that_act(subject: Subject):
    linear = LinearHead(4, 3)
    head = ShiftedHead(ScaledHead(linear, 3), torch.tensor([1.0, 2.0, 3.0]))
    scale = torch.tensor([0.5, 2.0, 3.0])
    head.head.scale.data = scale
    found = found_for(subject, head)
    expected = scale[:, None] * linear.weight.detach()
    np.testing.assert_allclose(found.weight, expected, atol=1e-5)
    bias = scale * linear.bias.detach() + torch.tensor([1.0, 2.0, 3.0])
    np.testing.assert_allclose(found.bias, bias, atol=1e-5)
    assert found.described == "affine map from features to logits"


def test_other_classifiers_are_named(subject: Subject):
    cosine = CosineHead(4, 3)
    found = found_for(subject, cosine)
    np.testing.assert_allclose(found.weight, cosine.weight.detach().T)
    np.testing.assert_allclose(found.norms(), 1, rtol=1e-5)
    assert found.bias is None
    assert found.described == "stored weight of a cosine classifier"
    calibrated = CalibratedHead(LinearHead(4, 3), 4, 3)
    found = found_for(subject, calibrated)
    np.testing.assert_allclose(found.weight, calibrated.head.weight.detach())
    assert found.described == "stored weight, under a calibration"
    found = found_for(subject, ExpertHead(2, 2, 3, 30.0))
    assert found.weight is None
    assert found.described == "ExpertHead has no weight with one row per class"


def test_tables_of_a_model(subject: Subject):
    before = {k: v.clone() for k, v in subject.method.state_dict().items()}
    tables = Norms(Norms.Options(each=5, classes=6)).measure(subject)
    classes = tables["classes"]
    assert len(classes) == 10
    assert classes["images"].notna().sum() == 6
    expected = subject.method.head.weight.detach().norm(dim=1).numpy()
    np.testing.assert_allclose(classes["weight_norm"], expected, rtol=1e-4)
    np.testing.assert_allclose(classes["bias"], subject.method.head.bias.detach(), atol=1e-5)
    assert tables["collapse"]["group"].iloc[0] == "all"
    assert tables["collapse"]["classes"].iloc[0] == 6
    for key, value in subject.method.state_dict().items():
        assert torch.equal(value, before[key]), key
    again = Norms(Norms.Options(each=5, classes=6)).measure(subject)
    assert all(tables[name].equals(again[name]) for name in tables)
    figures = Norms(Norms.Options()).draw({"a": tables, "b": again})
    assert len(figures["classes"].axes) == 4
    assert len(figures["collapse"].axes[0].patches) == 2 * len(tables["collapse"])
