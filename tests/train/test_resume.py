"""Killed at any moment and started again with the same command, a run ends bit for bit the same."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from ltbench import get_recipe, run
from ltbench.errors import UserError
from ltbench.train.checkpoint import Store
from tests.train.conftest import WORDS, same, weights

pytestmark = pytest.mark.usefixtures("no_picture")

SAVED = [*WORDS, "run.save_steps=1"]  # often enough to be killed again and again


@pytest.mark.parametrize("often", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_again_and_again_ends_bitwise_the_same(often, unbroken, tmp_path, command):
    out, kills = tmp_path / "run", 0
    deadline = time.monotonic() + 200
    while not (out / "record.json").is_file():
        assert time.monotonic() < deadline
        process = command("run", "recipe=quickstart", *SAVED, f"out={out}")
        before = len(list(out.glob("checkpoints/*"))) and newest(out)
        # Wait for new checkpoints, then kill without warning a little later than last time.
        while process.poll() is None and kills < often:
            if out.is_dir() and newest(out) not in (before, ""):
                time.sleep(0.07 * kills)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        _, error = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), error
    assert kills == often
    assert same(weights(out), weights(unbroken))
    ours, theirs = (json.loads((d / "record.json").read_text()) for d in (out, unbroken))
    assert ours["metrics"] == theirs["metrics"]
    assert curves(out) == curves(unbroken)


def newest(out: Path) -> str:
    return max((p.name for p in out.glob("checkpoints/s*")), default="")


def curves(out: Path) -> list[str]:
    lines = (out / "curves.csv").read_text().splitlines()
    speed = lines[0].split(",").index("images_per_second")
    return [",".join(c for i, c in enumerate(x.split(",")) if i != speed) for x in lines]


def test_a_finished_run_is_read_not_repeated(unbroken):
    before = (unbroken / "model.safetensors").stat().st_mtime_ns
    result = run(get_recipe("quickstart", *SAVED, f"out={unbroken}"))
    assert not result.fresh
    assert (unbroken / "model.safetensors").stat().st_mtime_ns == before


def test_the_folder_of_another_run_is_refused(unbroken, tmp_path):
    with pytest.raises(UserError, match="belongs to `quickstart`"):
        run(get_recipe("quickstart", *SAVED, "seed=1", f"out={unbroken}"))
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        run(get_recipe("quickstart", *SAVED, f"out={tmp_path}"))
    assert (tmp_path / "letter.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["letter.txt"]


def test_last_two_checkpoints_and_one_per_stage_are_kept(unbroken):
    names = sorted(p.name for p in (unbroken / "checkpoints").iterdir())
    stages = [n for n in names if n.endswith("-stage")]
    assert stages == ["s1-e0000-t000000-stage", "s2-e0000-t000000-stage"]
    assert len(names) <= 4


DAMAGES = ("truncate", "flip", "state", "missing")


@pytest.mark.parametrize(
    ("damage", "resumed"),
    [
        *((damage, damage == "missing") for damage in DAMAGES),
        *(pytest.param(damage, True, marks=pytest.mark.slow) for damage in DAMAGES[:3]),
    ],
)
def test_a_damaged_checkpoint_is_named_and_nothing_is_lost(damage, resumed, unbroken, tmp_path):
    import shutil

    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    (out / "record.json").unlink()
    folder = out / "checkpoints" / newest(out)
    tensors = folder / "tensors.safetensors"
    if damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:1000])
    elif damage == "flip":
        content = bytearray(tensors.read_bytes())
        content[-100] ^= 1
        tensors.write_bytes(content)
    elif damage == "state":
        (folder / "state.json").write_text("{")
    else:
        tensors.unlink()
    with pytest.raises(UserError, match=folder.name) as caught:
        run(get_recipe("quickstart", *SAVED, f"out={out}"))
    assert len(str(caught.value).splitlines()) == 1
    assert "delete the folder" in str(caught.value)
    if resumed:
        shutil.rmtree(folder)  # what the message advises
        run(get_recipe("quickstart", *SAVED, f"out={out}"))
        assert same(weights(out), weights(unbroken))


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(unbroken, tmp_path, monkeypatch):
    import errno
    import shutil

    from ltbench.train import checkpoint

    out = tmp_path / "run"
    real, calls = checkpoint.save_file, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 4:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        run(get_recipe("quickstart", *SAVED, f"out={out}"))
    assert not list(out.glob("**/.partial-*"))
    assert Store(out / "checkpoints").latest() is not None
    monkeypatch.setattr(checkpoint, "save_file", real)
    run(get_recipe("quickstart", *SAVED, f"out={out}"))
    assert same(weights(out), weights(unbroken))
    shutil.rmtree(out)


def test_ctrl_c_exits_130_with_one_line_and_resumes(unbroken, tmp_path, command):
    out = tmp_path / "run"
    process = command("run", "recipe=quickstart", *SAVED, f"out={out}")
    deadline = time.monotonic() + 60
    while not newest(out) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.strip().splitlines() == [
        f"interrupted; the same command goes on from the last checkpoint in {out}"
    ]
    run(get_recipe("quickstart", *SAVED, f"out={out}"))
    assert same(weights(out), weights(unbroken))


def test_two_processes_do_not_share_a_folder(tmp_path, command):
    from filelock import FileLock

    out = tmp_path / "run"
    out.mkdir()
    with FileLock(out / ".lock"):
        process = command("run", "recipe=quickstart", *SAVED, f"out={out}")
        _, error = process.communicate()
    assert process.returncode == 2
    assert "another process is running" in error


@pytest.mark.slow
def test_no_checkpoint_stands_before_a_short_rest(tmp_path, monkeypatch):
    """With other ranks the rest may be a step of its own or not: images would be lost or twice."""
    saved = []
    real = Store.save

    def save(self, snapshot, *, keep=False):
        saved.append(snapshot.position)
        real(self, snapshot, keep=keep)

    monkeypatch.setattr(Store, "save", save)
    words = [word for word in WORDS if not word.startswith("run.save_steps=")]
    recipe = get_recipe("quickstart", *words, "run.save_steps=1", f"out={tmp_path}")
    images, size = len(recipe.data.config.load().train), recipe.stages[0].batch_size
    assert images % size > 0
    run(recipe)
    inside = [p for p in saved if p.stage == 0 and p.step]
    assert {p.step for p in inside} == set(range(1, images // size))
    assert {p.epoch for p in inside} == set(range(recipe.stages[0].epochs))
