from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from torch import nn

import ltbench
from ltbench.config import validation
from ltbench.data.base import DatasetInfo
from ltbench.errors import UserError
from ltbench.methods import METHODS
from ltbench.methods.base import Batch, Progress
from ltbench.methods.ce import CE
from ltbench.methods.mixup import mix
from ltbench.methods.plot_stage2 import class_directions
from ltbench.models.backbone import Backbone
from ltbench.models.heads import CosineHead, LinearHead, ScaledHead

ALL = toys.STAGE1 + toys.STAGE2 + toys.POSTHOC


def make(name, backbone, counts, previous=None, **options):
    info = DatasetInfo("toy", tuple(counts), tuple(str(k) for k in range(len(counts))))
    cls = METHODS.get(name)
    return cls(validation.build_options("METHODS", name, options), backbone, info, previous)


def identity(features: int) -> Backbone:
    return Backbone.from_stages({"front": nn.Identity()}, num_features=features)


def linear(counts, weight, bias=None):
    """A CE method on bare features whose classifier is given."""
    weight = torch.tensor(weight)
    method = make("ce", identity(weight.shape[1]), counts)
    with torch.no_grad():
        method.head.weight.copy_(weight)
        method.head.bias.copy_(torch.zeros(len(weight)) if bias is None else torch.tensor(bias))
    return method


def bare(x, labels) -> Batch:
    x, labels = torch.tensor(x), torch.tensor(labels)
    return Batch((x,), labels, torch.arange(len(x)))


def stepped(epoch: int, epochs: int = 200, seed: int = 0, step: int = 0) -> Progress:
    return Progress(seed=seed, stage=0, epoch=epoch, epochs=epochs, step=step)


def close(actual, expected, tolerance: float) -> None:
    expected = torch.as_tensor(np.array(expected), dtype=actual.dtype)
    assert actual.shape == expected.shape
    assert ((actual - expected).abs() <= tolerance * expected.abs().clamp(min=1)).all()


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# Vectors -------------------------------------------------------------------------------------


def test_mixup_inputs_vector(double, vector):
    v = vector("mixup_inputs")
    i = v["inputs"]
    mixed = mix(bare(i["x"], i["labels"]), i["lam"], torch.tensor(i["perm"]))
    close(mixed.views[0], v["expected"]["x"], v["tolerance"])
    assert mixed.partner.tolist() == v["expected"]["yb"]
    assert mixed.labels.tolist() == i["labels"]
    assert mixed.lam == i["lam"]


def test_mixup_loss_vector(double, vector):
    v = vector("mixup_loss")
    i = v["inputs"]
    method = linear([1] * 4, np.eye(4))  # logits are the features
    batch = dataclasses.replace(
        bare(i["logits"], i["labels_a"]), partner=torch.tensor(i["labels_b"]), lam=i["lam"]
    )
    mixup = make("mixup", method.backbone, [1] * 4, method)
    close(mixup.loss(batch, toys.at()).rows.mean(), v["expected"], v["tolerance"])


def test_cosine_classifier_vector(double, vector):
    v = vector("normed_linear")
    method = make("ldam_drw", identity(2), [9, 3, 1], scale=30.0)
    with torch.no_grad():
        method.head.weight.copy_(torch.tensor(v["inputs"]["weight"]))
    logits = method.predict(torch.tensor(v["inputs"]["features"]))
    close(logits / 30, v["expected"], v["tolerance"])


@pytest.mark.parametrize(("name", "epoch"), [("ldam_loss_phase1", 159), ("ldam_loss_phase2", 160)])
def test_ldam_drw_vectors(double, vector, name, epoch):
    v = vector(name)
    i, p = v["inputs"], v["params"]
    method = make("ldam_drw", identity(4), i["counts"], max_margin=p["max_m"], scale=p["s"])
    method.head = nn.Identity()
    rows = method.loss(bare(p["s"] * np.array(i["cosine"]), i["labels"]), stepped(epoch))
    assert rows.divide == "weight"
    weight = torch.ones_like(rows.rows) if rows.weight is None else rows.weight
    close((weight * rows.rows).sum() / weight.sum(), v["expected"], v["tolerance"])


