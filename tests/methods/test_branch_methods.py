from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch.nn import functional as F

from ltbench.config import validation
from ltbench.errors import UserError
from ltbench.losses import (
    branches,
    cross_entropy_rows,
    effective_number_weights,
    experts,
    ldam_margins,
)
from ltbench.methods import METHODS
from ltbench.methods.base import Batch
from ltbench.methods.ride import mean_share
from ltbench.models.backbone import Backbone
from ltbench.updates.base import weighted_sum


def tensor(x):
    dtype = torch.int64 if isinstance(np.asarray(x).flat[0], np.integer) else torch.float64
    return torch.tensor(x, dtype=dtype)


def close(actual, expected, tolerance: float) -> None:
    actual = torch.as_tensor(actual, dtype=torch.float64).detach()
    torch.testing.assert_close(actual, tensor(expected), atol=tolerance, rtol=tolerance)


def scalar(method, batch, at) -> torch.Tensor:
    """The loss of a step on one batch, in one process."""
    total, divisor = weighted_sum(method.loss(method.prepare(batch, at), at))
    return total / divisor


def build(name: str, backbone: Backbone | None = None, previous=None, **options):
    given = validation.build_options("METHODS", name, {**toys.OPTIONS.get(name, {}), **options})
    net = toys.backbone() if backbone is None else backbone
    return METHODS.get(name)(given, net, toys.INFO, previous)


# BBN -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bbn_mix_e1_T200", "bbn_mix_e100_T200", "bbn_mix_e90_T180"])
def test_bbn_vectors(vector, name):
    v = vector(name)
    i = {key: tensor(value) for key, value in v["inputs"].items()}
    horizon = branches.bbn_horizon(v["params"]["max_epoch"])
    alpha = branches.bbn_alpha(v["params"]["epoch"], horizon)
    close(alpha, v["expected"]["alpha"], v["tolerance"])
    features = branches.bbn_features(i["feat_conv"], i["feat_rebal"], alpha)
    z = F.linear(features, i["weight"], i["bias"])
    first, second = (cross_entropy_rows(z, i[key]).mean() for key in ("y_conv", "y_rebal"))
    close(alpha * first + (1 - alpha) * second, v["expected"]["loss"], v["tolerance"])


def test_bbn_rows_are_the_formula_and_each_belongs_to_its_own_image():
    method, at = toys.method("bbn").double(), toys.at(epoch=3)
    batch = toys.dressed(toys.batch(), method)
    other = batch.streams["reversed"]
    batch = Batch(
        (batch.views[0].double(),),
        batch.labels,
        batch.index,
        streams={
            "reversed": type(other)((other.views[0].double(),), 3 - other.labels, other.index)
        },
    )
    other = batch.streams["reversed"]
    alpha = 1 - (3 / 5) ** 2
    conventional = method.branches(batch.views[0])[:, 0]
    balanced = method.branches(other.views[0])[:, 1]
    z = method.head(torch.cat([2 * alpha * conventional, 2 * (1 - alpha) * balanced], dim=1))
    expected = alpha * F.cross_entropy(z, batch.labels)
    expected = expected + (1 - alpha) * F.cross_entropy(z, other.labels)
    torch.testing.assert_close(scalar(method, batch, at), expected)
    out = method.loss(batch, at)
    assert torch.equal(out.labels, torch.cat([batch.labels, 3 - batch.labels]))
    assert (out.images, len(out.rows)) == (24, 48)


@pytest.mark.parametrize(("epoch", "moving"), [(0, False), (1, True)])
def test_the_second_branch_of_bbn_waits_for_the_first_epoch(epoch, moving):
    method = toys.method("bbn")
    scalar(method, toys.dressed(toys.batch(), method), toys.at(epoch=epoch)).backward()
    assert any(p.grad.any() for p in method.branches.parameters()) == moving
    assert all(p.grad.any() for p in method.backbone.net.layer2.parameters() if p.dim() > 1)


def test_the_schedule_of_bbn_ends_with_the_stage_or_with_the_hundred():
    batch = toys.dressed(toys.batch(), toys.method("bbn"))
    for horizon, last in (("stage", 1 - (4 / 5) ** 2), ("hundreds", 1 - (4 / 100) ** 2)):
        weight = build("bbn", horizon=horizon).loss(batch, toys.at(epoch=4)).weight
        torch.testing.assert_close(weight, torch.tensor([last] * 24 + [1 - last] * 24))


