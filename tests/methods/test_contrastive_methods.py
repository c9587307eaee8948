from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import toys
from torch import nn
from torch.nn import functional as F

from ltbench import losses
from ltbench.config import validation
from ltbench.losses import contrastive, log_prior
from ltbench.losses.contrastive import (
    balanced_contrastive_rows,
    paco_rows,
    supervised_contrastive_rows,
)
from ltbench.methods import METHODS
from ltbench.methods.base import Batch
from ltbench.updates import UPDATES
from ltbench.updates.base import StepRun


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found: torch.Tensor, v) -> None:
    torch.testing.assert_close(found, double(v["expected"]), rtol=v["tolerance"], atol=0)


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=1)


# PaCo ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paco_alpha0.05_T0.2", "paco_alpha0.01_T0.05"])
def test_paco_is_the_authors_loss(vector, name):
    v = vector(name)
    inputs, params = v["inputs"], v["params"]
    labels = torch.tensor(inputs["labels"])
    q = double(inputs["q"])
    rows = paco_rows(
        double(inputs["sup_logits"]) / params["supt"] + log_prior(inputs["counts"]),
        q,
        labels,
        torch.cat([q, double(inputs["k"]), double(inputs["queue"])]),
        torch.cat([labels, labels, torch.tensor(inputs["queue_labels"])]),
        alpha=params["alpha"],
        beta=params["beta"],
        gamma=params["gamma"],
        temperature=params["temperature"],
    )
    close(rows.mean(), v)


def problem(n: int = 5, more: int = 7, classes: int = 3):
    q, others = unit(n, 4).requires_grad_(), unit(more, 4)
    labels, other_labels = torch.arange(n) % classes, torch.arange(more) % classes
    scores = torch.randn(n, classes, dtype=torch.float64)
    return scores, q, labels, torch.cat([q, others]), torch.cat([labels, other_labels])


def test_without_features_paco_is_cross_entropy_on_the_centres():
    scores, q, labels, others, other_labels = problem()
    rows = paco_rows(scores, q, labels, others, other_labels, alpha=0.0, gamma=0.0)
    torch.testing.assert_close(rows, losses.cross_entropy_rows(scores, labels))
    (gradient,) = torch.autograd.grad(rows.sum(), q)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_an_anchor_is_not_compared_with_itself_and_labels_below_zero_are_no_positives():
    scores, q, labels, others, other_labels = problem()
    whole = paco_rows(scores, q, labels, others, other_labels)
    part = paco_rows(scores[2:4], q[2:4], labels[2:4], others, other_labels, start=2)
    torch.testing.assert_close(part, whole[2:4])
    for i in range(len(q)):
        rest = torch.arange(len(others)) != i  # the same loss on others that lack the anchor
        similar, positive = q[i] @ others[rest].T / 0.2, other_labels[rest] == labels[i]
        drawn = scores[i, labels[i]] + 0.05 * similar[positive].sum()
        spread = torch.cat([scores[i], similar]).logsumexp(0)
        expected = spread - drawn / (1 + 0.05 * positive.sum())
        torch.testing.assert_close(whole[i], expected)
    strangers = other_labels.clone()
    strangers[len(q) :] = -1
    assert not torch.allclose(paco_rows(scores, q, labels, others, strangers), whole)


@pytest.mark.parametrize("held", [1, 40, 60])
def test_many_anchors_are_contrasted_in_parts(held, monkeypatch):
    """Values and gradients are those of all at once, in every backward pass of a kept graph."""
    scores, q, labels, others, other_labels = problem()
    prototypes = torch.randn(scores.shape[1], q.shape[1], dtype=torch.float64, requires_grad=True)
    scores.requires_grad_()
    rows_of = {
        "paco": lambda: paco_rows(scores, q, labels, others, other_labels, smoothing=0.1),
        "supervised": lambda: supervised_contrastive_rows(q, labels, others, other_labels),
        "balanced": lambda: balanced_contrastive_rows(q, labels, q, labels, prototypes),
    }
    weights = torch.randn(2, len(q), dtype=torch.float64)
    for name, rows in rows_of.items():
        found = []
        for limit in (2**24, held):
            monkeypatch.setattr(contrastive, "HELD", limit)
            out = rows()
            inputs = {"paco": [q, scores], "balanced": [q, prototypes]}.get(name, [q])
            gradients = [torch.autograd.grad(out, inputs, w, retain_graph=True) for w in weights]
            found.append([out, *gradients[0], *gradients[1]])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def paco(**options):
    values = {**toys.OPTIONS["paco"], **options}
    config = validation.build_options("METHODS", "paco", values)
    return METHODS.get("paco")(config, toys.backbone(), toys.INFO)


def keyed(keys: torch.Tensor, labels: torch.Tensor) -> Batch:
    none = torch.empty(0)
    return Batch((none,), labels, labels, extra={"keys": keys, "key_labels": labels})