@pytest.mark.parametrize(
    ("name", "method", "options"),
    [
        ("balanced_softmax", "balanced_softmax", {}),
        ("logit_adjust_loss_tau1", "logit_adjustment", {"tau": 1.0}),
        ("logit_adjust_loss_tau2", "logit_adjustment", {"tau": 2.0}),
        ("las_loss_concave", "mislas", {"smooth_head": 0.4, "smooth_tail": 0.1}),
        ("ce_mean", "ce", {}),
    ],
)
def test_loss_vectors_through_methods(double, vector, name, method, options):
    v = vector(name)
    i = v["inputs"]
    counts = i.get("counts", [1] * 4)
    ce = linear(counts, np.eye(4))
    out = make(method, ce.backbone, counts, ce, **options).loss(
        bare(i["logits"], i["labels"]), toys.at()
    )
    expected = v["expected"]["loss"] if isinstance(v["expected"], dict) else v["expected"]
    close(out.rows.sum() / out.images, expected, v["tolerance"])
    close(out.logits, i["logits"], 1e-12)  # curves show predictions, without prior or margin


def test_posthoc_logit_adjustment_vector(double, vector):
    v = vector("logit_adjust_posthoc")
    counts = v["inputs"]["counts"]
    ce = linear(counts, np.eye(4))
    method = make("logit_adjustment_posthoc", ce.backbone, counts, ce, tau=v["params"]["tau"])
    x = torch.tensor(v["inputs"]["logits"])
    close(method.predict(x), v["expected"]["adjusted"], v["tolerance"])
    assert method.predict(x).argmax(1).tolist() == v["expected"]["pred"]
    assert ce.predict(x).argmax(1).tolist() == v["expected"]["pred_raw"]


@pytest.mark.parametrize("name", ["tau_norm_0.7", "tau_norm_1"])
def test_tau_norm_vectors(double, vector, name):
    v = vector(name)
    ce = linear([3, 2, 1], v["inputs"]["weight"], bias=[5.0, -3.0, 1.0])
    method = make("tau_norm", ce.backbone, [3, 2, 1], ce, tau=v["params"]["tau"])
    close(method.head.weight, v["expected"]["weight"], v["tolerance"])
    close(
        method.predict(torch.tensor(v["inputs"]["features"])),
        v["expected"]["logits"],
        v["tolerance"],
    )


def test_lws_vectors(double, vector):
    logits, gradient = vector("lws_logits"), vector("lws_gradient")
    i = gradient["inputs"]
    ce = linear([3, 2, 1], i["weight"], i["bias"])
    method = make("lws", ce.backbone, [3, 2, 1], ce)
    freeze(method)
    with torch.no_grad():
        method.head.scale.copy_(torch.tensor(i["scales"]))
    out = method.loss(bare(i["features"], i["labels"]), toys.at())
    close(out.logits, logits["expected"], logits["tolerance"])
    (out.rows.sum() / out.images).backward()
    close(method.head.scale.grad, gradient["expected"], gradient["tolerance"])
    assert ce.head.weight.grad is None
    assert ce.head.bias.grad is None


def test_mislas_scale_vector(double, vector):
    v = vector("mislas_lws")
    ce = linear([4, 3, 2, 1], np.eye(4))
    method = make("mislas", ce.backbone, [4, 3, 2, 1], ce)
    with torch.no_grad():
        method.head.scale.copy_(torch.tensor(v["inputs"]["learned_norm"]))
    close(method.predict(torch.tensor(v["inputs"]["logits"])), v["expected"], v["tolerance"])


def test_shifted_statistics_vector(double, vector):
    """MiSLAS's frozen backbone in training mode: statistics move, affine parameters do not."""
    v = vector("shift_bn_running_stats")
    norm = nn.BatchNorm1d(1, momentum=v["params"]["momentum"])
    backbone = Backbone.from_stages({"front": norm}, num_features=1)
    method = make("mislas", backbone, [2, 1], make("ce", backbone, [2, 1])).train()
    freeze(method)
    assert method.frozen_bn == "train"
    method.loss(bare(v["inputs"]["x"], [0, 1, 0, 1]), toys.at()).rows.sum().backward()
    close(norm.running_mean[0], v["expected"]["mean"], v["tolerance"])
    close(norm.running_var[0], v["expected"]["var"], v["tolerance"])
    assert norm.weight.grad is None
    assert norm.bias.grad is None