def test_bbn_refuses_epochs_out_of_range():
    for epoch in (0, 6):
        with pytest.raises(ValueError, match="epoch"):
            branches.bbn_alpha(epoch, 5)


# ResLT ---------------------------------------------------------------------------------------


def reslt_case(v):
    i = {key: tensor(value) for key, value in v["inputs"].items()}
    z = torch.stack([i["head"], i["medium"], i["tail"]], dim=1)
    groups = [torch.zeros(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)]
    for group, key in zip(groups, ("medium_tail", "tail"), strict=True):
        group[v["params"][key]] = True
    return z, i["labels"], *groups


def test_reslt_loss_vector(vector):
    v = vector("reslt_loss")
    case = reslt_case(v)
    for beta, key in ((1.0, "ice"), (0.0, "fce"), (v["params"]["beta"], "loss")):
        close(branches.reslt_rows(*case, beta).mean(), v["expected"][key], v["tolerance"])


def test_reslt_eval_logits_vector(vector):
    v = vector("reslt_eval_logits")
    i = {key: tensor(value) for key, value in v["inputs"].items()}
    features = torch.stack([i["head_feature"], i["medium_feature"], i["tail_feature"]])[None]
    logits = branches.reslt_normalised_logits(features, i["weight"], v["params"]["gamma"])
    close(logits[0], v["expected"], v["tolerance"])


def test_rarest_classes_are_found_by_count_and_of_equals_by_index():
    assert branches.rarest_classes([5, 9, 5, 5, 1], 3).tolist() == [True, False, True, False, True]
    assert not branches.rarest_classes([5, 9], 0).any()
    with pytest.raises(ValueError, match="found 3"):
        branches.rarest_classes([5, 9], 3)


def test_reslt_gives_each_branch_its_classes():
    method = build("reslt", medium_and_tail=2, tail=1, beta=1.0)
    batch, norms = toys.batch(), method.head.block
    out = method.loss(batch, toys.at())
    for k, trained in enumerate([(0,), (0,), (0, 1), (0, 1, 2)]):
        chosen = out.rows[batch.labels == k].sum()
        grads = torch.autograd.grad(chosen, [norm.weight for norm in norms], retain_graph=True)
        assert [bool(g.any()) for g in grads] == [b in trained for b in range(3)]


def test_reslt_loss_is_the_formula_on_the_batch():
    method, batch = build("reslt", beta=0.7).eval(), toys.batch()
    maps = method.backbone.maps(batch.views[0])
    z = [method.head.classifier(norm(maps).mean((2, 3))) for norm in method.head.block]
    y, total, number = batch.labels, torch.zeros(()), 0
    for branch, classes in zip(z, [(0, 1, 2, 3), (1, 2, 3), (3,)], strict=True):
        own = torch.isin(y, torch.tensor(classes))
        p = branch.softmax(1)[torch.arange(24), y][own]
        total, number = total - (p + 1e-7).log().sum(), number + int(own.sum())
    expected = 0.7 * total / number + 0.3 * F.cross_entropy(sum(z), y)
    torch.testing.assert_close(scalar(method, batch, toys.at()), expected)


@pytest.mark.parametrize("block", ["bn", "conv1x1"])
def test_reslt_has_no_branch_for_no_class(block):
    torch.manual_seed(0)
    method, batch = build("reslt", block=block, tail=0, beta=0.7).eval(), toys.batch()
    maps = method.backbone.maps(batch.views[0])
    with torch.no_grad():
        z = method.head(method.head.split(maps).mean((3, 4)))
    assert z.shape == (24, 2, 4)
    torch.testing.assert_close(method.predict(batch.views[0]), z[:, 0] + z[:, 1])
    y = batch.labels
    own = y > 0  # the three rarest of the four classes
    p = z.softmax(2)[torch.arange(24), :, y] + 1e-7
    total = p[:, 0].log().sum() + p[own, 1].log().sum()
    expected = -0.7 * total / (24 + own.sum()) + 0.3 * F.cross_entropy(z.sum(1), y)
    torch.testing.assert_close(scalar(method, batch, toys.at()), expected)


