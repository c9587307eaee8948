"""M2m and CC-SAM against values of their authors' code, and their limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from torch import nn

from ltbench import losses
from ltbench.config import validation
from ltbench.data.base import DatasetInfo
from ltbench.losses import adaptive
from ltbench.methods.base import Batch
from ltbench.methods.cc_sam import CCSAM
from ltbench.methods.mixup import mix
from ltbench.models.backbone import Backbone


def f64(x):
    return torch.tensor(x, dtype=torch.float64)


def close(actual, expected, tolerance):
    actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else actual
    expected = np.asarray(expected, dtype=np.float64)
    assert np.all(np.abs(actual - expected) <= tolerance * np.maximum(1, np.abs(expected)))


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