@pytest.mark.parametrize(
    ("name", "loss"),
    [("plot_stage2_step_epoch200", 1.39684839724), ("plot_stage2_step_epoch229", 2.14099257204)],
)
def test_plot_stage2_vectors(double, vector, name, loss):
    v = vector(name)
    i, p = v["inputs"], v["params"]
    front, layer3 = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    with torch.no_grad():
        front.weight.copy_(torch.tensor(i["front"]))
        layer3.weight.copy_(torch.tensor(i["l3_w"]))
        layer3.bias.copy_(torch.tensor(i["l3_b"]))
    stages = {"front": nn.Sequential(front, nn.Tanh()), "layer3": nn.Sequential(layer3, nn.Tanh())}
    backbone = Backbone.from_stages(stages, num_features=2)
    ce = make("ce", backbone, i["counts"])
    with torch.no_grad():
        ce.head.weight.copy_(torch.tensor(i["cls_w"]))
        ce.head.bias.copy_(torch.tensor(i["cls_b"]))
    method = make(
        "plot_stage2",
        backbone,
        i["counts"],
        ce,
        div=p["div"],
        adver_reg=p["adver_reg"],
        up_limit=p["up_limit"],
    )
    freeze(method)
    at = stepped(p["epoch"] - p["stage"], epochs=p["max_epoch"] - p["stage"])
    out = method.loss(bare(i["x"], i["labels"]), at)
    total = out.rows.sum() / out.images
    assert total.item() == pytest.approx(loss, abs=1e-9)
    optimizer = torch.optim.SGD([q for q in method.parameters() if q.requires_grad], lr=p["lr"])
    total.backward()
    optimizer.step()
    close(method.head.weight, v["expected"]["cls_w"], v["tolerance"])
    close(method.head.bias, v["expected"]["cls_b"], v["tolerance"])
    close(front.weight, i["front"], 0)


def freeze(method) -> None:
    """Apply a method's own rule: name prefixes of what is not trained."""
    for name, parameter in method.named_parameters():
        parameter.requires_grad_(not any(f"{name}.".startswith(f"{p}.") for p in method.freeze))


# Contract ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", toys.STAGE1 + toys.STAGE2)
def test_rows_describe_the_batch(name):
    method = toys.method(name)
    batch = method.prepare(toys.dressed(toys.batch(11), method), toys.at())
    out = method.loss(batch, toys.at())
    assert out.rows.shape == out.labels.shape
    several = ("bbn", "bcl", "glmc", "gpaco", "rsg", "proco", "nclpp")
    assert len(out.rows) == 11 or name in several  # those have more to say
    assert torch.isfinite(out.rows).all()
    assert out.rows.requires_grad
    assert torch.equal(out.labels[:11], toys.batch(11).labels)
    assert out.images == 11
    assert out.logits.shape == (11, 4)
    assert not out.logits.requires_grad
    with torch.no_grad():  # statistics only: the loss must not need a graph of its caller
        assert torch.isfinite(method.loss(batch, toys.at()).rows).all()


@pytest.mark.parametrize("name", toys.STAGE1 + toys.STAGE2)
def test_loss_under_autocast_is_finite_and_in_single_precision(name):
    method = toys.method(name)
    batch = method.prepare(toys.dressed(toys.batch(), method), toys.at())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = method.loss(batch, toys.at()).rows
    assert rows.dtype == torch.float32
    assert torch.isfinite(rows).all()
    exact = method.loss(batch, toys.at()).rows
    assert (rows - exact).abs().max() < 0.2 * exact.abs().max()


@pytest.mark.parametrize("name", ALL)
def test_export_predicts_the_same_and_state_round_trips(name):
    method, other = toys.method(name).eval(), toys.method(name, seed=7).eval()
    x = toys.batch().views[0]
    with torch.no_grad():
        expected = method.predict(x)
        assert expected.dtype == torch.float32
        assert torch.equal(method.export().eval()(x), expected)
        assert torch.equal(method(x), expected)
        assert not torch.equal(other.predict(x), expected)
        other.load_state_dict(method.state_dict())
        assert torch.equal(other.predict(x), expected)


@pytest.mark.parametrize(
    "name", toys.STAGE2 + [n for n in toys.POSTHOC if not METHODS.facts(n).alone]
)
def test_second_stages_refuse_to_be_first(name):
    with pytest.raises(UserError, match=name) as caught:
        make(name, toys.backbone(), toys.COUNTS)
    assert "\n" not in str(caught.value)


