"""Descriptions of published models, changed in any way: the model is built, or refused."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import strategies as st
from strategies import changed, damaged, json_values, property_of, scalars, takes_or_refuses

from ltbench.config.resources import leaderboard_dir
from ltbench.hub.folder import CONFIG, read_config
from ltbench.hub.load import load_described

PUBLISHED = leaderboard_dir() / "models" / "quickstart-seed0"


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(PUBLISHED, tmp_path / "model")


@property_of(st.data())
def test_any_description_is_read_or_refused(data, copy):
    sound = (PUBLISHED / CONFIG).read_bytes()
    trees = st.one_of(changed(json.loads(sound)), json_values).map(lambda t: json.dumps(t).encode())
    (copy / CONFIG).write_bytes(data.draw(st.one_of(damaged(sound), trees)))
    takes_or_refuses(lambda: read_config(copy / CONFIG))


@property_of(st.data(), few=25, many=500)
def test_any_recipe_of_a_published_model_is_built_or_refused(data, copy):
    content = json.loads((PUBLISHED / CONFIG).read_bytes())
    part = data.draw(st.sampled_from(["model_args", "ltbench", "pretrained_cfg", "label_names"]))
    content[part] = data.draw(changed(content[part]))
    (copy / CONFIG).write_text(json.dumps(content))
    takes_or_refuses(lambda: load_described(copy))


@property_of(st.data(), few=25, many=500)
def test_any_arguments_of_a_network_are_built_or_refused(data, copy):
    content = json.loads((PUBLISHED / CONFIG).read_bytes())
    backbone = content["model_args"]["recipe"]["backbone"]
    name = data.draw(st.sampled_from(["widths", "drop_rate", "in_chans", "depth", "block"]))
    numbers = st.sampled_from([[4, 8, 16], [2**31] * 3, [0, 0, 0], [1], 10**30, -1, 1e300])
    backbone["args"] = {name: data.draw(st.one_of(numbers, scalars, json_values))}
    (copy / CONFIG).write_text(json.dumps(content))
    takes_or_refuses(lambda: load_described(copy))
