"""Focal-SAM and ImbSAM: values of the authors' codes, and what holds with every method."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toys
from torch import nn
from toy_stages import make_update, ready

from ltbench import get_recipe
from ltbench.config import validation
from ltbench.data.base import DatasetInfo
from ltbench.errors import UserError
from ltbench.losses import cross_entropy_rows, focal_sam_shares
from ltbench.methods.base import Batch, Method, Rows
from ltbench.models.backbone import Backbone
from ltbench.updates import UPDATES
from ltbench.updates.base import StepRun

KEYS = ("focal-sam", "imb-sam")


class Linear(Method):
    """Cross-entropy of a linear classifier on vectors."""

    def loss(self, batch, at) -> Rows:
        rows = cross_entropy_rows(self.head(batch.views[0]), batch.labels)
        return Rows(rows, batch.labels, images=len(rows))


def linear(inputs, counts) -> Linear:
    backbone = Backbone.from_stages({"none": nn.Identity()}, num_features=3, pool=nn.Identity())
    info = DatasetInfo("vectors", tuple(counts), tuple(map(str, range(len(counts)))))
    method = Linear(Method.Config(), backbone, info)
    weight, bias = inputs["weight"], inputs.get("bias")
    method.head = nn.Linear(3, len(counts), bias=bias is not None)
    with torch.no_grad():
        method.double().head.weight.copy_(torch.tensor(weight, dtype=torch.float64))
        if bias is not None:
            method.head.bias.copy_(torch.tensor(bias, dtype=torch.float64))
    return method


def make(name, **options):
    return UPDATES.get(name)(validation.build_options("UPDATES", name, options))


def check(v, update, counts, micro=1) -> None:
    """Compare the weights after each step with a vector's."""
    p, inputs = v["params"], v["inputs"]
    method = linear(inputs, counts)
    optimizer = torch.optim.SGD(
        method.parameters(), p["lr"], p["momentum"], weight_decay=p["weight_decay"]
    )
    run = StepRun(method, optimizer)
    x = torch.tensor(inputs["x"], dtype=torch.float64)
    labels = torch.tensor(inputs["labels"])
    parts = torch.tensor_split(torch.arange(len(labels)), micro)
    expected = v["expected"] if isinstance(v["expected"], list) else [v["expected"]]
    for step, values in enumerate(expected):
        update.step(run, [Batch((x[i],), labels[i], i) for i in parts], toys.at(step))
        for name, value in values.items():
            found = getattr(method.head, name).detach()
            close = torch.tensor(value, dtype=torch.float64)
            torch.testing.assert_close(found, close, rtol=v["tolerance"], atol=v["tolerance"])


def test_shares_of_focal_sam(vector):
    v = vector("focal_sam_coefficients")
    found = focal_sam_shares(v["inputs"]["counts"], **v["params"])
    expected = torch.tensor(v["expected"], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=v["tolerance"], atol=0)
    with pytest.raises(ValueError, match="gamma"):
        focal_sam_shares([3, 2], -1.0, 0.5)


@pytest.mark.parametrize("micro", [1, 2])
def test_focal_sam_vector(vector, micro):
    v = vector("focal_sam_steps")
    p = v["params"]
    update = make("focal_sam", rho=p["rho"], gamma=p["gamma"], sharpness=p["sharpness"])
    check(v, update, v["inputs"]["counts"], micro)


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("name", ["imbsam_steps", "imbsam_no_tail"])
def test_imbsam_vectors(vector, name, micro):
    v = vector(name)
    p = v["params"]
    assert p["tail"] == [2, 3]
    update = make("imb_sam", rho=p["rho"], tail_weight=p["tail_weight"], tail_below=20)
    check(v, update, (100, 50, 19, 5), micro)


def weights_after(update, name="ce", steps=3) -> list[torch.Tensor]:
    method, run = ready(name, norm=False)
    for step in range(steps):
        toys.step(update, run, [toys.batch(seed=step)], toys.at(step))
    return [p.detach().clone() for p in method.parameters()]


def equal(one, other) -> None:
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["ce", "ldam_drw"])  # the second with weighted rows
def test_the_whole_loss_at_the_perturbed_weights_is_sam(name):
    sam = weights_after(make("sam", rho=0.05), name)
    equal(weights_after(make("focal_sam", rho=0.05, gamma=0.0, sharpness=1.0), name), sam)
    equal(weights_after(make("imb_sam", rho=0.05, tail_below=1000), name), sam)


@pytest.mark.parametrize("name", ["ce", "ldam_drw"])
def test_no_share_is_a_plain_step(name):
    plain = weights_after(make("plain"), name)
    equal(weights_after(make("focal_sam", rho=0.05, sharpness=0.0), name), plain)


def test_after_its_epochs_it_is_plain():
    results = {}
    for epoch in (0, 1):
        for update in (make("plain"), make("imb_sam", rho=0.5, epochs=1)):
            method, run = ready("ce", norm=False)
            toys.step(update, run, [toys.batch()], toys.at(epoch=epoch))
            found = [p.detach().clone() for p in method.parameters()]
            results.setdefault(epoch, []).append(found)
    equal(*results[1])
    assert not torch.allclose(results[0][0][0], results[0][1][0], atol=1e-6)


@pytest.mark.parametrize("key", KEYS)
def test_the_divisor_is_that_of_the_loss_and_the_loss_is_logged(key):
    """With ``divide: weight`` the factors of a class do not change the sum of weights."""
    method, run = ready("ldam_drw", norm=False)
    here, there = make_update(key, method).factors(toys.COUNTS, toys.at())
    batch = method.prepare(toys.batch(), toys.at())
    loss, _, (one, other) = run.gradients([batch], toys.at(), [here, there])
    plain, _ = run.backward([batch], toys.at())
    torch.testing.assert_close(loss, plain)  # a part for each class makes the whole
    for p, a, b in zip(run.parameters, one, other, strict=True):
        torch.testing.assert_close(a + b, p.grad, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("key", KEYS)
def test_a_shared_term_stays_at_the_weights(key):
    """A term of no class counts once, at the weights, and does not turn the ascent."""

    def gradients(shared: float):
        method, run = ready("ce", norm=False)
        loss = method.loss

        def with_term(batch, at):
            out = loss(batch, at)
            return replace(out, shared=shared * sum(p.sum() for p in method.parameters()))

        method.loss = with_term if shared else loss
        run.optimizer.param_groups[0]["lr"] = 0.0
        make_update(key, method).step(run, [toys.batch()], toys.at())
        return [p.grad.clone() for p in run.parameters]

    for a, b in zip(gradients(0.0), gradients(2.0), strict=True):
        torch.testing.assert_close(a + 2.0, b, atol=1e-6, rtol=1e-5)


def test_a_training_set_without_tail_is_an_error():
    _, run = ready("ce")
    update = make("imb_sam", tail_below=5)
    with pytest.raises(UserError, match=r"no class has fewer than 5 .* smallest has 5; raise"):
        update.step(run, [toys.batch()], toys.at())


def test_the_radius_rises_on_imagenet_lt():
    update = get_recipe("logit_adjustment_focal_sam_imagenet_lt").stages[0].update
    made = UPDATES.get(update.name)(update.config)
    assert [made.radius(e) for e in (0, 159, 160, 199)] == [0.1, 0.1, 0.2, 0.2]
    with pytest.raises(UserError, match="longer than the stage"):
        get_recipe("logit_adjustment_focal_sam_cifar10", "stages.0.update.epochs=300")
