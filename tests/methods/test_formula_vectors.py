"""GCL, LADE, DisAlign, M2m and CC-SAM against values of their authors' code, and their limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ltbench import losses, validation
from ltbench.backbones.base import Backbone
from ltbench.data.base import DatasetInfo
from ltbench.losses import adaptive
from ltbench.methods.base import Batch
from ltbench.methods.cc_sam import CCSAM
from ltbench.methods.mixup import mix


def f64(x):
    return torch.tensor(x, dtype=torch.float64)


def close(actual, expected, tolerance):
    actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else actual
    expected = np.asarray(expected, dtype=np.float64)
    assert np.all(np.abs(actual - expected) <= tolerance * np.maximum(1, np.abs(expected)))


@pytest.mark.parametrize("stage", [1, 2])
def test_gcl_vectors(vector, stage):
    v = vector("gcl_stage1") if stage == 1 else vector("gcl_stage2")
    i, p = v["inputs"], v["params"]
    noise = p["noise_mul"] * f64(i["abs_noise"]) * losses.cloud_sizes(i["counts"])
    rows = losses.gcl_rows(
        p["s"] * f64(i["cosine"]),
        torch.tensor(i["labels"]),
        noise,
        scale=p["s"],
        margin=p["m"],
        focus=p.get("gamma", 0.0),
    )
    close(rows.mean(), v["expected"], v["tolerance"])


def test_gcl_without_noise_is_cross_entropy_and_noise_only_lowers():
    z, y = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 3, 0, 1])
    plain = losses.cross_entropy_rows(z, y)
    close(losses.gcl_rows(z, y, torch.zeros(6, 4)), plain, 1e-12)
    sizes = losses.cloud_sizes([100, 10, 10, 1])
    assert sizes[0] == 0
    assert sizes[3] == 1
    assert (losses.gcl_rows(z, y, sizes.expand(6, 4))[3] > plain[3]).all()


@pytest.mark.parametrize("absent", [False, True])
def test_lade_vectors(vector, absent):
    v = vector("lade_loss_absent_class") if absent else vector("lade_loss")
    i = v["inputs"]
    found = losses.lade_regulariser(
        f64(i["logits"]), torch.tensor(i["labels"]), i["counts"], v["params"]["remine_lambda"]
    )
    close(found, v["expected"], v["tolerance"])


def test_lade_cross_entropy_vector(vector):
    v = vector("lade_ce")
    i = v["inputs"]
    rows = losses.logit_adjusted_rows(
        f64(i["logits"]), torch.tensor(i["labels"]), losses.lade_offset(i["counts"])
    )
    close(rows.mean(), v["expected"], v["tolerance"])


@pytest.mark.parametrize("form", ["code", "paper"])
def test_disalign_vectors(vector, form):
    v = vector("disalign_code") if form == "code" else vector("disalign_paper")
    i = v["inputs"]
    found = losses.disalign_logits(
        f64(i["logits"]), f64(i["confidence"])[:, None], f64(i["scale"]), f64(i["bias"]), form
    )
    close(found, v["expected"], v["tolerance"])


def test_disalign_weights_vector(vector):
    v = vector("disalign_grw")
    i = v["inputs"]
    weights = losses.generalised_weights(i["counts"], v["params"]["rho"])
    close(weights, v["expected"]["weights"], v["tolerance"])
    labels = torch.tensor(i["labels"])
    rows, own = losses.cross_entropy_rows(f64(i["logits"]), labels), weights[labels]
    close((own * rows).sum() / own.sum(), v["expected"]["loss"], v["tolerance"])


def test_focal_and_vs_have_cross_entropy_as_their_limit():
    z, y = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 3, 0, 1])
    plain = losses.cross_entropy_rows(z, y)
    close(losses.focal_rows(z, y, 0.0), plain, 1e-12)
    p = (-plain).exp()
    close(losses.focal_rows(z, y, 2.0), (1 - p) ** 2 * plain, 1e-12)
    counts = [50, 20, 5, 1]
    none = losses.vs_rows(z, y, losses.vs_scale(counts, 0.0), losses.vs_offset(counts, 0.0))
    close(none, plain, 1e-12)
    adjusted = losses.vs_rows(z, y, losses.vs_scale(counts, 0.0), losses.vs_offset(counts, 1.0))
    close(adjusted, losses.balanced_softmax_rows(z, y, counts), 1e-10)


def test_m2m_acceptance_vector(vector):
    v = vector("m2m_accept")
    i = v["inputs"]
    found = losses.seed_acceptance(
        i["counts"],
        torch.tensor(i["targets"]),
        torch.tensor(i["batch_labels"]),
        v["params"]["beta"],
    )
    close(found, v["expected"], v["tolerance"])


def test_m2m_generation_vector(vector):
    v = vector("m2m_generation")
    i, p = v["inputs"], v["params"]
    helper, model = f64(i["Wg"]), f64(i["Wf"])
    seeds = torch.tensor(i["seed_labels"])
    # The authors' code takes the mean over the batch of the seeds' logits, step by step per image.
    x, confidence = losses.translate(
        f64(i["x"]),
        torch.tensor(i["targets"]),
        seeds,
        helper=lambda x: x @ helper.T,
        model=lambda x: x @ model.T,
        lam=p["lam"],
        steps=p["iters"],
        step_size=p["step"],
    )
    close(x, v["expected"]["x"], v["tolerance"])
    assert (confidence >= p["gamma"]).tolist() == [bool(a) for a in v["expected"]["accepted"]]


def test_m2m_replaces_images_of_its_own_labels_only():
    method = toys.method("m2m")
    batch = toys.dressed(toys.batch(64), method)
    made = method.prepare(batch, toys.at(epoch=1))
    changed = (made.views[0] != batch.views[0]).flatten(1).any(dim=1)
    assert torch.equal(made.labels, batch.labels)
    assert changed.any()
    assert not changed[batch.labels == 0].any()  # the largest class is always kept
    again = method.prepare(batch, toys.at(epoch=1))
    assert torch.equal(again.views[0], made.views[0])
    method.config = method.config.model_copy(update={"generate_from": 3})
    assert method.prepare(batch, toys.at(epoch=2)) is batch


def test_start_noise_is_bounded_for_each_image():
    noise = adaptive.bounded_noise(torch.rand(5, 3, 8, 8), 0.5)
    assert (noise.flatten(1).norm(dim=1) <= 0.5 + 1e-6).all()


@pytest.mark.parametrize("mixed", [False, True])
def test_ccsam_vectors(vector, mixed):
    v = vector("ccsam_stage1_step_mixup") if mixed else vector("ccsam_stage1_step")
    i, p = v["inputs"], v["params"]
    front, layer3 = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    with torch.no_grad():
        front.weight = nn.Parameter(f64(i["front"]))
        layer3.weight, layer3.bias = nn.Parameter(f64(i["l3_w"])), nn.Parameter(f64(i["l3_b"]))
    stages = {"front": nn.Sequential(front, nn.Tanh()), "layer3": nn.Sequential(layer3, nn.Tanh())}
    info = DatasetInfo("toy", tuple(i["counts"]), tuple(map(str, i["counts"])))
    options = {"alpha": 0.0, "flat": p["flat_ratio"], "noise": p["noise_ratio"]}
    config = validation.build_options("METHODS", "cc_sam", options)
    method = CCSAM(config, Backbone.from_stages(stages, num_features=2), info).double()
    method.head.weight = nn.Parameter(f64(i["cls_w"]))
    method.head.bias = nn.Parameter(f64(i["cls_b"]))
    labels = torch.tensor(i["labels"])
    batch = Batch((f64(i["x"]),), labels, torch.arange(len(labels)))
    if mixed:
        batch = mix(batch, i["lam"], torch.tensor(i["perm"]))
    out = method.loss(batch, toys.at())
    (out.rows.sum() / out.images).backward()
    with torch.no_grad():
        close(method.head.weight - p["lr"] * method.head.weight.grad, v["expected"]["cls_w"], 1e-7)
        close(method.head.bias - p["lr"] * method.head.bias.grad, v["expected"]["cls_b"], 1e-7)


def test_ccsam_without_share_or_noise_is_cross_entropy():
    method = toys.method("cc_sam")
    batch = replace(toys.batch(), lam=1.0)
    plain = losses.cross_entropy_rows(method.predict(batch.views[0]), batch.labels)
    for update in ({"flat": 0.0, "noise": 1.0}, {"flat": 0.7, "noise": 0.0}):
        method.config = method.config.model_copy(update=update)
        torch.testing.assert_close(method.loss(batch, toys.at()).rows, plain, atol=1e-5, rtol=1e-5)
    method.config = method.config.model_copy(update={"flat": 1.0, "noise": 0.05})
    assert (method.loss(batch, toys.at()).rows > plain).float().mean() > 0.9  # it climbs