def test_heads_go_on_or_start_anew_as_each_method_says():
    ce = make("ce", toys.backbone(), toys.COUNTS)
    for name in ("mixup", "balanced_softmax", "logit_adjustment", "plot_stage2"):
        assert make(name, ce.backbone, toys.COUNTS, ce).head is ce.head
    crt = make("crt", ce.backbone, toys.COUNTS, ce)
    assert isinstance(crt.head, LinearHead)
    assert crt.head is not ce.head
    assert crt.head.bias is not None
    for name in ("lws", "mislas"):
        scaled = make(name, ce.backbone, toys.COUNTS, ce)
        assert isinstance(scaled.head, ScaledHead)
        assert scaled.head.head is ce.head
    ldam = make("ldam_drw", ce.backbone, toys.COUNTS, ce, scale=20.0)
    assert isinstance(ldam.head, CosineHead)
    assert make("ldam_drw", ce.backbone, toys.COUNTS, ldam, scale=20.0).head is ldam.head
    assert make("ldam_drw", ce.backbone, toys.COUNTS, ldam, scale=30.0).head is not ldam.head
    with pytest.raises(UserError, match="CosineHead"):
        make("tau_norm", ce.backbone, toys.COUNTS, ldam)


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("crt", {"head.weight", "head.bias"}),
        ("lws", {"head.scale"}),
        ("mislas", {"head.scale", "head.head.weight", "head.head.bias"}),
        ("plot_stage2", {"head.weight", "head.bias"}),
    ],
)
def test_frozen_parts(name, trained):
    method = toys.method(name)
    freeze(method)
    assert {n for n, p in method.named_parameters() if p.requires_grad} == trained


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mixup", {"alpha": 0}),
        ("ldam_drw", {"scale": 0}),
        ("ldam_drw", {"beta": 1.0}),
        ("ldam_drw", {"reweight_from": -1}),
        ("logit_adjustment", {"tau": -1}),
        ("tau_norm", {"tau": -0.1}),
        ("mislas", {"smooth_head": 0.1, "smooth_tail": 0.2}),
        ("mislas", {"shape": "exponential"}),
        ("mislas", {"shape": "square"}),
        ("plot_stage2", {"div": 0}),
        ("plot_stage2", {"up_limit": 1.5}),
        ("balanced_softmax", {"tau": 1.0}),
    ],
)
def test_nonsensical_options_are_refused(name, options):
    with pytest.raises(UserError):
        validation.build_options("METHODS", name, options)


# Mixup ---------------------------------------------------------------------------------------


def test_mixup_draws_follow_the_counters_only():
    method = make("mixup", toys.backbone(), toys.COUNTS)
    first = method.prepare(toys.batch(), stepped(3, step=2))
    torch.manual_seed(99)  # global random state is not asked
    again = method.prepare(toys.batch(), stepped(3, step=2))
    assert torch.equal(first.views[0], again.views[0])
    assert torch.equal(first.partner, again.partner)
    assert first.lam == again.lam
    others = {method.prepare(toys.batch(), stepped(3, step=s)).lam for s in range(5)}
    assert len(others) == 5
    assert method.prepare(toys.batch(), stepped(3, step=2, seed=1)).lam != first.lam


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 3.0])
def test_mixup_shares_are_beta_distributed(alpha):
    method = make("mixup", identity(1), [1, 1], alpha=alpha)
    batch = bare([[0.0], [1.0]], [0, 1])
    lam = np.array([method.prepare(batch, stepped(0, step=s)).lam for s in range(1500)])
    assert ((lam >= 0) & (lam <= 1)).all()
    assert lam.mean() == pytest.approx(0.5, abs=0.05)
    assert lam.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_mixup_mixes_every_view_with_the_same_partners_and_keeps_the_mean():
    x, y = toys.images(10)
    index = torch.arange(10)
    mixed = make("mixup", toys.backbone(), toys.COUNTS).prepare(
        Batch((x, 2 * x), y, index), toys.at()
    )
    assert torch.allclose(mixed.views[1], 2 * mixed.views[0])
    assert torch.allclose(mixed.views[0].mean(0), x.mean(0), atol=1e-6)  # a permutation: no loss
    assert sorted(mixed.partner.tolist()) == sorted(y.tolist())
    assert torch.equal(mixed.labels, y)
    assert torch.equal(mixed.index, index)
    assert mixed.views[0].shape == x.shape


def test_mixup_without_partners_or_with_a_full_share_is_cross_entropy():
    method = make("mixup", toys.backbone(), toys.COUNTS)
    batch = method.prepare(toys.batch(), toys.at())
    ce = CE.loss(method, batch, toys.at()).rows
    assert torch.equal(method.loss(batch.unmixed(), toys.at()).rows, ce)
    full = dataclasses.replace(batch, lam=1.0)
    assert torch.allclose(method.loss(full, toys.at()).rows, ce, atol=1e-6)
    assert not torch.allclose(method.loss(batch, toys.at()).rows, ce, atol=1e-3)


# Weights and shifts --------------------------------------------------------------------------