def test_the_fused_loss_of_reslt_has_a_floor_where_asked():
    method = build("reslt", beta=0.0, fused_floor=True)
    with torch.no_grad():
        method.head.classifier.bias[0] = 100.0  # the other classes have no probability
    batch = toys.batch()
    rows = method.loss(batch, toys.at()).rows
    torch.testing.assert_close(rows[batch.labels > 0].max(), -torch.tensor(1e-7).log())


def test_the_convolution_of_reslt_starts_kaiming_normal_over_its_outputs():
    torch.manual_seed(0)
    weight = build("reslt", block="conv1x1").head.block[0].weight
    assert weight.std().item() == pytest.approx((2 / 36) ** 0.5, rel=0.1)


@pytest.mark.parametrize("block", ["bn", "conv1x1"])
def test_reslt_evaluates_before_pooling_unless_asked(block):
    torch.manual_seed(0)
    before = build("reslt", block=block)
    after = build("reslt", before.backbone, block=block, eval_after_pooling=True)
    after.head = before.head
    x, y = toys.images(24, size=32)
    before.loss(Batch((x,), y, y), toys.at())  # moves the running statistics
    a, b = before.eval().predict(x), after.eval().predict(x)
    same = torch.allclose(a, b, atol=1e-5)
    assert same == (block == "bn")  # an affine map and a mean commute, a ReLU and a mean do not
    assert torch.equal(after.export().eval()(x), b)


def test_reslt_with_gamma_leaves_out_norms_and_bias():
    method = build("reslt", gamma=1.0).eval()
    x = toys.batch().views[0]
    before = method.predict(x)
    with torch.no_grad():
        method.head.classifier.bias += 1.0
        method.head.classifier.weight *= 3.0
    torch.testing.assert_close(method.predict(x), before)
    assert torch.equal(method.export()(x), method.predict(x))


def test_reslt_groups():
    assert build("reslt").config.group_sizes(100) == (65, 30)
    assert build("reslt", tail=0).config.group_sizes(100) == (65, 0)
    assert build("reslt", medium_and_tail=2).config.group_sizes(100) == (2, 2)
    with pytest.raises(UserError, match="at most medium_and_tail"):
        build("reslt", medium_and_tail=1, tail=2)
    with pytest.raises(UserError, match="number of classes"):
        build("reslt", medium_and_tail=5)


# RIDE ----------------------------------------------------------------------------------------


def ride_case(v):
    logits = tensor(v["inputs"]["experts"]).transpose(0, 1)
    return logits, tensor(v["inputs"]["labels"]), v["inputs"]["counts"], v["params"]


def ride_loss(logits, labels, counts, params, reweighted):
    weights, temperatures = torch.ones(4).double(), torch.ones(4).double()
    if reweighted:
        weights = effective_number_weights(counts)
        temperatures = experts.ride_temperatures(counts, params["reweight_factor"])
    rows = experts.expert_ldam_rows(logits, labels, ldam_margins(counts))
    rows = rows * mean_share(weights, labels)
    factor = params["additional_diversity_factor"]
    return (rows + factor * experts.diversity_rows(logits, temperatures)).mean()


def test_ride_vector_without_weights(vector):
    v = vector("ride_loss_weighted")
    close(ride_loss(*ride_case(v), reweighted=False), v["expected"], v["tolerance"])


def test_ride_vector_with_weights(vector):
    v = vector("ride_loss_reweighted")
    close(ride_loss(*ride_case(v), reweighted=True), v["expected"], v["tolerance"])


def test_ride_temperatures_fall_towards_rare_classes():
    t = experts.ride_temperatures([500, 120, 30, 5], 0.5)
    assert t[0] == 1
    assert (t.diff() < 0).all()
    assert torch.equal(experts.ride_temperatures([500, 5], 0.0), torch.ones(2).double())


def test_equal_experts_have_no_diversity_and_others_do():
    z = torch.randn(5, 1, 4)
    t = torch.tensor([1.0, 0.9, 0.8, 0.7])
    torch.testing.assert_close(experts.diversity_rows(z.expand(5, 3, 4), t), torch.zeros(5))
    assert (experts.diversity_rows(torch.randn(5, 3, 4), t) > 0).all()


def test_ride_changes_its_loss_at_the_epoch_that_is_asked_for():
    method = build("ride", reweight_from=2).eval()
    batch = toys.batch()
    losses = [scalar(method, batch, toys.at(epoch=e)).item() for e in range(4)]
    assert losses[0] == losses[1] != losses[2] == losses[3]


