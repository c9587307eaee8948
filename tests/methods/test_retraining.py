"""Second stages that train a classifier further: LOS, weight balancing, H2T."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import toys
from torch.nn import functional as F
from toy_stages import ready

from ltbench import get_recipe, load, losses, run
from ltbench.config import validation
from ltbench.errors import UserError
from ltbench.losses import binary_softmax_rows, fused_maps, max_norm, max_norm_limit
from ltbench.methods import METHODS
from ltbench.methods.base import Batch


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def made(name: str, previous: str = "ce", **options):
    ce = METHODS.get(previous)(
        validation.build_options("METHODS", previous, {}), toys.backbone(), toys.INFO
    )
    config = validation.build_options("METHODS", name, options)
    return METHODS.get(name)(config, ce.backbone, toys.INFO, ce)


@pytest.mark.parametrize("name", ["los", "weight_balancing", "h2t"])
def test_they_continue_the_classifier_of_a_stage(name):
    config = validation.build_options("METHODS", name, {})
    with pytest.raises(UserError, match=f"`{name}` continues a trained model"):
        METHODS.get(name)(config, toys.backbone(), toys.INFO)
    method, step = ready(name)
    names = {n for n, p in method.named_parameters() if p.requires_grad}
    assert names == {"head.weight", "head.bias"}
    assert [id(p) for p in step.parameters] == [id(p) for p in method.head.parameters()]
    assert method.backbone.training  # running statistics drift, as in the authors' codes


# LOS -----------------------------------------------------------------------------------------


def smoothed(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    share = torch.full((logits.shape[1],), smoothing, dtype=torch.float64)
    return losses.label_aware_smoothing_rows(logits, labels, share)


def test_over_smoothing_is_the_authors_loss(vector):
    v = vector("los_loss")
    logits = double(v["inputs"]["logits"]).requires_grad_()
    labels = torch.tensor(v["inputs"]["labels"])
    loss = smoothed(logits, labels, v["params"]["smoothing"]).mean()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(v["expected"]["loss"], rel=v["tolerance"])
    torch.testing.assert_close(
        gradient, double(v["expected"]["gradient"]), rtol=v["tolerance"], atol=1e-10
    )


def test_over_smoothing_up_to_no_label_at_all(vector):
    v = vector("los_loss_limits")
    labels = torch.tensor(v["inputs"]["labels"])
    for smoothing, expected in zip(v["params"]["smoothing"], v["expected"], strict=True):
        logits = double(v["inputs"]["logits"]).requires_grad_()
        loss = smoothed(logits, labels, smoothing).mean()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == pytest.approx(expected["loss"], rel=v["tolerance"])
        torch.testing.assert_close(
            gradient, double(expected["gradient"]), rtol=v["tolerance"], atol=1e-10
        )


@pytest.mark.parametrize("smoothing", [0.0, 0.98])
def test_los_smooths_all_classes_alike(smoothing):
    method = made("los", smoothing=smoothing)
    batch = toys.batch()
    out = method.loss(batch, toys.at())
    logits = method.predict(batch.views[0])
    expected = F.cross_entropy(logits, batch.labels, reduction="none", label_smoothing=smoothing)
    torch.testing.assert_close(out.rows, expected)
    assert out.weight is None


# Weight balancing ----------------------------------------------------------------------------


def test_max_norm_is_the_authors(vector):
    v = vector("wb_maxnorm")
    limit = max_norm_limit(double(v["inputs"]["start_weight"]), v["params"]["thresh"])
    assert limit.item() == pytest.approx(v["expected"]["threshold"], rel=v["tolerance"])
    found = max_norm(double(v["inputs"]["weight"]), limit)
    expected = double(v["expected"]["projected"])
    torch.testing.assert_close(found, expected, rtol=v["tolerance"], atol=0)
    torch.testing.assert_close(max_norm(found, limit), found)  # a projection
    assert not max_norm(torch.zeros(2, 3), torch.tensor(0.0)).any()
    with pytest.raises(ValueError, match="share"):
        max_norm_limit(expected, 1.5)


def test_the_class_balanced_loss_is_the_authors(vector):
    v = vector("wb_class_balanced_loss")
    logits = double(v["inputs"]["logits"]).requires_grad_()
    labels = torch.tensor(v["inputs"]["labels"])
    weights = losses.effective_number_weights(v["inputs"]["counts"], v["params"]["beta"])
    loss = (weights[labels] * binary_softmax_rows(logits, labels)).mean()
    (gradient,) = torch.autograd.grad(loss, logits)
    # The authors' class weights pass through single precision.
    assert loss.item() == pytest.approx(v["expected"]["loss"], rel=1e-7)
    torch.testing.assert_close(gradient, double(v["expected"]["gradient"]), rtol=1e-7, atol=1e-10)


def test_binary_rows_are_those_of_probabilities_and_stay_finite():
    logits, labels = torch.randn(50, 6, dtype=torch.float64) * 4, torch.arange(50) % 6
    target = F.one_hot(labels, 6).double()
    p = logits.softmax(dim=1)
    expected = F.binary_cross_entropy(p, target, reduction="none").mean(dim=1)
    torch.testing.assert_close(binary_softmax_rows(logits, labels), expected)
    far = torch.tensor([[300.0, 0.0, -300.0], [1e4, 0.0, 0.0], [5.0, 5.0, -1e4]])
    far.requires_grad_()
    rows = binary_softmax_rows(far, torch.tensor([2, 0, 0]))
    torch.testing.assert_close(rows, torch.tensor([300.0, 0.0, 2 * math.log(2) / 3]))
    rows.sum().backward()
    assert torch.isfinite(far.grad).all()
    assert (
        binary_softmax_rows(far.detach().bfloat16(), torch.tensor([2, 0, 0])).dtype == torch.float
    )


def test_weights_are_shortened_at_the_end_of_an_epoch_or_after_each_step():
    for project, at_steps in (("epoch", [False, True]), ("step", [True, True])):
        method = made("weight_balancing", project=project, limit=0.5)
        head, limit = method.head, float(method.limit)
        norms = head.weight.detach().norm(dim=1)
        assert norms.min() < limit < norms.max()
        with torch.no_grad():
            head.weight.mul_(3.0)
        bias = head.bias.clone()
        long = head.weight.clone()
        for step, shortened in enumerate(at_steps):
            with torch.no_grad():
                head.weight.copy_(long)
            method.after_step([], replace(toys.at(step), steps=2))
            norms = head.weight.detach().norm(dim=1)
            assert bool((norms <= limit * 1.0001).all()) == shortened
            assert torch.equal(head.weight, long) != shortened
        assert torch.equal(head.bias, bias)
        assert float(method.limit) == limit  # that of the stage's begin


def test_the_limit_is_saved_and_a_cosine_classifier_is_refused():
    method = made("weight_balancing")
    assert "limit" in method.state_dict()
    batch = toys.batch()
    out = method.loss(batch, toys.at())
    weights = losses.effective_number_weights(toys.COUNTS, 0.9999)
    torch.testing.assert_close(out.weight, weights[batch.labels].float())
    assert out.divide == "images"
    with pytest.raises(UserError, match="needs a linear classifier"):
        made("weight_balancing", previous="ldam_drw")


# H2T -----------------------------------------------------------------------------------------


def test_fusion_is_the_authors(vector):
    v = vector("h2t_fusion")
    maps, others = double(v["inputs"]["maps"]), double(v["inputs"]["other_maps"])
    before = maps.clone()
    weight, bias = double(v["inputs"]["weight"]), double(v["inputs"]["bias"])
    order = torch.tensor(v["inputs"]["permutation"])
    for i, share in enumerate(v["params"]["shares"]):
        fused = fused_maps(maps, others, order[: int(share * len(order))])
        torch.testing.assert_close(fused, double(v["expected"]["fused"][i]), rtol=0, atol=0)
        logits = F.linear(fused.mean(dim=(2, 3)), weight, bias)
        torch.testing.assert_close(logits, double(v["expected"]["logits"][i]))
    assert torch.equal(maps, before)


def test_the_rate_of_stage_2_is_the_authors(vector):
    v = vector("lr_h2t_stage2")
    stage = get_recipe("h2t_cifar100").stages[1]
    rates = [stage.optim.lr * stage.schedule.factor(e, 10) for e in v["inputs"]["epochs"]]
    assert rates == pytest.approx(v["expected"], rel=v["tolerance"], abs=1e-12)


def test_a_share_of_the_channels_is_of_the_uniform_stream():
    method = made("h2t", share=0.5).eval()
    batch = toys.dressed(toys.batch(), method)
    prepared = method.prepare(batch, toys.at())
    channels = prepared.extra["channels"]
    assert len(channels) == 6
    again = method.prepare(batch, toys.at()).extra["channels"]
    assert torch.equal(channels, again)
    assert not torch.equal(channels, method.prepare(batch, toys.at(1)).extra["channels"])
    out = method.loss(prepared, toys.at())
    assert torch.equal(out.labels, batch.labels)
    own, other = (method.backbone(b.views[0]) for b in (batch, batch.streams["uniform"]))
    features = own.clone()
    features[:, channels] = other[:, channels]
    expected = losses.cross_entropy_rows(method.head(features), batch.labels)
    torch.testing.assert_close(out.rows, expected)


def test_without_a_share_it_is_cross_entropy():
    method = made("h2t", share=0.0).eval()
    batch = method.prepare(toys.dressed(toys.batch(), method), toys.at())
    plain = losses.cross_entropy_rows(method.predict(batch.views[0]), batch.labels)
    torch.testing.assert_close(method.loss(batch, toys.at()).rows, plain)


def test_all_images_of_a_part_of_the_batch_have_the_channels_of_the_whole():
    method = made("h2t").eval()
    whole = method.prepare(toys.dressed(toys.batch(), method), toys.at())
    rows = method.loss(whole, toys.at()).rows
    half = Batch(
        (whole.views[0][:8],),
        whole.labels[:8],
        whole.index[:8],
        streams={
            name: Batch((s.views[0][:8],), s.labels[:8], s.index[:8])
            for name, s in whole.streams.items()
        },
    )
    part = method.loss(method.prepare(half, toys.at()), toys.at()).rows
    torch.testing.assert_close(part, rows[:8])


@pytest.mark.usefixtures("no_picture")
def test_a_run_ends_with_weights_within_the_limit(tmp_path):
    """The trainer tells which step is the last of an epoch, the stage's last epoch included."""
    recipe = get_recipe(
        *("weight_balancing_cifar100", "data=digits_lt", "data.imbalance_ratio=5"),
        *("data.image_size=8", "backbone={name: resnet20_cifar, args: {widths: [4, 8, 16]}}"),
        *("stages.0.epochs=2", "stages.0.batch_size=300", "stages.1.epochs=2"),
        *("stages.1.batch_size=300", "stages.1.optim.lr=1.0", "stages.1.optim.weight_decay=0"),
        *("stages.1.schedule=constant", "run.device=cpu", "run.threads=1", "run.eval_every=9"),
        f"out={tmp_path}",
    )
    method = load(run(recipe).folder)
    norms = method.head.weight.detach().norm(dim=1)
    assert float(norms.max()) == pytest.approx(float(method.limit), rel=1e-5)