@pytest.mark.parametrize(("reweight_from", "weighted"), [(None, []), (0, [0, 1, 2]), (2, [2])])
def test_deferred_weights_start_when_asked(reweight_from, weighted):
    method = make("ldam_drw", toys.backbone(), toys.COUNTS, reweight_from=reweight_from)
    for epoch in range(3):
        out = method.loss(toys.batch(), stepped(epoch, epochs=3))
        assert (out.weight is not None) == (epoch in weighted)
        if out.weight is not None:
            n = np.array(toys.COUNTS, dtype=np.float64)
            w = (1 - 0.9999) / (1 - 0.9999**n)
            close(out.weight, (w * 4 / w.sum())[out.labels.numpy()], 1e-5)


def test_posthoc_limits():
    ce = make("ce", toys.backbone(), toys.COUNTS).eval()
    x = toys.batch().views[0]
    with torch.no_grad():
        raw = ce.predict(x)
        zero = make("logit_adjustment_posthoc", ce.backbone, toys.COUNTS, ce, tau=0.0).eval()
        assert torch.allclose(zero.predict(x), raw, atol=1e-6)
        even = make("logit_adjustment_posthoc", ce.backbone, [9] * 4, ce).eval()
        assert torch.allclose(even.predict(x).softmax(1), raw.softmax(1), atol=1e-6)
        kept = make("tau_norm", ce.backbone, toys.COUNTS, ce, tau=0.0).eval()
        assert torch.allclose(kept.predict(x), raw - ce.head.bias, atol=1e-5)
        full = make("tau_norm", ce.backbone, toys.COUNTS, ce, tau=1.0)
        assert torch.allclose(full.head.weight.norm(dim=1), torch.ones(4))
    assert not any(p.requires_grad for n, p in full.named_parameters() if n.startswith("head"))


def test_plot_stage2_follows_the_formula(double):
    """Class by class, as written down for the released code."""
    rng = np.random.default_rng(3)
    f, w, b = rng.normal(size=(9, 5)), rng.normal(size=(4, 5)), rng.normal(size=4)
    y = np.array([0, 0, 0, 0, 1, 1, 1, 2, 0])  # class 3 is absent
    counts = np.array([500, 60, 8, 3])

    def p_of(features):
        z = features @ w.T + b
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    omega = np.log(counts.max() / counts + 0.01) / 1.5
    expected = np.zeros(9)
    share = min(4 / 10, 0.3)
    for k in (0, 1, 2):
        own = y == k
        gradient = (p_of(f[own]) - np.eye(4)[y[own]]) @ w / own.sum()
        shifted = f[own] + 0.7 * omega[k] * gradient / np.linalg.norm(gradient)
        plain, hard = -np.log(p_of(f[own])[:, k]), -np.log(p_of(shifted)[:, k])
        expected[own] = share * omega[k] * hard + (1 - share) * plain
        assert (hard >= plain).all()
    ce = linear(counts.tolist(), w, b)
    options = {"div": 1.5, "adver_reg": 0.7, "up_limit": 0.3}
    method = make("plot_stage2", ce.backbone, counts.tolist(), ce, **options)
    close(method.loss(bare(f, y), stepped(3, epochs=10)).rows, expected, 1e-12)


def test_plot_stage2_without_shift_or_ramp_is_cross_entropy():
    ce = make("ce", toys.backbone(), toys.COUNTS)
    off = make("plot_stage2", ce.backbone, toys.COUNTS, ce, up_limit=0.0)
    plain = ce.loss(toys.batch(), toys.at()).rows
    assert torch.allclose(off.loss(toys.batch(), toys.at()).rows, plain, atol=1e-6)
    still = make("plot_stage2", ce.backbone, toys.COUNTS, ce, adver_reg=0.0)
    last = still.loss(toys.batch(), stepped(4, epochs=5)).rows
    assert torch.allclose(last, still.omega.float()[toys.batch().labels] * plain, atol=1e-5)


def test_directions_survive_a_vanishing_gradient():
    head = nn.Linear(2, 3)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1e4, 0], [0, 0], [-1e4, 0.0]]))
    features = torch.tensor([[50.0, 1.0], [0.0, 1.0]])  # the first is right beyond doubt
    found = class_directions(head, features, torch.tensor([0, 1]), 3)
    assert torch.isfinite(found).all()
    assert torch.equal(found[0], torch.zeros(2))


# The guide -----------------------------------------------------------------------------------


def test_the_guide_points_to_files_that_exist():
    folder = Path(ltbench.__file__).parent / "methods"
    links = re.findall(r"\]\(([^)#]+)\)", (folder / "README.md").read_text())
    assert "focal.py" in links
    files = [link for link in links if "://" not in link]
    assert [file for file in files if not (folder / file).exists()] == []
