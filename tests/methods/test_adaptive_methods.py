"""M2m's search, the inner Adam and CC-SAM's perturbation against what they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
import toys
from torch import nn

from ltbench.config import validation
from ltbench.errors import UserError
from ltbench.losses import adaptive
from ltbench.methods.base import Batch
from ltbench.methods.inner import InnerAdam
from ltbench.methods.m2m import M2m

EAGER = {"beta": 0.5, "gamma": 0.0}  # nearly every image that is not kept is made anew


def optioned(name: str, **more):
    """A toy method with options beside the shared ones."""
    base = toys.method(name)
    previous = getattr(base, "helper", None)
    torch.manual_seed(3)
    config = validation.build_options("METHODS", name, {**toys.OPTIONS.get(name, {}), **more})
    return type(base)(config, base.backbone, toys.INFO, previous)


def test_m2m_noise_is_bounded_image_by_image():
    uniform = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    uniform[0] = 0.5 + 1e-3 * (uniform[0] - 0.5)
    noise = adaptive.bounded_noise(uniform, 0.5)
    torch.testing.assert_close(noise[1:].flatten(1).norm(dim=1), torch.full((4,), 0.5).double())
    assert torch.equal(noise[0], uniform[0] - 0.5)  # short enough as it was
    assert not adaptive.bounded_noise(uniform, 0.0).any()


def test_m2m_generates_from_its_epoch_on_and_changes_nothing_else():
    method = optioned("m2m", **EAGER).train()
    assert not any(part.training for part in method.helper.modules())
    method.config = method.config.model_copy(update={"generate_from": 2})
    modes = [part.training for part in method.modules()]
    before = copy.deepcopy(method.state_dict())
    batch = toys.batch(64)
    assert method.prepare(batch, toys.at(epoch=1)) is batch
    after, again = (method.prepare(batch, toys.at(epoch=2)) for _ in range(2))
    assert torch.equal(after.views[0], again.views[0])
    changed = (after.views[0] != batch.views[0]).flatten(1).any(dim=1)
    assert changed.any()
    assert not changed.all()
    assert not changed[batch.labels == 0].any()  # the largest class is kept
    assert torch.equal(after.labels, batch.labels)
    generated = after.views[0][changed]
    assert generated.min() >= 0
    assert generated.max() <= 1
    assert [part.training for part in method.modules()] == modes
    assert all(torch.equal(x, before[n]) for n, x in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())


def test_m2m_pixels_are_those_of_the_data_set():
    """With a mean and a deviation, generated images are clipped where pixels end."""
    method = optioned("m2m", **EAGER)
    mean, std = torch.tensor([0.2, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.5])
    method.mean, method.std = mean.double().view(-1, 1, 1), std.double().view(-1, 1, 1)
    batch = toys.batch(64)
    after = method.prepare(batch, toys.at()).views[0]
    generated = after[(after != batch.views[0]).flatten(1).any(dim=1)]
    pixels = generated * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    assert pixels.min() >= -1e-6
    assert pixels.max() <= 1 + 1e-6
    assert generated.min() < -0.5


def test_m2m_keeps_images_that_do_not_convince_the_helper():
    method = optioned("m2m", **{**EAGER, "gamma": 1.0})
    batch = toys.batch(64)
    assert torch.equal(method.prepare(batch, toys.at()).views[0], batch.views[0])


def test_m2m_needs_a_helper_of_its_own():
    with pytest.raises(UserError, match="stage before"):
        M2m(M2m.Config(), toys.backbone(), toys.INFO)
    previous = toys.method("ce")
    with pytest.raises(UserError, match="start: fresh"):
        M2m(M2m.Config(), previous.backbone, toys.INFO, previous)


def test_inner_adam_is_adam_and_goes_on_from_its_state():
    torch.manual_seed(1)
    start = [torch.randn(3, 2).double(), torch.randn(4).double()]
    ours, theirs = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    adam = InnerAdam(ours, lr=0.05, weight_decay=0.1)
    reference = torch.optim.Adam(theirs, lr=0.05, weight_decay=0.1)
    for step in range(6):
        gradients = [torch.randn_like(p) * (i + 1) for i, p in enumerate(start)]
        for p, g in zip(theirs, gradients, strict=True):
            p.grad = g
        reference.step()
        if step == 3:
            state = copy.deepcopy(adam.state_dict())
            adam = InnerAdam(ours, lr=0.05, weight_decay=0.1)
            adam.load_state_dict(state)
        adam.step(ours, gradients)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_ccsam_logits_are_those_of_a_classifier_perturbed_by_hand():
    method = optioned("cc_sam", noise=0.5).double()
    x, y = toys.images(24)
    batch = method.prepare(Batch((x.double(),), y, y), toys.at())
    features = method.backbone(batch.views[0]).detach().requires_grad_()
    logits = method.head(features)
    found = method.perturbed(features, logits, batch)
    rows = adaptive.cross_entropy_rows(logits, batch.labels) * batch.lam
    rows = rows + adaptive.cross_entropy_rows(logits, batch.partner) * (1 - batch.lam)
    parameters = list(method.head.parameters())
    scalars = sum(p.numel() for p in parameters)
    size = torch.cat([p.flatten() for p in parameters]).norm().item()
    for k in range(4):
        own = batch.labels == k
        gradients = torch.autograd.grad(rows[own].mean(), parameters, retain_graph=True)
        scale = 0.5 * (size / 2) ** 0.5 * scalars**0.25 / (toys.COUNTS[k] - 1) ** 0.25
        weight, bias = (
            (p + scale * g / g.norm() ** 1.5).detach()
            for p, g in zip(parameters, gradients, strict=True)
        )
        by_hand = features[own] @ weight.T + bias
        torch.testing.assert_close(found[own], by_hand, atol=1e-9, rtol=1e-9)
        slopes = torch.autograd.grad(found[own].sum(), features, retain_graph=True)
        expected = torch.autograd.grad(by_hand.sum(), features)
        torch.testing.assert_close(slopes, expected, atol=1e-9, rtol=1e-9)


def test_ccsam_limits():
    """No noise and no mixing is cross-entropy; one image in a class, or no gradient, is finite."""
    method = optioned("cc_sam", noise=0.0, alpha=0)
    batch = toys.batch()
    assert method.prepare(batch, toys.at()) is batch
    plain = toys.method("ce", norm=False)
    plain.backbone, plain.head = method.backbone, method.head
    rows = method.loss(batch, toys.at()).rows
    torch.testing.assert_close(rows, plain.loss(batch, toys.at()).rows)
    radii = adaptive.class_radii((10, 2, 1), torch.tensor(2.0), 8, 0.5)
    assert torch.isfinite(radii).all()
    assert radii[2] == radii[1] > radii[0]
    labels, features = torch.tensor([0, 1]), torch.ones(2, 3)
    logits = torch.randn(2, 3)
    anchors = (labels, features, torch.zeros(2, 3))
    moved = adaptive.class_perturbed_logits(
        logits, features, labels, anchors=anchors, radii=radii, scalars=12
    )
    assert torch.equal(moved, logits)
