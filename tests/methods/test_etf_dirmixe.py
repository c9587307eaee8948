"""ETF with dot regression, DirMixE, and DeiT-LT's loss: values of the authors' codes."""

from __future__ import annotations

import pytest
import torch
import toys
from toy_stages import ready

from ltbench.errors import UserError
from ltbench.losses import (
    batch_lengths,
    deitlt_rows,
    dirmixe_centres,
    dirmixe_losses,
    dirmixe_offsets,
    dot_regression_rows,
    draw_test_priors,
    etf_directions,
    upper_semivariance,
)
from ltbench.models.heads import ETFHead


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def close(found, values, v) -> None:
    torch.testing.assert_close(
        found.detach(), tensor(values), rtol=v["tolerance"], atol=v["tolerance"]
    )


def test_etf_directions(vector):
    v = vector("etf_matrix")
    drawn = torch.linalg.qr(tensor(v["inputs"]["uniform"])).Q
    close(drawn, v["inputs"]["orthonormal"], v)
    found = etf_directions(tensor(v["inputs"]["orthonormal"]))
    close(found, v["expected"], v)
    classes = found.shape[1]
    products = torch.full((classes, classes), -1 / (classes - 1), dtype=torch.float64)
    torch.testing.assert_close(found.T @ found, products.fill_diagonal_(1.0))
    with pytest.raises(ValueError, match="D >= C"):
        etf_directions(torch.eye(3)[:2])


def test_dot_regression(vector):
    v = vector("etf_dot_regression")
    labels, directions = torch.tensor(v["inputs"]["labels"]), tensor(v["inputs"]["directions"])
    for weight, expected in zip(v["params"]["reg"], v["expected"], strict=True):
        features = tensor(v["inputs"]["features"]).requires_grad_()
        loss = dot_regression_rows(features, labels, directions, weight).mean()
        loss.backward()
        close(loss, expected["loss"], v)
        close(features.grad, expected["gradient"], v)


