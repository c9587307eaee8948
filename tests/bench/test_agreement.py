"""Agreement with exact gradients, measured at a checkpoint of a real, short run."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from ltbench.bench import agreement
from ltbench.config import files as config
from ltbench.errors import UserError
from ltbench.train import run as runner


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    words = ["stages.0.epochs=2", "stages.0.update=plain", f"out={out}", "run.eval_every=2"]
    words += ["backbone=resnet20_cifar", "stages.1.epochs=1", "stages.0.schedule.warmup=1"]
    runner.run(config.get_recipe("quickstart", *words))
    return next((out / "checkpoints").glob("s1-*-stage"))


@pytest.mark.slow  # test_bench.py compares the updates of all pipelines by default
def test_modes_come_nearer_in_the_order_of_what_they_cost(checkpoint):
    state = agreement.State.load(checkpoint, {})
    assert state.epoch == 2
    rows = {row.mode: row for row in agreement.measure(state, 2)}
    assert min(rows["exact"].cosine) > 0.99999
    assert min(rows["fast"].cosine) > 0.98
    assert min(rows["certified, 1 round"].cosine) > 0.999
    gaps = [np.mean(rows[name].gap) for name in agreement.MODES]
    assert gaps[1] > gaps[2] > gaps[3] > gaps[4]  # fast, then one round more each


def test_kinds_of_layers_are_told_apart(checkpoint):
    state = agreement.State.load(checkpoint, {})
    found = agreement.by_layer(state)
    assert set(found) == {"Conv2d weight", "BatchNorm2d vector"}
    assert found["Conv2d weight"][0] > 0.8


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="checkpoint folder inside a run"):
        agreement.State.load(tmp_path, {})


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"tree": {"data": {}, "stages": []}}'])
def test_a_damaged_description_of_the_run_is_one_line(checkpoint, tmp_path, text):
    folder = tmp_path / "checkpoints" / checkpoint.name
    shutil.copytree(checkpoint, folder)
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(UserError, match=r"recipe\.json is damaged"):
        agreement.State.load(folder, {})
