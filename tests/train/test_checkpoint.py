"""Checkpoints are written while training goes on, and say what data they go on with."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ltbench import get_recipe, run
from ltbench.config.recipe import RunOptions
from ltbench.data.memory import MemorySplit
from ltbench.digest import file_sha256
from ltbench.errors import UserError
from ltbench.files import read_sealed, seal
from ltbench.train import checkpoint
from ltbench.train.cadence import Cadence
from ltbench.train.checkpoint import (
    BackgroundWriter,
    Position,
    Snapshot,
    Store,
    copied,
    folders,
    read_snapshot,
)
from ltbench.train.resume import WHAT, check_resume_state, resume_state
from ltbench.train.stage import StageRun
from tests.train.conftest import WORDS, same, weights

pytestmark = pytest.mark.usefixtures("no_picture")

OFTEN = "run.save_minutes=0.0000001"  # after each step


def break_after(steps: int, error: BaseException, monkeypatch) -> None:
    """Let that error end the run in place of a later step."""
    do_step, left = StageRun.step, [steps]

    def step(self, *args):
        if not left[0]:
            raise error
        left[0] -= 1
        return do_step(self, *args)

    monkeypatch.setattr(StageRun, "step", step)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("an image cannot be read")])
def test_saved_by_the_clock_a_broken_run_ends_the_same(error, unbroken, tmp_path, monkeypatch):
    out = tmp_path / "run"
    recipe = get_recipe("quickstart", *WORDS, OFTEN, f"out={out}")
    with monkeypatch.context() as broken:
        break_after(9, error, broken)
        with pytest.raises(type(error)):
            run(recipe)
    # The step before the last has always been written; what was under way has been finished.
    position = Store(out / "checkpoints").latest().position
    assert position == Position(0, 1, 3)
    assert not list(out.glob("**/.partial-*"))
    run(recipe)
    assert same(weights(out), weights(unbroken))


def test_without_a_clock_only_epochs_and_stages_are_saved(tmp_path, monkeypatch):
    saved = []
    save = Store.save
    monkeypatch.setattr(Store, "save", lambda self, s, **k: (saved.append(s), save(self, s, **k)))
    words = [*WORDS, "run.save_minutes=null", "run.eval_every=9"]
    run(get_recipe("quickstart", *words, f"out={tmp_path / 'run'}"))
    assert [s.position for s in saved] == [Position(0, 1), Position(1), Position(2)]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """The first write ends only when two more steps have been done."""
    do_step, save_file = StageRun.step, checkpoint.save_file
    steps, went_on, waited = [], threading.Event(), []

    def step(self, *args):
        steps.append(threading.current_thread())
        if len(steps) == 5:
            went_on.set()
        return do_step(self, *args)

    def slow(tensors, path):
        if not waited:
            before = {k: t.clone() for k, t in tensors.items()}
            waited.append(went_on.wait(timeout=60))
            assert all(torch.equal(t, before[k]) for k, t in tensors.items())  # training is not
        save_file(tensors, path)

    monkeypatch.setattr(StageRun, "step", step)
    monkeypatch.setattr(checkpoint, "save_file", slow)
    run(get_recipe("quickstart", *WORDS, "run.save_steps=3", f"out={tmp_path / 'run'}"))
    assert waited == [True]


def test_a_failed_write_in_the_background_stops_the_run_and_spares_what_was_there(
    unbroken, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    recipe = get_recipe("quickstart", *WORDS, "run.save_steps=2", f"out={out}")
    save_file, calls, steps = checkpoint.save_file, [], []

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    with monkeypatch.context() as broken:
        do_step = StageRun.step
        broken.setattr(StageRun, "step", lambda *a: (steps.append(0), do_step(*a))[1])
        broken.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match="No space left on device") as caught:
            run(recipe)
    assert len(str(caught.value).splitlines()) == 1
    assert len(steps) == 6  # found when the next one was due
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["s0-e0000-t000002"]
    run(recipe)
    assert same(weights(out), weights(unbroken))


def test_work_in_the_background_is_done_in_order_and_never_lost():
    done, gate = [], threading.Event()
    background = BackgroundWriter()
    background.start(lambda: (gate.wait(10), done.append(1))[1])
    assert done == []
    gate.set()
    background.start(lambda: done.append(2))
    background.wait()
    assert done == [1, 2]

    def fail() -> None:
        raise UserError("full")

    background.start(fail)
    with pytest.raises(UserError, match="full"):
        background.start(lambda: done.append(3))
    background.start(lambda: done.append(4))
    background.close()
    assert done == [1, 2, 4]


def test_copies_do_not_follow_the_tensors():
    layout = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    tensors = {"a": torch.ones(3), "b": layout, "c": torch.tensor(5), "d": torch.ones(3).t()}
    before = {k: t.clone() for k, t in tensors.items()}
    copies = copied(tensors)
    for t in tensors.values():
        t.zero_()
    assert all(torch.equal(copies[k], before[k]) and copies[k].is_contiguous() for k in before)


def test_what_a_kill_left_half_written_is_removed_and_not_read(broken):
    store = Store(broken / "checkpoints")
    good = store.latest()
    for name in (".partial-s0-e0009-t000000", ".partial-s1-e0000-t000000-stage"):
        half = broken / "checkpoints" / name
        half.mkdir()
        (half / "tensors.safetensors").write_bytes(b"half")
    found = store.latest()
    assert found.position == good.position
    assert not list(broken.glob("**/.partial-*"))


def changed(out: Path, **values: object) -> None:
    """Edit the resume state of the newest checkpoint."""
    path = max(out.glob("checkpoints/s*")) / "state.json"
    state = read_sealed(path, last="facts")
    state["facts"]["resume"].update(values)
    path.write_bytes(seal(json.dumps(state)))


@pytest.fixture
def broken(tmp_path, monkeypatch) -> Path:
    out = tmp_path / "run"
    with monkeypatch.context() as inside:
        break_after(8, KeyboardInterrupt(), inside)
        with pytest.raises(KeyboardInterrupt):
            run(get_recipe("quickstart", *WORDS, "run.save_steps=1", f"out={out}"))
    return out


def test_the_resume_state_is_small_and_says_what_is_next(broken):
    facts = json.loads((max(broken.glob("checkpoints/s*")) / "state.json").read_text())["facts"]
    state = facts["resume"]
    assert len(json.dumps(state)) < 1024
    recipe = get_recipe("quickstart", *WORDS)
    data = recipe.data.config.load()
    assert set(state) == set(WHAT)
    assert state["data"] == data.train.fingerprint()
    assert (state["stage"], state["epoch"], state["consumed"]) == (0, 1, 2 * 64)
    assert (state["batch"], state["sampler"]["name"], state["last"]) == (64, "instance", "keep")


def test_other_data_are_refused_in_one_line(broken, monkeypatch):
    monkeypatch.setattr(MemorySplit, "fingerprint", lambda self: "content:" + "0" * 64)
    with pytest.raises(UserError, match="the training data changed since the checkpoint") as caught:
        run(get_recipe("quickstart", *WORDS, f"out={broken}"))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "found content:000" in message
    assert "pass another `out=`" in message


def test_wrong_hashes_of_test_images_are_noticed_at_the_first_checkpoint(tmp_path, monkeypatch):
    real = MemorySplit.fingerprint

    def fingerprint(split: MemorySplit) -> str:
        if len(split) == 600:  # the test images
            raise UserError("the manifest says content:0 of the images")
        return real(split)

    monkeypatch.setattr(MemorySplit, "fingerprint", fingerprint)
    with pytest.raises(UserError, match="the manifest says"):
        run(get_recipe("quickstart", *WORDS, f"out={tmp_path / 'run'}"))
    assert not list((tmp_path / "run").glob("checkpoints/s0-e*"))


def test_another_order_of_the_epoch_is_refused(broken):
    changed(broken, order="f" * 64)
    with pytest.raises(UserError, match=r"the order of the epoch's images .* changed since"):
        run(get_recipe("quickstart", *WORDS, f"out={broken}"))


@pytest.mark.parametrize("key", WHAT)
def test_any_difference_is_named(key):
    stage = get_recipe("quickstart").stages[0]
    now = resume_state(Position(0, 1, 2), 7, "content:1", stage, np.arange(400))
    assert set(now) == set(WHAT)
    check_resume_state(json.loads(json.dumps(now)), now, "here")
    with pytest.raises(UserError) as caught:
        check_resume_state({**now, key: "other"}, now, "here")
    assert str(caught.value).startswith(f"{WHAT[key]} changed since here was written: expected ot")


def test_after_the_last_stage_only_the_data_count():
    state = resume_state(Position(2), 7, "content:1", None, None)
    assert state == {"version": 1, "data": "content:1", "seed": 7, "stage": 2, "epoch": 0}


def test_no_checkpoint_is_due_before_a_short_last_batch():
    by_steps = Cadence(RunOptions(save_steps=3, save_minutes=None))
    by_clock = Cadence(RunOptions(save_minutes=1e-9))
    assert [by_steps.due(done, 64, 64) for done in (1, 2, 3)] == [None, None, "steps"]
    assert by_clock.due(1, 64, 64) == "minutes"
    assert by_steps.due(3, 63, 64) is by_clock.due(1, 63, 64) is None


@pytest.mark.parametrize(
    "places",
    [
        [(9, 0, 0), (10, 0, 0), (10, 1, 0), (10, 2, 0)],
        [(0, 9998, 0), (0, 9999, 0), (0, 10000, 0), (0, 10001, 0)],
        [(0, 0, 999998), (0, 0, 999999), (0, 0, 1000000), (0, 0, 1000001)],
    ],
)
def test_the_newest_checkpoint_is_that_of_the_largest_numbers(places, tmp_path):
    store = Store(tmp_path)
    for place in places:
        store.save(Snapshot(Position(*place), {"a": torch.zeros(1)}, {}))
    assert store.latest().position == Position(*places[-1])
    assert [p.name for p in folders(tmp_path)] == [Position(*p).name for p in places[-2:]]


@pytest.fixture(scope="module")
def state(unbroken) -> bytes:
    return (folders(unbroken / "checkpoints")[-1] / "state.json").read_bytes()


def put(state: bytes, tmp_path: Path, name: str = "s2-e0000-t000000-stage") -> Path:
    """Write a checkpoint with that state."""
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    save_file({}, folder / "tensors.safetensors")
    text = json.loads(state)
    text.pop("checksum", None)
    text["sha256"] = file_sha256(folder / "tensors.safetensors")
    (folder / "state.json").write_bytes(seal(json.dumps(text)))
    return folder


def unreadable(folder: Path) -> None:
    with pytest.raises(UserError, match="is not readable") as caught:
        read_snapshot(folder)
    assert len(str(caught.value).splitlines()) == 1


def test_every_flip_of_a_state_is_found(state, tmp_path):
    folder = put(state, tmp_path)
    whole = (folder / "state.json").read_bytes()
    assert read_snapshot(folder).stage == 1
    for place in np.random.default_rng(0).choice(len(whole), 60, replace=False).tolist():
        flipped = whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
        (folder / "state.json").write_bytes(flipped)
        unreadable(folder)


def test_a_state_of_an_older_version_has_no_checksum_and_is_still_checked(state, tmp_path):
    folder = put(state, tmp_path)
    old = json.loads((folder / "state.json").read_text())
    del old["checksum"], old["facts"]["threads"]
    (folder / "state.json").write_text(json.dumps(old))
    assert read_snapshot(folder).facts == old["facts"]
    for key, value in {
        "seed": -1,
        "stage": "1",
        "worlds": [0],
        "seconds": -1e9,
        "history": {},
        "optimizer": [],
        "resume": None,
    }.items():
        (folder / "state.json").write_text(
            json.dumps({**old, "facts": {**old["facts"], key: value}})
        )
        unreadable(folder)
        missing = {k: v for k, v in old["facts"].items() if k != key}
        (folder / "state.json").write_text(json.dumps({**old, "facts": missing}))
        unreadable(folder)


def test_a_checkpoint_under_another_name_is_refused(state, tmp_path):
    folder = put(state, tmp_path, "s0-e0001-t000000")
    unreadable(folder)