def test_the_queue_starts_with_unit_vectors_of_no_class_and_keeps_the_last_keys():
    method = paco(queue=5, dim=2)
    torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(5))
    assert method.queue_labels.tolist() == [-1] * 5
    seen = 0
    for sizes in ([2], [1, 2], [4], [3, 4], [0, 13]):  # the last two steps overflow the queue
        micro = []
        for size in sizes:
            labels = torch.arange(seen, seen + size)
            micro.append(keyed(labels[:, None].float().expand(-1, 2), labels))
            seen += size
        method.after_step(micro, toys.at())
        expected = [-1] * max(0, 5 - seen) + list(range(max(0, seen - 5), seen))
        assert sorted(method.queue_labels.tolist()) == expected
        held = method.queue_labels >= 0
        assert torch.equal(method.queue[held, 0], method.queue_labels[held].float())
        assert int(method.queue_next) == seen % 5


def test_the_twin_follows_once_per_step_and_gives_keys_without_gradient():
    method = paco(momentum=0.75)
    before = [p.clone() for p in method.twin.parameters()]
    with torch.no_grad():
        for p in [*method.backbone.parameters(), *method.projection.parameters()]:
            p.add_(1.0)
    batch = toys.dressed(toys.batch(), method)
    prepared = method.prepare(batch, toys.at())
    method.prepare(batch, replace(toys.at(), micro=1))  # the step's second micro-batch
    for old, new in zip(before, method.twin.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)
        assert not new.requires_grad
    keys = prepared.extra["keys"]
    assert keys.shape == (24, 8)
    assert not keys.requires_grad
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(24))
    first, second = (method.loss(prepared, toys.at()).rows for _ in range(2))
    assert torch.equal(first, second)  # nothing moves between the passes of an update


