from __future__ import annotations

import copy

import pytest
import torch
import toys
from torch.nn import functional as F

from ltbench import losses
from ltbench.config import validation
from ltbench.losses import log_prior, paco_rows, supervised_contrastive_rows
from ltbench.methods import METHODS
from ltbench.methods.base import Batch
from ltbench.updates import UPDATES
from ltbench.updates.base import StepRun


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gpaco(**options):
    config = validation.build_options("METHODS", "gpaco", {**toys.OPTIONS["gpaco"], **options})
    return METHODS.get("gpaco")(config, toys.backbone(), toys.INFO)


def given(v):
    """Features, scores with the prior, labels, and the number of anchors of a vector."""
    inputs, anchors = v["inputs"], v["params"]["anchors"]
    features = double(inputs["features"]).requires_grad_()
    scores = double(inputs["scores"]).requires_grad_()
    return features, scores, torch.tensor(inputs["labels"]), anchors


def test_loss_and_gradients_are_the_authors_without_and_with_smoothing(vector):
    v = vector("gpaco_loss")
    for setting, expected in zip(v["params"]["settings"], v["expected"], strict=True):
        features, scores, labels, n = given(v)
        rows = paco_rows(
            scores + log_prior(v["inputs"]["counts"]),
            features[:n],
            labels[:n],
            features,
            labels,
            alpha=setting["alpha"],
            beta=v["params"]["beta"],
            gamma=v["params"]["gamma"],
            temperature=setting["temperature"],
            smoothing=setting["smooth"],
        )
        loss = rows.mean()
        loss.backward()
        for found, wanted in (
            (loss, "loss"),
            (features.grad, "grad_features"),
            (scores.grad, "grad_scores"),
        ):
            torch.testing.assert_close(
                found.detach(), double(expected[wanted]), rtol=v["tolerance"], atol=1e-9
            )


def test_the_multi_task_loss_is_the_authors(vector):
    v = vector("gpaco_multitask_loss")
    features, scores, labels, n = given(v)
    counts, params = v["inputs"]["counts"], v["params"]
    weights = losses.effective_number_weights(counts, params["beta"])
    weights = weights * (1 / weights).mean()  # mean effective number over that of the class
    torch.testing.assert_close(weights, double(v["expected"]["class_weights"]), rtol=1e-8, atol=0)
    contrast = supervised_contrastive_rows(
        features[:n], labels[:n], features, labels, temperature=params["temperature"]
    )
    balanced = losses.logit_adjusted_rows(scores, labels[:n], log_prior(counts))
    loss = balanced.mean() + params["alpha"] * (weights[labels[:n]] * contrast).mean()
    assert loss.item() == pytest.approx(v["expected"]["loss"], rel=v["tolerance"])


def test_an_anchor_without_another_of_its_class_has_no_supervised_contrast():
    features = F.normalize(torch.randn(4, 3, dtype=torch.float64), dim=1).requires_grad_()
    labels = torch.tensor([0, 0, 1, -1])
    rows = supervised_contrastive_rows(features[:3], labels[:3], features, labels)
    assert rows[2] == 0
    similar = (features[0] @ features[1:].T / 0.2).detach()
    torch.testing.assert_close(rows[0].detach(), similar.logsumexp(0) - similar[0])
    rows.sum().backward()
    assert torch.isfinite(features.grad).all()


def test_smoothing_of_all_classes_alike_is_checked():
    x = torch.randn(2, 3)
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="smoothing"):
        paco_rows(torch.randn(2, 4), x, labels, x, labels, smoothing=1.0)


def loss_by_anchors(scores, anchors, labels, queue, queue_labels, alpha, temperature):
    """GPaCo's loss, one anchor after the other."""
    total = 0.0
    for i, label in enumerate(labels):
        rest = torch.arange(len(anchors)) != i
        similar = torch.cat([anchors[rest], queue]) @ anchors[i] / temperature
        positive = torch.cat([labels[rest], queue_labels]) == label
        spread = torch.cat([scores[i], similar]).exp().sum().log()
        drawn = scores[i, label] - spread + alpha * (similar - spread)[positive].sum()
        total = total - drawn / (1 + alpha * positive.sum())
    return total / len(labels)


@pytest.mark.parametrize("update", ["plain", "sam"])
def test_two_steps_are_those_of_a_reference(update):
    """Each view alone through the network; keys of a step enter the queue after it."""
    method = gpaco(queue=60, alpha=0.25).double().train()
    sgd = {"lr": 0.2, "momentum": 0.9, "weight_decay": 5e-4}
    run = StepRun(method, torch.optim.SGD(method.parameters(), **sgd))
    step = UPDATES.get(update)(validation.build_options("UPDATES", update, {}))
    net, centres, projection = map(copy.deepcopy, (method.backbone, method.head, method.projection))
    queue, queue_labels = method.queue.clone(), method.queue_labels.clone()
    parts = torch.nn.ModuleList([net, centres, projection])
    optimizer = torch.optim.SGD(parts.parameters(), **sgd)
    for number in range(2):
        x, labels = toys.images(24, seed=number)
        x = x.double()
        both = torch.cat([net(x), net(0.8 * x)])  # the second view of `toys.dressed`
        projected = projection(both)
        anchors = projected / projected.norm(dim=1, keepdim=True)
        scores = centres(both) + method.offset
        twice = labels.repeat(2)
        loss = loss_by_anchors(scores, anchors, twice, queue, queue_labels, 0.25, 0.2)
        log = toys.step(step, run, [Batch((x,), labels, labels)], toys.at(number))
        assert float(log["loss"]) == pytest.approx(loss.item(), rel=1e-9)
        queue = torch.cat([queue[24:], anchors[24:].detach()])
        queue_labels = torch.cat([queue_labels[24:], labels])
        # The queue is a ring: the same keys, in the places of the oldest.
        order = torch.arange(60).roll(24 * (number + 1)) if number < 1 else None
        if order is not None:
            torch.testing.assert_close(method.queue, queue[order])
            assert torch.equal(method.queue_labels, queue_labels[order])
        if update == "sam":
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for found, wanted in zip(
            [*method.backbone.parameters(), *method.head.parameters()],
            [*net.parameters(), *centres.parameters()],
            strict=True,
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_micro_batches_enter_the_queue_in_order():
    method = gpaco(queue=24)
    x, labels = toys.images(20)
    parts = [Batch((a,), b, b) for a, b in zip(x.split(12), labels.split(12), strict=True)]
    run = StepRun(method, torch.optim.SGD(method.parameters(), 0.0))
    update = UPDATES.get("plain")(validation.build_options("UPDATES", "plain", {}))
    toys.step(update, run, parts, toys.at())
    assert torch.equal(method.queue_labels[:20], labels)
    assert method.queue_labels[20:].tolist() == [-1] * 4
    assert int(method.queue_next) == 20
    torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(24))


def test_a_row_is_half_of_an_image_and_the_projection_is_not_exported():
    method = gpaco()
    batch = method.prepare(toys.dressed(toys.batch(), method), toys.at())
    out = method.loss(batch, toys.at())
    assert out.rows.shape == (48,)
    assert out.images == 24
    assert torch.equal(out.labels, batch.labels.repeat(2))
    torch.testing.assert_close((out.weight * out.rows).sum() / out.images, out.rows.mean())
    names = [name for name, _ in method.export().named_parameters()]
    assert len(names) == len([*toys.method("ce").export().parameters()])
    start = gpaco(dim=512, projection_init="kaiming_normal").projection[-1].weight
    assert float(start.detach().std()) == pytest.approx((2 / 12) ** 0.5, rel=0.05)
