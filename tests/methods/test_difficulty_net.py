"""Difficulty-Net: values of the authors' code, and the exact gradient through the virtual step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch.func import functional_call

from ltbench.losses import cross_entropy_rows
from ltbench.losses.adaptive import difficulty_target, difficulty_weights, driver_loss
from ltbench.methods.base import Batch

t = torch.tensor


def close(actual, expected, tolerance):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=tolerance)


def test_forward_vector(vector):
    v = vector("difficulty_net_forward")
    i = {k: t(x, dtype=torch.float64) for k, x in v["inputs"].items() if k != "labels"}
    labels, accuracy = t(v["inputs"]["labels"]), i["class_accuracy"]
    x = accuracy
    for n in (1, 2):
        x = (x @ i[f"W{n}"].T + i[f"b{n}"]).relu()
    difficulty = (x @ i["W3"].T + i["b3"]).sigmoid()
    weights = difficulty_weights(difficulty)
    expected = v["expected"]
    close(difficulty, expected["difficulty"], v["tolerance"])
    close(weights, expected["class_weight"], v["tolerance"])
    close(driver_loss(difficulty, accuracy), expected["driver"], v["tolerance"])
    rows = cross_entropy_rows(i["logits"], labels)
    close((weights[labels] * rows).mean(), expected["loss"], v["tolerance"])


def test_driver_in_the_first_epoch_vector(vector):
    v = vector("difficulty_driver_first_epoch")
    accuracy = t(v["inputs"]["class_accuracy"], dtype=torch.float64)
    difficulty = t(v["inputs"]["difficulty"], dtype=torch.float64)
    close(difficulty_target(accuracy), v["expected"]["target"], v["tolerance"])
    close(driver_loss(difficulty, accuracy), v["expected"]["driver"], v["tolerance"])


@pytest.mark.parametrize("norm", [True, False])
def test_slopes_are_those_of_the_whole_graph(norm):
    """Against a virtual step whose graph is kept."""
    method = toys.method("difficulty_net", norm=norm).double()
    batch = toys.dressed(toys.batch(12), method)
    double = Batch((batch.views[0].double(),), batch.labels, batch.index)
    meta = Batch((batch.streams["meta"].views[0].double(),), batch.labels, batch.index)
    batch = Batch(double.views, batch.labels, batch.index, streams={"meta": meta})
    for p in method.net.parameters():
        p.requires_grad_(False)
    weights = t([0.4, 1.3, 0.8, 1.5], dtype=torch.float64, requires_grad=True)
    trained = {n: p for n, p in method.named_parameters() if p.requires_grad}
    rows = cross_entropy_rows(method.predict(double.views[0]), double.labels)
    total = (weights[double.labels] * rows).mean()
    step = torch.autograd.grad(total, list(trained.values()), create_graph=True)
    moved = {n: p - 0.05 * g for (n, p), g in zip(trained.items(), step, strict=True)}
    after = cross_entropy_rows(functional_call(method, moved, (meta.views[0],)), meta.labels)
    (expected,) = torch.autograd.grad(after.mean(), weights)
    before = {n: b.clone() for n, b in method.named_buffers()}
    found = method.meta_slopes(batch, weights.detach(), 0.05)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-8)
    assert all(torch.equal(b, before[n]) for n, b in method.named_buffers())


def test_accuracies_are_those_of_the_epoch_before():
    method = toys.method("difficulty_net").eval()
    batch = toys.dressed(toys.batch(), method)
    method.on_epoch(toys.at())
    assert torch.equal(method.accuracy, torch.zeros(4))
    method.prepare(batch, toys.at())
    meta = batch.streams["meta"]
    right = method.predict(meta.views[0]).argmax(1) == meta.labels
    method.on_epoch(toys.at(epoch=1))
    for k in range(4):
        assert method.accuracy[k] == right[meta.labels == k].float().mean()
    assert method.seen.sum() == 0


def test_the_driver_alone_needs_no_model():
    """Without the meta gradient the weights do not depend on the images."""
    found = []
    for seed in (0, 1):
        method = toys.method("difficulty_net")
        method.config = method.config.model_copy(update={"meta_gradient": False})
        batch = toys.dressed(toys.batch(seed=seed), method)
        found.append(method.prepare(batch, toys.at()).extra["class_weights"])
    assert torch.equal(*found)
    assert found[0].sum() == pytest.approx(4)
