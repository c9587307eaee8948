"""Classifiers that are not trained: class means and text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys
from torch import nn
from torch.nn import functional as F

import ltbench
from ltbench import get_recipe, run
from ltbench.config.validation import build_recipe
from ltbench.data.base import DatasetInfo
from ltbench.errors import UserError
from ltbench.methods import METHODS, options
from ltbench.methods.base import Start
from ltbench.models.backbone import Backbone

WORDS = ["data.image_size=8", "run.device=cpu", "run.threads=1", "run.max_steps=2"]


def start(images: torch.Tensor, labels: torch.Tensor) -> Start:
    def read(rows: np.ndarray):
        for part in np.array_split(rows, 3):
            yield images[part], labels[part]

    return Start(0, 0, labels.numpy(), "toy", read)


def features() -> Backbone:
    return Backbone.from_stages({"flat": nn.Flatten()}, num_features=12)


def test_directions_are_those_of_the_class_means():
    torch.manual_seed(0)
    images, labels = torch.randn(30, 3, 2, 2), torch.arange(30) % 4
    backbone = Backbone.from_stages({"flat": nn.Sequential(nn.Flatten(), nn.Linear(12, 5))}, 5)
    info = DatasetInfo("toy", (8, 8, 7, 7), ("a", "b", "c", "d"))
    method = METHODS.get("class_mean")(options.ClassMean(scale=3.0), backbone, info)
    method.begin(start(images, labels))
    with torch.no_grad():
        found = backbone(images)
        means = torch.stack([found[labels == k].mean(0) for k in range(4)])
        expected = 3 * F.normalize(found, dim=1) @ F.normalize(means, dim=1).T
        torch.testing.assert_close(method(images), expected)
    few = METHODS.get("class_mean")(options.ClassMean(images=2), backbone, info)
    few.begin(start(images, labels))
    assert not torch.allclose(few.head.weight, method.head.weight)


def test_alone_and_after_a_stage(tmp_path):
    backbone = "backbone={name: resnet20_cifar, args: {widths: [4, 8, 16]}}"
    alone = {"name": "alone", "data": "digits_lt", "backbone": "resnet20_cifar"}
    alone["stages"] = [{"method": "class_mean"}]
    recipe = build_recipe({**alone, "out": str(tmp_path / "alone"), "run": {"device": "cpu"}})
    result = run(recipe)
    assert result.metrics.top1 > 0.3  # of random features; chance is 0.1
    model = ltbench.load(tmp_path / "alone")
    assert torch.isfinite(model(torch.randn(2, 3, 16, 16))).all()
    again = ltbench.evaluate(model, "digits_lt", device="cpu")
    assert again.top1 == result.metrics.top1
    words = [*WORDS, backbone, "stages=[{method: ce, epochs: 1, batch_size: 64, optim: {lr: 0.1}}, "
             "{method: class_mean}]"]  # fmt: skip
    after = run(get_recipe("quickstart", *words, f"out={tmp_path / 'after'}"))
    assert 0 < after.metrics.top1 < 1


def test_other_post_hoc_methods_still_need_a_stage():
    tree = {"name": "x", "data": "digits_lt", "backbone": "resnet20_cifar"}
    with pytest.raises(UserError, match="`tau_norm` is post-hoc and needs a stage before it"):
        build_recipe({**tree, "stages": [{"method": "tau_norm"}]})


def test_a_classifier_from_text_needs_a_table():
    info = DatasetInfo("toy", toys.COUNTS, ("a", "b", "c", "d"))
    method = METHODS.get("zero_shot")(options.ZeroShot(), features(), info)
    with pytest.raises(UserError, match=r"stages\.0\.method\.file=FILE"):
        method.begin(start(torch.zeros(4, 3, 2, 2), torch.arange(4)))
