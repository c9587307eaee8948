"""Checkpoints and descriptions of weights, changed in any way: as written, or refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import toys
from hypothesis import strategies as st
from strategies import changed, damaged, property_of, takes_or_refuses

from ltbench.files import seal
from ltbench.methods.weights import read_weights, write_weights
from ltbench.train.checkpoint import (
    STATE,
    TENSORS,
    Position,
    Snapshot,
    Store,
    folders,
    read_snapshot,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    home = tmp_path_factory.mktemp("saved") / "checkpoints"
    Store(home).save(Snapshot(Position(0, 1, 0), {"w": torch.arange(3.0)}, toys.FACTS))
    (folder,) = folders(home)
    return folder


def with_file(source, folder, name, content):
    copy = folder / source.name
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    (copy / name).write_bytes(content)
    return copy


def facts_of(snapshot):
    return snapshot.position, snapshot.facts, snapshot.tensors["w"].tolist()


@property_of(st.data())
def test_a_damaged_checkpoint_is_as_written_or_refused(data, saved, tmp_path):
    name = data.draw(st.sampled_from([STATE, TENSORS]))
    sound = (saved / name).read_bytes()
    folder = with_file(saved, tmp_path, name, data.draw(damaged(sound)))
    snapshot, _ = takes_or_refuses(lambda: read_snapshot(folder))
    assert snapshot is None or facts_of(snapshot) == facts_of(read_snapshot(saved))


@property_of(st.data())
def test_any_sealed_state_is_read_or_refused(data, saved, tmp_path):
    tree = json.loads((saved / STATE).read_text())
    tree.pop("checksum")
    content = seal(json.dumps(data.draw(changed(tree)), indent=1))
    folder = with_file(saved, tmp_path, STATE, content)
    snapshot, _ = takes_or_refuses(lambda: read_snapshot(folder))
    assert snapshot is None or snapshot.facts == {} or isinstance(snapshot.stage, int)


@property_of(st.data())
def test_a_damaged_model_is_as_written_or_refused(data, tmp_path):
    path = tmp_path / "model.safetensors"
    write_weights(path, {"w": torch.arange(3.0)}, {"recipe": {"name": "x"}, "class_names": ["a"]})
    _, sound = read_weights(path)
    victim = data.draw(st.sampled_from([path, path.with_suffix(".json")]))
    victim.write_bytes(data.draw(damaged(victim.read_bytes())))
    found, _ = takes_or_refuses(lambda: read_weights(path))
    assert found is None or (found[1] == sound and found[0]["w"].tolist() == [0, 1, 2])