def test_dot_regression_by_length():
    """For unit vectors it is (1 - cos)^2 / 2; a direction of length e multiplies it by e^2."""
    directions = etf_directions(torch.linalg.qr(torch.rand(6, 4, dtype=torch.float64)).Q)
    features = torch.nn.functional.normalize(torch.randn(5, 6, dtype=torch.float64), dim=1)
    labels = torch.tensor([0, 1, 2, 3, 3])
    rows = dot_regression_rows(features, labels, directions)
    cosines = (features @ directions).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(rows, (1 - cosines) ** 2 / 2)
    lengths = batch_lengths(torch.bincount(labels, minlength=4).double())
    weighted = dot_regression_rows(features, labels, directions * lengths)
    by_class = torch.stack([rows[labels == k].mean() for k in range(4)])
    torch.testing.assert_close(weighted.mean(), by_class.mean())
    assert batch_lengths(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
    zero = torch.zeros(1, 6, requires_grad=True)
    dot_regression_rows(zero, labels[:1], directions, 0.1).sum().backward()
    assert torch.isfinite(zero.grad).all()


def test_the_etf_head_is_fixed_and_needs_features():
    head = ETFHead(12, 4)
    assert [n for n, _ in head.named_parameters()] == ["norm.weight", "norm.bias"]
    assert "directions" in head.state_dict()
    assert (head(torch.randn(8, 12)).abs() <= 1 + 1e-6).all()
    with pytest.raises(UserError, match="12 features and 20 classes; take a wider backbone"):
        ETFHead(12, 20)


def test_etf_weights_the_classes_of_a_batch_equally():
    method, _ = ready("etf", norm=False)
    batch = method.prepare(toys.batch(), toys.at())
    counts = torch.bincount(batch.labels, minlength=4)
    torch.testing.assert_close(batch.extra["lengths"], (24 / (4 * counts.double())).sqrt())
    rows = method.loss(batch, toys.at())
    assert rows.rows.shape == (24,)
    assert rows.shared is None


def test_dirmixe_centres(vector):
    v = vector("dirmixe_priors")
    for expected in v["expected"].values():
        close(dirmixe_centres(v["inputs"]["counts"]), expected, v)


def test_dirmixe_loss(vector):
    v = vector("dirmixe_loss")
    inputs, p = v["inputs"], v["params"]
    labels, experts = torch.tensor(inputs["labels"]), torch.tensor(inputs["experts"])
    offsets = dirmixe_offsets(tensor(inputs["priors"]), inputs["counts"], p["power"])
    for weight, expected in zip((0.0, p["lambda_var"]), v["expected"], strict=True):
        logits = tensor(inputs["logits"]).requires_grad_()  # [E, B, C]
        losses = dirmixe_losses(logits.transpose(0, 1), labels, offsets, experts)
        loss = losses.mean(dim=1).mean() + weight * upper_semivariance(losses.mean(dim=0))
        loss.backward()
        close(loss, expected["loss"], v)
        close(logits.grad, expected["gradient"], v)


def test_the_upper_semivariance_of_one_value_is_zero():
    losses = torch.tensor([1.5], requires_grad=True)
    upper_semivariance(losses).backward()
    assert losses.grad.tolist() == [0.0]
    assert upper_semivariance(torch.tensor([0.0, 0.0, 3.0])) == 4.0


def test_test_priors_are_drawn_around_their_centres():
    centres = dirmixe_centres([500, 120, 30, 5])
    generator = torch.Generator().manual_seed(0)
    priors, experts = draw_test_priors(centres, 600, 1e4, generator)
    torch.testing.assert_close(priors.sum(dim=1), torch.ones(600, dtype=torch.float64))
    assert (torch.bincount(experts, minlength=3) > 150).all()
    for k in range(3):
        mean = priors[experts == k].mean(dim=0)
        torch.testing.assert_close(mean, centres[k], atol=2e-3, rtol=0)
    again = draw_test_priors(centres, 600, 1e4, torch.Generator().manual_seed(0))
    assert torch.equal(priors, again[0])
    with pytest.raises(ValueError, match="draws"):
        draw_test_priors(centres, 0, 1e4, generator)


def test_dirmixe_penalises_late_only():
    method, _ = ready("dirmixe", norm=False)
    method.config = method.config.model_copy(update={"penalty_from": 2})
    batch = method.prepare(toys.batch(), toys.at())
    assert method.loss(batch, toys.at(epoch=1)).shared is None
    assert method.loss(batch, toys.at(epoch=2)).shared > 0
    again = method.prepare(toys.batch(), toys.at(step=1))
    assert not torch.equal(again.extra["offsets"], batch.extra["offsets"])


@pytest.mark.parametrize("name", ["deitlt_loss", "deitlt_loss_early"])
def test_deitlt_loss(vector, name):
    v = vector(name)
    inputs = {k: tensor(x) for k, x in v["inputs"].items()}
    own, told = (inputs.pop(k).requires_grad_() for k in ("class_logits", "distill_logits"))
    rows = deitlt_rows(own, told, **inputs, **v["params"])
    rows.mean().backward()
    close(rows.mean(), v["expected"]["loss"], v)
    if "grad_class" not in v["expected"]:
        return
    close(own.grad, v["expected"]["grad_class"], v)
    close(told.grad, v["expected"]["grad_distill"], v)
    weights = inputs["class_weights"]  # a part of the batch, with the mean weight of the whole
    mean, parts = weights[inputs["teacher_logits"].argmax(dim=1)].mean(), []
    for i in range(4):
        one = {k: x if k == "class_weights" else x[i : i + 1] for k, x in inputs.items()}
        parts.append(deitlt_rows(own[i : i + 1], told[i : i + 1], **one, mean_weight=mean))
    torch.testing.assert_close(torch.cat(parts), rows)
