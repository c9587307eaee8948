"""Files are written in one piece, through no link, with the umask's modes, and sealed."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest
import torch

from ltbench.errors import UserError
from ltbench.files import (
    copied,
    fresh_folder,
    read_sealed,
    replaced,
    seal,
    unseal,
    write_atomic,
    write_json,
)
from ltbench.methods.weights import write_weights
from ltbench.train.checkpoint import Position, Snapshot, Store

TENSORS = {"a": torch.arange(6.0)}


def write_replaced(path):
    with replaced(path) as partial:
        partial.write_bytes(b"new")


def copy(path):
    source = path.with_name("source")
    source.write_bytes(b"new")
    copied(source, path)


WRITERS = {
    "write_atomic": lambda path: write_atomic(path, b"new"),
    "write_json": lambda path: write_json(path, {}),
    "replaced": write_replaced,
    "copied": copy,
    "write_weights": lambda path: write_weights(path, TENSORS, {}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_file_is_written_through_a_link(name, tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("precious")
    folder.mkdir()
    target = folder / "x.safetensors"
    for link in (".partial-x.safetensors", ".partial-x.json", "x.safetensors"):
        (folder / link).symlink_to(victim)
    WRITERS[name](target)
    assert victim.read_text() == "precious"
    assert target.is_file()
    assert not target.is_symlink()


def test_no_checkpoint_is_written_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "state.json").write_text("precious")
    home = tmp_path / "checkpoints"
    home.mkdir()
    (home / ".partial-s0-e0001-t000000").symlink_to(victim)
    Store(home).save(Snapshot(Position(0, 1), TENSORS, {}))
    assert (victim / "state.json").read_text() == "precious"
    assert [p.name for p in victim.iterdir()] == ["state.json"]
    assert Store(home).latest().position == Position(0, 1)


def test_a_folder_in_place_of_a_temporary_file_is_one_line(tmp_path):
    (tmp_path / ".partial-x").mkdir()
    with pytest.raises(UserError, match="could not write") as caught:
        write_atomic(tmp_path / "x", b"new")
    assert len(str(caught.value).splitlines()) == 1


def test_a_fresh_folder_spares_the_target_of_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "x").write_text("precious")
    (tmp_path / "link").symlink_to(victim)
    fresh_folder(tmp_path / "link")
    assert (victim / "x").read_text() == "precious"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_modes_follow_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        for name, write in WRITERS.items():
            write(tmp_path / f"{name}.safetensors")
        Store(tmp_path / "checkpoints").save(Snapshot(Position(0, 1), TENSORS, {}))
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "source"]
    assert len(files) >= 8
    assert {p.name: stat.S_IMODE(p.stat().st_mode) for p in files} == {p.name: mode for p in files}


@pytest.mark.parametrize("indent", [None, 1])
def test_every_flip_and_cut_of_a_sealed_text_is_found(indent):
    """Whatever the place: a value, a key (that of the checksum too), a space, an escape."""
    content = {"é": [1, 2.5e-07, None], "text": "a\u00e9\n", "facts": {"x": True}}
    sealed = seal(json.dumps(content, indent=indent))
    assert unseal(sealed, last="facts") == content
    for place in range(len(sealed)):
        flips = [sealed[:place] + bytes([sealed[place] ^ 1 << b]) for b in range(8)]
        for damaged in [sealed[:place], *(flip + sealed[place + 1 :] for flip in flips)]:
            with pytest.raises(ValueError, match=r"."):
                unseal(damaged, last="facts")


def test_a_sealed_file_that_was_written_anew_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(seal(json.dumps({"facts": 1})))
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(ValueError, match="edited"):
        read_sealed(path, last="facts")


@pytest.mark.parametrize("text", ["", "[]", "[" * 9_999, '{"a": ' * 9_999, "{", "null", "\xff"])
def test_what_is_no_sealed_file_is_refused(text, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"."):
        read_sealed(path, last="facts")


def test_files_of_older_versions_have_no_checksum(tmp_path):
    path = tmp_path / "x.json"
    content = {"format": 2, "facts": {"a": np.pi}}
    path.write_text(json.dumps(content))
    assert read_sealed(path, last="facts") == content
