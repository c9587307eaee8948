from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ltbench.config.recipe import Stage
from ltbench.config.validation import build_recipe
from ltbench.diagnose.cost import (
    Cost,
    images_per_second,
    images_seen,
    multiply_adds,
    parameter_rows,
)


def test_multiply_adds_by_hand():
    net = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 64, 7)
    )
    assert multiply_adds(net, torch.zeros(1, 3, 8, 8)) == 64 * 5 * 27 + 5 * 64 * 7
    assert multiply_adds(net, torch.zeros(2, 3, 8, 8)) == 2 * (64 * 5 * 27 + 5 * 64 * 7)


def test_a_pass_counts_as_many_images_as_it_has():
    calls = []

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append((len(x), self.training))
            return x

    net = Net()
    speeds = images_per_second(net, torch.zeros(4, 1), (1, 4), repeats=2)
    assert set(speeds) == {1, 4}
    assert all(speed > 0 for speed in speeds.values())
    assert {size for size, _ in calls} == {1, 4}
    assert not any(training for _, training in calls)
    assert net.training


def recipe_of(subject, *stages: dict):
    tree = subject.recipe.tree()
    first = tree["stages"][0]
    return build_recipe({**tree, "stages": [{**first, **stage} for stage in stages]})


def test_images_seen_by_hand(subject):
    labels = np.repeat([0, 1], [30, 4])
    whole = {"epochs": 3, "batch_size": 8}
    assert images_seen(recipe_of(subject, whole), labels) == 3 * 34
    dropped = {**whole, "last_batch": "drop"}
    assert images_seen(recipe_of(subject, whole, dropped), labels) == 3 * 34 + 3 * 32
    balanced = {**whole, "sampler": {"name": "class_aware", "length": "oversample"}}
    assert images_seen(recipe_of(subject, balanced), labels) == 3 * 2 * 30


def test_post_hoc_stages_see_nothing_and_short_runs_stop(subject):
    tree = subject.recipe.tree()
    tree["stages"].append({"method": "tau_norm"})
    tree["run"] = {**tree["run"], "max_steps": 2}
    recipe = build_recipe(tree)
    assert isinstance(recipe.stages[1], Stage)
    size = recipe.stages[0].batch_size
    assert images_seen(recipe, subject.data.train.labels) == 2 * size


def test_rows_of_a_trained_model(subject):
    diagnostic = Cost(Cost.Options(batch_sizes=(1, 2), repeats=1))
    tables = diagnostic.measure(subject)
    cost = tables["cost"].set_index("quantity")["value"]
    own = sum(p.numel() for p in subject.method.parameters())
    assert cost["parameters"] == own
    assert cost["trainable parameters"] == own
    assert cost["epochs"] == 3
    assert cost["images seen"] == 3 * len(subject.data.train)
    record = subject.record.execution
    assert cost["training time"] == pytest.approx(record.wall_seconds / 60)
    assert cost["training peak memory"] == pytest.approx(record.peak_memory_bytes / 2**20)
    conditions = tables["conditions"].set_index("condition")["value"]
    assert conditions["image"] == "3x8x8"
    assert conditions["threads"] == str(torch.get_num_threads())

    bare = diagnostic.measure(replace(subject, record=None))
    assert "training time" not in set(bare["cost"]["quantity"])
    figure = diagnostic.draw({"a": tables, "b": bare})["cost"]
    texts = [t.get_text() for axes in figure.axes for t in axes.texts]
    assert "not known" in texts
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert any(title.startswith("training time") for title in titles)
    assert not any(title.startswith("parameters") for title in titles)  # the same for both
    assert diagnostic.draw({"a": tables}) == {}  # a table says it better than equal bars
    assert diagnostic.draw({"a": tables, "b": tables}) == {}


def test_sizes_are_positive_and_different():
    assert Cost.Options(batch_sizes=(4, 1, 4)).batch_sizes == (4, 1)
    with pytest.raises(ValueError, match="at least 1"):
        Cost.Options(batch_sizes=(0,))


def test_trainable_parameters_are_those_of_the_last_stage(subject):
    stage = subject.recipe.stages[-1].model_copy(update={"freeze": ("backbone",)})
    before = [p.requires_grad for p in subject.method.parameters()]
    rows = {name: value for name, value, _ in parameter_rows(subject.method, stage)}
    head = sum(p.numel() for p in subject.method.head.parameters())
    assert rows["trainable parameters"] == head < rows["parameters"]
    assert [p.requires_grad for p in subject.method.parameters()] == before
