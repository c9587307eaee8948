"""Files are written in one piece, through no link, with the umask's modes, and sealed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat

import numpy as np
import pytest
import torch

from ltbench.config.plugin_modules import import_file
from ltbench.config.yaml_text import read_yaml_file
from ltbench.data.listing import read_list
from ltbench.digest import file_sha256, read_json
from ltbench.errors import UserError
from ltbench.files import (
    append,
    copied,
    fresh_folder,
    new_folder,
    read_sealed,
    replaced,
    replaced_folder,
    seal,
    unseal,
    write_atomic,
    write_json,
)
from ltbench.methods.weights import write_weights
from ltbench.records.record import Record
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


LEFT = {
    "file": lambda path: path.write_bytes(b"half"),
    "folder": lambda path: (path / "inside").mkdir(parents=True),
    "link": lambda path: path.symlink_to(path.with_name("nothing")),
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_killed_writers_left_behind_is_removed(kind, tmp_path):
    target, other = tmp_path / "x", tmp_path / ".partial-x.json.0123abcd"  # of another file
    other.write_bytes(b"half")
    for name in (".partial-x", ".partial-x.0123abcd"):
        LEFT[kind](tmp_path / name)
    write_atomic(target, b"new")
    assert sorted(tmp_path.iterdir()) == [other, target]


@pytest.mark.parametrize("writers", [2, 5])
def test_writers_of_one_path_do_not_mix(writers, tmp_path):
    """Each of them writes half its text, then the others do; the last to end wins, whole."""
    target, texts = tmp_path / "x", [bytes([65 + i]) * 40 for i in range(writers)]
    with contextlib.ExitStack() as stack:
        partials = [stack.enter_context(replaced(target)) for _ in texts]
        for half in (slice(20), slice(20, 40)):
            for partial, text in zip(partials, texts, strict=True):
                with partial.open("ab") as file:
                    file.write(text[half])
    assert target.read_bytes() == texts[0]
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(replaced_folder(tmp_path / "f", {"a"})) for _ in texts]
        for folder, text in zip(folders, texts, strict=True):
            (folder / "a").write_bytes(text)
    assert (tmp_path / "f/a").read_bytes() == texts[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "x"]


def test_a_failed_writer_leaves_nothing(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/inside").mkdir()
    with pytest.raises(UserError, match="could not write") as caught:
        write_atomic(tmp_path / "x", b"new")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(KeyError), new_folder(tmp_path / "x") as partial:
        raise KeyError(partial.name)
    assert [p.name for p in tmp_path.rglob("*")] == ["x", "inside"]


def test_nothing_is_appended_through_a_link_or_to_a_pipe(tmp_path):
    victim, link, pipe = (tmp_path / name for name in ("victim", "link", "pipe"))
    victim.write_text("precious")
    link.symlink_to(victim)
    os.mkfifo(pipe)
    for path in (link, pipe):
        with pytest.raises(OSError):  # noqa: PT011
            append(path, "x")
    append(tmp_path / "new", "a\n")
    append(tmp_path / "new", "b\udc80\n")
    assert victim.read_text() == "precious"
    assert (tmp_path / "new").read_text() == "a\nb\\udc80\n"


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


READERS = {
    "file_sha256": file_sha256,
    "read_json": read_json,
    "read_sealed": lambda path: read_sealed(path, "x"),
    "record": Record.load,
    "recipe": read_yaml_file,
    "list": read_list,
    "plugin": import_file,
}


@pytest.fixture
def alarm():
    """Fail a test that waits for a pipe."""

    def stop(*_: object) -> None:
        raise AssertionError("waits for a pipe")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 5)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_no_reader_waits_for_a_pipe_or_reads_a_device(name, kind, tmp_path, alarm):
    path = tmp_path / "x.py"
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises((UserError, OSError), match="not a regular file"):
        READERS[name](path)


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
