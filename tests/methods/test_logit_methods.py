"""Focal, class-balanced, VS, LADE, GCL and DisAlign: values of the authors' code and limits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ltbench import get_recipe, losses
from ltbench.config import validation
from ltbench.data.base import DatasetInfo
from ltbench.errors import UserError
from ltbench.losses import logits as maths
from ltbench.methods import METHODS
from ltbench.methods.base import Batch
from ltbench.models.backbone import Backbone
from ltbench.models.heads import CosineHead

COUNTS = [500, 120, 30, 5]


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(name, counts=COUNTS, features=4, previous=None, backbone=None, **options):
    info = DatasetInfo("toy", tuple(counts), tuple(str(k) for k in range(len(counts))))
    backbone = backbone or Backbone.from_stages({"front": nn.Identity()}, num_features=features)
    cls = METHODS.get(name)
    return cls(validation.build_options("METHODS", name, options), backbone, info, previous)


def bare(x, labels) -> Batch:
    x, labels = torch.tensor(x), torch.tensor(labels)
    return Batch((x,), labels, torch.arange(len(x)))


def close(actual, expected, tolerance: float) -> None:
    expected = torch.as_tensor(np.array(expected), dtype=actual.dtype)
    assert actual.shape == expected.shape
    assert ((actual - expected).abs() <= tolerance * expected.abs().clamp(min=1)).all()


def problem(seed: int = 0):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(size=(9, 4)) * 3), torch.tensor(rng.integers(4, size=9))


# Vectors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gcl_stage1", "gcl_stage2"])
def test_gcl_vectors(double, vector, name):
    v = {"gcl_stage1": vector("gcl_stage1"), "gcl_stage2": vector("gcl_stage2")}[name]
    i, p = v["inputs"], v["params"]
    labels, noise = torch.tensor(i["labels"]), torch.tensor(i["abs_noise"])
    scaled = p["s"] * torch.tensor(i["cosine"])
    lowered = p["noise_mul"] * noise * maths.cloud_sizes(i["counts"])
    rows = maths.gcl_rows(scaled, labels, lowered, p["s"], p["m"], p.get("gamma", 0.0))
    close(rows.mean(), v["expected"], v["tolerance"])
    # Through the method, with its defaults: they are those of CIFAR.
    method = make(name.replace("_stage1", ""), i["counts"], previous=make("gcl", i["counts"]))
    assert method.config.scale == p["s"]
    method.head = nn.Identity()
    batch = bare(scaled.tolist(), i["labels"])
    batch = dataclasses.replace(batch, extra={"noise": noise, "partner_noise": noise})
    out = method.loss(batch, toys.at())
    close(out.rows.sum() / out.images, v["expected"], v["tolerance"])
    assert torch.equal(out.logits, scaled)  # curves show predictions, without noise or margin


@pytest.mark.parametrize("name", ["lade_loss", "lade_loss_absent_class"])
def test_lade_regulariser_vectors(double, vector, name):
    v = {
        "lade_loss": vector("lade_loss"),
        "lade_loss_absent_class": vector("lade_loss_absent_class"),
    }[name]
    i, lam = v["inputs"], v["params"]["remine_lambda"]
    found = maths.lade_regulariser(
        torch.tensor(i["logits"]), torch.tensor(i["labels"]), i["counts"], lam
    )
    close(found, v["expected"], v["tolerance"])
    method = make("lade", i["counts"], lam=lam, alpha=0.5)
    method.head = nn.Identity()
    shared = method.loss(bare(i["logits"], i["labels"]), toys.at()).shared
    close(shared, 0.5 * v["expected"], v["tolerance"])


def test_lade_cross_entropy_vector(double, vector):
    v = vector("lade_ce")
    i = v["inputs"]
    method = make("lade", i["counts"], alpha=0.0)
    method.head = nn.Identity()
    out = method.loss(bare(i["logits"], i["labels"]), toys.at())
    assert out.shared is None
    close(out.rows.mean(), v["expected"], v["tolerance"])


@pytest.mark.parametrize("form", ["code", "paper"])
def test_disalign_vectors(double, vector, form):
    v = {"code": vector("disalign_code"), "paper": vector("disalign_paper")}[form]
    i = v["inputs"]
    z, c = torch.tensor(i["logits"]), torch.tensor(i["confidence"])[:, None]
    scale, bias = torch.tensor(i["scale"]), torch.tensor(i["bias"])
    close(maths.disalign_logits(z, c, scale, bias, form), v["expected"], v["tolerance"])
    counts = [3, 2, 1]
    method = make("disalign", counts, 3, previous=make("ce", counts, 3), form=form)
    method.head.head = nn.Identity()
    with torch.no_grad():
        method.head.scale.copy_(scale)
        method.head.bias.copy_(bias)
        method.head.confidence.weight.zero_()
        method.head.confidence.bias.copy_(c[0].logit())
    close(method.predict(z), v["expected"], v["tolerance"])


def test_disalign_weights_vector(double, vector):
    v = vector("disalign_grw")
    i, rho = v["inputs"], v["params"]["rho"]
    close(maths.generalised_weights(i["counts"], rho), v["expected"]["weights"], v["tolerance"])
    method = make("disalign", i["counts"], previous=make("ce", i["counts"]), rho=rho)
    method.head = nn.Identity()
    out = method.loss(bare(i["logits"], i["labels"]), toys.at())
    assert out.divide == "weight"
    found = (out.weight * out.rows).sum() / out.weight.sum()
    close(found, v["expected"]["loss"], v["tolerance"])


# Against formulas written in NumPy -----------------------------------------------------------


def test_focal_and_vs_agree_with_numpy():
    z, y = problem()
    nz, ny, n = z.numpy(), y.numpy(), np.array(COUNTS)
    p = (np.exp(nz) / np.exp(nz).sum(1, keepdims=True))[np.arange(9), ny]
    close(maths.focal_rows(z, y, 1.7), -((1 - p) ** 1.7) * np.log(p), 1e-12)
    adjusted = np.exp(nz * (n / n.max()) ** 0.15 + 1.25 * np.log(n / n.sum()))
    expected = -np.log(adjusted[np.arange(9), ny] / adjusted.sum(1))
    found = maths.vs_rows(z, y, maths.vs_scale(COUNTS, 0.15), maths.vs_offset(COUNTS, 1.25))
    close(found, expected, 1e-12)


def test_focal_gradient_is_that_of_the_whole_product_unless_detached():
    z, y = problem(1)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: maths.focal_rows(x, y, 0.5), (z,))
    log_p = -losses.cross_entropy_rows(z, y)
    factor = (1 - log_p.exp()).detach() ** 2
    (expected,) = torch.autograd.grad((-factor * log_p).sum(), z)
    (found,) = torch.autograd.grad(maths.focal_rows(z, y, 2.0, detach=True).sum(), z)
    close(found, expected.numpy(), 1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_have_finite_losses_and_gradients(dtype, gamma):
    start = torch.tensor([[6e4, -6e4, 0, 0], [6e4, -6e4, 6e4, 0], [0, 0, 0, 0]], dtype=dtype)
    y = torch.tensor([0, 1, 3])
    scale, offset = maths.vs_scale([10**6, 9, 3, 1], 0.3), maths.vs_offset([10**6, 9, 3, 1], 3.0)
    for loss in (
        lambda z: maths.focal_rows(z, y, gamma),
        lambda z: maths.vs_rows(z, y, scale, offset),
        lambda z: maths.gcl_rows(z, y, torch.rand(3, 4), focus=gamma),
        lambda z: maths.lade_regulariser(z, y, COUNTS, 0.01),
    ):
        z = start.clone().requires_grad_()
        out = loss(z)
        assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        out.sum().backward()
        assert torch.isfinite(out).all()
        assert torch.isfinite(z.grad).all()


# Limits --------------------------------------------------------------------------------------


def test_limits_are_known_losses():
    z, y = problem(2)
    plain = losses.cross_entropy_rows(z, y).numpy()
    one, zero = maths.vs_scale(COUNTS, 0.0), maths.vs_offset(COUNTS, 0.0)
    close(maths.focal_rows(z, y, 0.0), plain, 1e-12)
    close(maths.vs_rows(z, y, one, zero), plain, 1e-12)
    balanced = losses.balanced_softmax_rows(z, y, COUNTS).numpy()
    close(maths.vs_rows(z, y, one, maths.vs_offset(COUNTS, 1.0)), balanced, 1e-12)
    close(maths.gcl_rows(z, y, torch.zeros(9, 4)), plain, 1e-12)
    margins = torch.full((4,), 0.1, dtype=torch.float64)
    ldam = losses.ldam_rows(z, y, margins, 20.0).numpy()
    close(maths.gcl_rows(z, y, torch.zeros(9, 4), 20.0, margin=0.1), ldam, 1e-12)
    close(maths.cloud_sizes([7, 7, 7]), [0, 0, 0], 0)
    assert maths.cloud_sizes(COUNTS)[[0, 3]].tolist() == [0, 1]
    c, ones, nought = torch.rand(9, 1).double(), torch.ones(4), torch.zeros(4)
    close(maths.disalign_logits(z, c, ones, nought, "paper"), z.numpy(), 1e-12)
    close(maths.disalign_logits(z, c, ones, nought, "code"), ((1 + c) * z).numpy(), 1e-12)
    close(maths.generalised_weights(COUNTS, 0.0), [1] * 4, 1e-12)
    assert maths.lade_regulariser(z[:0], y[:0], COUNTS).item() == 0  # a rank without images


def test_class_weights_begin_when_asked():
    batch = toys.batch()
    weights = losses.effective_number_weights(toys.COUNTS, 0.9999).float()
    for start, epoch, weighted in [(0, 0, True), (3, 2, False), (3, 3, True), (None, 9, False)]:
        method = make(
            "class_balanced", toys.COUNTS, backbone=toys.backbone(), reweight_from=start, gamma=1.0
        )
        out = method.loss(batch, toys.at(epoch=epoch))
        assert out.divide == "images"
        assert (out.weight is not None) == weighted
        if weighted:
            assert torch.equal(out.weight, weights[batch.labels])
    assert weights.sum().item() == pytest.approx(len(toys.COUNTS))


# GCL's noise and classifier ------------------------------------------------------------------


def test_gcl_noise_follows_the_counters_and_differs_between_labels():
    method = toys.method("gcl")
    first = method.prepare(toys.batch(), toys.at(2))
    torch.manual_seed(99)  # global random state is not asked
    again = method.prepare(toys.batch(), toys.at(2))
    noise, other = first.extra["noise"], first.extra["partner_noise"]
    assert torch.equal(noise, again.extra["noise"])
    assert torch.equal(other, again.extra["partner_noise"])
    assert noise.shape == other.shape == (24, 4)
    assert not torch.equal(noise, other)
    assert not torch.equal(noise, method.prepare(toys.batch(), toys.at(3)).extra["noise"])
    assert torch.equal(method.loss(first, toys.at(2)).rows, method.loss(first, toys.at(2)).rows)
    many = method.prepare(toys.batch(5000), toys.at()).extra["noise"]
    assert 0 <= many.min() < many.max() == 1  # three deviations and more are cut
    assert many.mean().item() == pytest.approx(np.sqrt(2 / np.pi) / 3, rel=0.03)


def test_gcl_without_mixup_has_no_partners_and_with_it_each_label_has_its_share():
    assert make("gcl", toys.COUNTS, 12, alpha=0.0).prepare(toys.batch(), toys.at()).partner is None
    method = toys.method("gcl")
    batch = method.prepare(toys.batch(), toys.at())
    swapped = dataclasses.replace(
        batch,
        labels=batch.partner,
        partner=batch.labels,
        lam=1 - batch.lam,
        extra={"noise": batch.extra["partner_noise"], "partner_noise": batch.extra["noise"]},
    )
    out, mirror = method.loss(batch, toys.at()), method.loss(swapped, toys.at())
    torch.testing.assert_close(out.rows, mirror.rows)
    assert torch.equal(out.labels, toys.batch().labels)
    alone = method.loss(batch.unmixed(), toys.at()).rows
    whole = dataclasses.replace(batch, lam=1.0)
    torch.testing.assert_close(method.loss(whole, toys.at()).rows, alone)


def test_gcl_stage2_goes_on_from_a_cosine_under_its_own_scale():
    first = make("gcl", toys.COUNTS, backbone=toys.backbone())
    second = make("gcl_stage2", toys.COUNTS, previous=first, backbone=first.backbone)
    assert second.head.weight is first.head.weight
    assert (first.head.scale, second.head.scale) == (30.0, 20.0)
    x = toys.batch().views[0]
    torch.testing.assert_close(second.eval().predict(x), first.eval().predict(x) / 1.5)
    ce = make("ce", toys.COUNTS, backbone=toys.backbone())
    anew = make("gcl_stage2", toys.COUNTS, previous=ce, backbone=ce.backbone)
    assert isinstance(anew.head, CosineHead)
    other = make("gcl", toys.COUNTS, features=7)
    with pytest.raises(UserError, match="12 features"):
        make("gcl_stage2", toys.COUNTS, previous=other, backbone=toys.backbone())


def test_gcl_stage2_can_mix_labels_alone():
    first = make("gcl", toys.COUNTS, backbone=toys.backbone())
    plain = toys.batch()
    made = {
        mix: make("gcl_stage2", toys.COUNTS, previous=first, backbone=first.backbone, mix=mix)
        for mix in ("images_and_labels", "labels")
    }
    both, labels = (method.prepare(plain, toys.at()) for method in made.values())
    assert torch.equal(labels.views[0], plain.views[0])
    assert not torch.equal(both.views[0], plain.views[0])
    assert labels.lam == both.lam
    assert torch.equal(labels.partner, both.partner)
    assert torch.equal(labels.extra["noise"], both.extra["noise"])
    method = made["labels"].eval()  # one row per image as it is: both labels, each with its share
    own, other = (
        method.loss(
            dataclasses.replace(plain, labels=y, extra={"noise": labels.extra[noise]}), toys.at()
        ).rows
        for y, noise in ((plain.labels, "noise"), (labels.partner, "partner_noise"))
    )
    torch.testing.assert_close(
        method.loss(labels, toys.at()).rows, labels.lam * own + (1 - labels.lam) * other
    )


def test_what_gcl_mixes_counts_in_the_digest_only_where_it_is_not_the_default():
    plain = get_recipe("gcl_places_lt")
    assert plain.stages[1].method.config.mix == "images_and_labels"
    assert "mix" not in plain.tree(digest_only=True)["stages"][1]["method"]
    released = get_recipe("gcl_places_lt_released")
    assert released.tree(digest_only=True)["stages"][1]["method"]["mix"] == "labels"
    assert released.digest != plain.digest


def test_disalign_trains_its_calibration_only():
    method = toys.method("disalign")
    trained = {
        n
        for n, _ in method.named_parameters()
        if not any(f"{n}.".startswith(f"{p}.") for p in method.freeze)
    }
    assert trained == {
        "head.scale",
        "head.bias",
        "head.confidence.weight",
        "head.confidence.bias",
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("focal", {"gamma": -1}),
        ("class_balanced", {"beta": 1.0}),
        ("class_balanced", {"divide": "classes"}),
        ("class_balanced", {"reweight_from": -1}),
        ("vs", {"gamma": -0.1}),
        ("vs", {"tau": -0.1}),
        ("lade", {"alpha": -1}),
        ("lade", {"lam": -1}),
        ("gcl", {"alpha": -1}),
        ("gcl", {"scale": 0}),
        ("gcl_stage2", {"margin": -0.1}),
        ("gcl_stage2", {"mix": "images"}),
        ("disalign", {"form": "both"}),
        ("disalign", {"rho": -1}),
    ],
)
def test_nonsensical_options_are_refused(name, options):
    with pytest.raises(UserError):
        validation.build_options("METHODS", name, options)


@pytest.mark.parametrize(
    "call",
    [
        lambda z, y: maths.focal_rows(z, y, -1.0),
        lambda z, y: maths.vs_scale(COUNTS, -1.0),
        lambda z, y: maths.vs_offset(COUNTS, -1.0),
        lambda z, y: maths.lade_regulariser(z, y, COUNTS, -1.0),
        lambda z, y: maths.gcl_rows(z, y, z, scale=0.0),
        lambda z, y: maths.gcl_rows(z, y, z, margin=-1.0),
        lambda z, y: maths.gcl_rows(z, y, z, focus=-1.0),
        lambda z, y: maths.disalign_logits(z, z, z, z, "both"),
        lambda z, y: maths.generalised_weights(COUNTS, -1.0),
    ],
)
def test_nonsensical_values_are_refused(call):
    with pytest.raises(ValueError, match="`"):
        call(*problem())
