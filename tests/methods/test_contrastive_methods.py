from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toys
from torch.nn import functional as F

from ltbench import losses, registries, validation
from ltbench.losses import log_prior
from ltbench.losses.contrastive import balanced_contrastive_rows, paco_rows
from ltbench.methods.base import Batch


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


def paco(**options):
    values = {**toys.OPTIONS["paco"], **options}
    config = validation.build_options("METHODS", "paco", values)
    return registries.METHODS.get("paco")(config, toys.backbone(), toys.INFO)


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
    method = registries.METHODS.get("bcl")(config, toys.backbone(), toys.INFO)
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