@pytest.mark.parametrize("count", [2, 4])
def test_ride_has_as_many_experts_as_asked_for(count):
    method = build("ride", experts=count).eval()
    x = toys.batch().views[0]
    each = method.expert_logits(x)
    assert each.shape == (24, count, 4)
    assert torch.equal(method.predict(x), each.mean(dim=1))
    assert not torch.allclose(each[:, 0], each[:, 1])


# SADE ----------------------------------------------------------------------------------------


def test_sade_loss_vector(vector):
    v = vector("sade_loss")
    logits = torch.stack([tensor(v["inputs"][f"expert{e}"]) for e in (1, 2, 3)], dim=1)
    offsets = experts.sade_offsets(v["inputs"]["counts"], v["params"]["tau"])
    rows = experts.sade_rows(logits, tensor(v["inputs"]["labels"]), offsets)
    close(rows.mean(), v["expected"], v["tolerance"])


def test_sade_inverse_prior_vector(vector):
    v = vector("sade_inverse_prior")
    close(experts.sade_inverse_prior(v["inputs"]["counts"]), v["expected"], v["tolerance"])


@pytest.mark.parametrize("counts", [[9, 9, 4, 1], [5, 2, 2], [2, 7, 2, 30, 7, 7, 1]])
def test_of_classes_of_equal_size_the_lower_label_has_the_larger_reversed_share(counts):
    rising, n = sorted(counts), len(counts)
    for label, share in enumerate(experts.sade_inverse_prior(counts).tolist()):
        smaller = sum((size, k) < (counts[label], label) for k, size in enumerate(counts))
        assert share == pytest.approx(rising[n - 1 - smaller] / sum(counts), rel=1e-12)


def test_sade_test_time_similarity_vector(vector):
    v = vector("sade_test_time_similarity")
    a, b = (tensor(v["inputs"][key]).transpose(0, 1) for key in ("view_a", "view_b"))
    found = experts.sade_test_time_similarity(a, b, tensor(v["inputs"]["raw_weights"]))
    close(found, v["expected"], v["tolerance"])


def test_with_equal_counts_the_experts_of_sade_differ_by_a_constant():
    z, y = torch.randn(6, 1, 4).double().expand(6, 3, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    rows = experts.sade_rows(z, y, experts.sade_offsets([7, 7, 7, 7]))
    torch.testing.assert_close(rows, 3 * F.cross_entropy(z[:, 0], y, reduction="none"))


def test_learnt_weights_prefer_the_steady_expert():
    torch.manual_seed(0)
    steady = 3 * torch.randn(400, 1, 5)
    first, second = (torch.cat([steady, 3 * torch.randn(400, 2, 5)], dim=1) for _ in range(2))
    weights = experts.sade_expert_weights(first, second)
    assert weights.argmax() == 0
    assert weights[0] > 0.4
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    nothing = experts.sade_expert_weights(first[:0], second[:0])
    torch.testing.assert_close(nothing, torch.full((3,), 1 / 3))
    equal = experts.sade_expert_weights(first, first)  # nothing to tell them apart by
    torch.testing.assert_close(equal, torch.full((3,), 1 / 3), atol=1e-3, rtol=0)


def test_the_third_expert_of_sade_favours_rare_classes_on_equal_evidence():
    offsets = experts.sade_offsets(toys.COUNTS)
    z = torch.zeros(1, 3, 4, dtype=torch.float64, requires_grad=True)
    experts.sade_rows(z, torch.tensor([3]), offsets).sum().backward()
    push = -z.grad[0, :, 3]  # how much an image of the rarest class raises its own logit
    assert push[0] < push[1] < push[2]


# All -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bbn", "ride", "sade"])
def test_a_trained_backbone_gives_its_weights_to_all_branches(name):
    ce = toys.method("ce")
    method = build(name, ce.backbone, ce)
    x = toys.batch().views[0]
    features = method.eval().branches(x)
    assert torch.equal(features[:, 0], features[:, 1])
    assert method.head is not ce.head


@pytest.mark.parametrize("name", ["bbn", "reslt", "ride", "sade"])
def test_rows_are_at_least_single_precision_under_autocast(name):
    method = toys.method(name)
    batch = toys.dressed(toys.batch(), method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = method.loss(batch, toys.at())
    assert out.rows.dtype == torch.float32
    assert torch.isfinite(out.rows).all()