class Encoder(nn.Module):
    """A network and its projection by hand: linear, batch normalisation, ReLU, linear, unit length.

    Args:
        net: the network, copied.
        projection: whose first and last layer are copied.
    """

    def __init__(self, net: nn.Module, projection: nn.Sequential) -> None:
        super().__init__()
        self.net, self.last = copy.deepcopy(net), copy.deepcopy(projection[-1])
        self.first = nn.Parameter(projection[0].weight.detach().clone())
        width = len(self.first)
        self.scale = nn.Parameter(torch.ones(width, dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(width, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("var", torch.ones(width, dtype=torch.float64))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.net(images)
        x = features @ self.first.T
        centred = x - x.mean(0)
        var = (centred**2).mean(0)
        with torch.no_grad():
            self.mean.copy_(0.9 * self.mean + 0.1 * x.mean(0))
            self.var.copy_(0.9 * self.var + 0.1 * var * len(x) / (len(x) - 1))
        x = self.last(F.relu(centred / (var + 1e-5).sqrt() * self.scale + self.shift))
        return features, x / x.norm(dim=1, keepdim=True)


def loss_by_anchors(scores, q, k, labels, queue, queue_labels, alpha, temperature):
    """PaCo's loss, one anchor after the other."""
    losses = []
    for i, label in enumerate(labels):
        rest = torch.arange(len(q)) != i
        similar = torch.cat([q[rest], k, queue]) @ q[i] / temperature
        positive = torch.cat([labels[rest], labels, queue_labels]) == label
        spread = torch.cat([scores[i], similar]).exp().sum().log()
        drawn = scores[i, label] - spread + alpha * (similar - spread)[positive].sum()
        losses.append(-drawn / (1 + alpha * positive.sum()))
    return sum(losses) / len(losses)


def test_three_steps_are_those_of_a_reference_whose_projection_is_normalised():
    keep, alpha, temperature = 0.9, 0.25, 0.2
    method = paco(queue=72, momentum=keep, alpha=alpha, temperature=temperature).double().train()
    sgd = {"lr": 0.2, "momentum": 0.9, "weight_decay": 5e-4}
    trained = [p for p in method.parameters() if p.requires_grad]
    run = StepRun(method, torch.optim.SGD(trained, **sgd))
    update = UPDATES.get("plain")(validation.build_options("UPDATES", "plain", {}))

    query = Encoder(method.backbone, method.projection)
    key = Encoder(*method.twin.values()).requires_grad_(False)
    centres = copy.deepcopy(method.head)
    queue, queue_labels = method.queue.clone(), method.queue_labels.clone()
    optimizer = torch.optim.SGD([*query.parameters(), *centres.parameters()], **sgd)
    for step in range(3):
        x, labels = toys.images(24, seed=step)
        x = x.double()
        features, q = query(x)
        with torch.no_grad():
            for mine, own in zip(key.parameters(), query.parameters(), strict=True):
                mine.copy_(keep * mine + (1 - keep) * own)
            _, k = key(0.8 * x)  # the second view of `toys.dressed`
        scores = centres(features) + method.offset
        loss = loss_by_anchors(scores, q, k, labels, queue, queue_labels, alpha, temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue, queue_labels = torch.cat([queue[24:], k]), torch.cat([queue_labels[24:], labels])
        log = toys.step(update, run, [Batch((x,), labels, labels)], toys.at(step))
        assert float(log["loss"]) == pytest.approx(loss.item(), rel=1e-9)

    prior = double(toys.COUNTS) / sum(toys.COUNTS)
    torch.testing.assert_close(method.offset, (prior + 1e-9).log(), rtol=1e-6, atol=0)
    assert torch.equal(method.queue_labels, queue_labels)  # three steps fill the queue once
    pairs = [(method.queue, queue), *pairs_of(method.head, centres)]
    for net, projection, by_hand in (
        (method.backbone, method.projection, query),
        (*method.twin.values(), key),
    ):
        first, norm, _, last = projection
        pairs += [(first.weight, by_hand.first), *pairs_of(last, by_hand.last)]
        pairs += [(norm.weight, by_hand.scale), (norm.bias, by_hand.shift)]
        pairs += [(norm.running_mean, by_hand.mean), (norm.running_var, by_hand.var)]
        pairs += pairs_of(net, by_hand.net)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def pairs_of(a: nn.Module, b: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights and running statistics of two modules alike."""
    return list(zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_last_layer_of_the_projection_starts_as_asked():
    spreads = []
    for start in ("pytorch", "kaiming_normal"):
        torch.manual_seed(0)
        method = paco(dim=512, projection_init=start)
        spreads.append(float(method.projection[-1].weight.detach().std()))
        assert torch.equal(method.projection[-1].weight, method.twin["projection"][-1].weight)
    assert spreads == pytest.approx([(1 / 36) ** 0.5, (2 / 12) ** 0.5], rel=0.05)


def test_the_twin_is_no_part_of_what_is_exported():
    names = [name for name, _ in paco().export().named_parameters()]
    assert len(names) == len([*toys.method("ce").export().parameters()])


# BCL -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bcl_scl_T0.1", "bcl_scl_T0.07"])
def test_balanced_contrast_is_the_authors_loss(vector, name):
    v = vector(name)
    features = torch.cat([double(v["inputs"]["view2"]), double(v["inputs"]["view3"])])
    labels = torch.tensor(v["inputs"]["labels"]).repeat(2)
    rows = balanced_contrastive_rows(
        features,
        labels,
        features,
        labels,
        double(v["inputs"]["centers"]),
        temperature=v["params"]["temperature"],
    )
    close(rows.mean(), v)


def test_bcl_classification_is_the_authors_loss(vector):
    v = vector("bcl_logit_adjust")
    offset = losses.logit_adjustment_offset(v["inputs"]["counts"], v["params"]["tau"])
    logits, labels = double(v["inputs"]["logits"]), torch.tensor(v["inputs"]["labels"])
    close(losses.logit_adjusted_rows(logits, labels, offset).mean(), v)


def test_more_images_of_another_class_do_not_change_an_anchor():
    """A class enters the denominator as a mean, so copies of its members cancel."""
    prototypes = unit(3, 4)
    anchor = unit(2, 4)  # of class 0
    other = prototypes[1:2]  # like its prototype, so that the mean stays
    rows = []
    for copies in (1, 6):
        features = torch.cat([anchor, other.expand(copies, -1)])
        labels = torch.tensor([0, 0] + [1] * copies)
        rows.append(balanced_contrastive_rows(anchor, labels[:2], features, labels, prototypes))
    torch.testing.assert_close(*rows)


def test_some_anchors_have_the_rows_they_have_among_all():
    features, prototypes = unit(8, 4), unit(3, 4)
    labels = torch.tensor([0, 1, 0, 0, 0, 1, 0, 0])  # class 2 has a prototype only
    whole = balanced_contrastive_rows(features, labels, features, labels, prototypes)
    own = slice(3, 6)
    part = balanced_contrastive_rows(
        features[own], labels[own], features, labels, prototypes, start=3
    )
    torch.testing.assert_close(part, whole[own])
    assert torch.isfinite(whole).all()


@pytest.mark.parametrize(("lam", "mu"), [(1.0, 0.35), (0.0, 2.0), (1.0, 0.0)])
def test_the_scalar_of_bcl_is_lam_times_one_loss_plus_mu_times_the_other(lam, mu):
    config = validation.build_options("METHODS", "bcl", {"dim": 8, "lam": lam, "mu": mu})
    method = METHODS.get("bcl")(config, toys.backbone(), toys.INFO)
    out = method.loss(toys.dressed(toys.batch(), method), toys.at())
    assert out.labels.shape == out.rows.shape == (72,)
    assert out.images == 24
    classified, contrasted = out.rows[:24].mean(), out.rows[24:].mean()
    total = (out.rows * out.weight).sum() / out.images
    torch.testing.assert_close(total, lam * classified + mu * contrasted)
    total.backward()
    moves = [bool(p.grad.abs().sum() > 0) for p in method.prototypes.parameters()]
    assert all(moves) == (mu > 0)
    assert method.head.weight.grad.abs().sum() > 0  # through the logits or the prototypes
