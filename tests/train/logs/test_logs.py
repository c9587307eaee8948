"""Logs of a run, read back."""

from __future__ import annotations

import csv
import json
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from ltbench import get_recipe
from ltbench.errors import UserError
from ltbench.train import run as runner
from ltbench.train.logs import sinks
from ltbench.train.logs.reporter import Logs
from ltbench.train.progress import NoProgress

from .conftest import WORDS, train

SPEED = "train/images_per_second"  # the only value that a resumed run measures anew
# 2 epochs of 6 steps and 1 of 6; results stand two steps after the last.
STEPS = [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an unbroken run with CSV and TensorBoard."""
    out = tmp_path_factory.mktemp("logs") / "run"
    pytest.importorskip("tensorboard")
    train(out, "[csv,tensorboard]")
    return out


def csv_rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return [dict(row, **{SPEED: ""}) for row in csv.DictReader(opened)]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows of a folder, without the speeds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != SPEED]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def offline_rows(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield step and values of the rows in the offline files of W&B, in their order."""
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for content in blocks(file.read_bytes()):
            record = Record.FromString(content)
            if record.HasField("history"):
                items = record.history.item
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                yield (
                    record.history.step.num,
                    {k: v for k, v in row.items() if not k.startswith("_") and k != SPEED},
                )


def blocks(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file in LevelDB's log format, after the seven bytes of W&B."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block is empty
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield parts
            parts = b""


def test_a_log_has_the_steps_and_results_of_the_run(whole):
    rows = csv_rows(whole / "logs" / "metrics.csv")
    assert [int(row["step"]) for row in rows] == STEPS
    epochs = [row for row in rows if row["train/epoch_loss"]]
    assert [(row["stage"], row["epoch"]) for row in epochs] == [
        *(("0", "1.0"), ("0", "2.0"), ("1", "1.0")),
    ]
    result = json.loads((whole / "metrics.json").read_text())
    for name in ("top1", "many", "medium", "few", "mean_recall", "ece"):
        assert float(rows[-1][f"test/{name}"]) == result[name]
    assert all(row["test/top1"] == "" for row in rows[:-1])  # never before the end
    with (whole / "curves.csv").open(newline="") as file:
        for curve, row in zip(csv.DictReader(file), epochs, strict=True):
            assert float(curve["loss"]) == float(row["train/epoch_loss"])
            assert float(curve["train_few"]) == float(row["train/few"])
            assert float(curve["lr"]) == float(row["train/lr"])
    with (whole / "logs" / "classes_test.csv").open(newline="") as file:
        classes = list(csv.DictReader(file))
    right = [round(float(row["recall"]) * int(row["images"])) for row in classes]
    assert right == result["counts"]["correct"]


def test_tensorboard_reads_the_same_values(whole):
    rows = csv_rows(whole / "logs" / "metrics.csv")
    found = scalars(whole / "logs" / "tensorboard")
    for tag, points in found.items():
        expected = [(int(row["step"]), float(row[tag])) for row in rows if row[tag]]
        assert points == [(step, pytest.approx(value)) for step, value in expected], tag
    assert set(found) >= {"train/loss", "train/lr", "train/few", "test/few", "test/ece"}


def test_an_interrupted_run_goes_on_in_its_logs(whole, tmp_path):
    logs = train(tmp_path / "run", "[csv,tensorboard]", stops=(7, 6))  # resumed from 4 and 8
    assert csv_rows(logs / "metrics.csv") == csv_rows(whole / "logs" / "metrics.csv")
    assert scalars(logs / "tensorboard") == scalars(whole / "logs" / "tensorboard")
    one, two = (load_file(f / "model.safetensors") for f in (whole, tmp_path / "run"))
    assert all((one[name] == two[name]).all() for name in one)


def test_a_finished_run_leaves_its_logs_alone(whole):
    pytest.importorskip("wandb")
    files = {f: f.read_bytes() for f in (whole / "logs").rglob("*") if f.is_file()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recipe = get_recipe("quickstart", *WORDS, "log=[csv,tensorboard,wandb]", f"out={whole}")
        assert not runner.run(recipe, quiet=True).fresh
    assert files == {f: f.read_bytes() for f in (whole / "logs").rglob("*") if f.is_file()}


def test_logs_change_neither_digest_nor_weights(whole, tmp_path):
    plain = get_recipe("quickstart", *WORDS, f"out={tmp_path / 'plain'}")
    logged = get_recipe("quickstart", *WORDS, "log=[csv,wandb]")
    assert logged.log == ("csv", "wandb")
    assert plain.digest == logged.digest
    assert "log" not in plain.tree()
    runner.run(plain, quiet=True)
    one, two = (load_file(f / "model.safetensors") for f in (whole, tmp_path / "plain"))
    assert all((one[name] == two[name]).all() for name in one)
    assert not (tmp_path / "plain" / "logs").exists()


@pytest.mark.slow
def test_wandb_offline_has_each_row_once(whole, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(sys, "argv", ["ltbench", "data.root=https://me:hidden@host/x"])
    logs = train(tmp_path / "run", "[csv,wandb]", stops=(7,))
    wandb.teardown()  # waits until its files are whole
    rows = list(offline_rows(logs))
    steps = [step for step, _ in rows]
    assert steps == STEPS
    assert len(list(logs.glob("wandb/offline-run-*"))) == 2
    for row, (_, values) in zip(csv_rows(logs / "metrics.csv"), rows, strict=True):
        numbers = {k: float(v) for k, v in row.items() if v and k != "step"}
        assert {k: v for k, v in values.items() if k in numbers} == numbers
    key = json.loads((logs / "run.json").read_text())["id"]
    recipe = get_recipe("quickstart", *WORDS)
    assert key.startswith(f"{recipe.digest}-0-")
    names = {file.stem for file in logs.glob("wandb/offline-run-*/*.wandb")}
    assert names == {f"run-{key}"}
    tables = list(logs.rglob("*.table.json"))
    assert [json.loads(t.read_text())["columns"] for t in tables] == [list(sinks.CLASSES)]
    assert not any(b"hidden" in file.read_bytes() for file in logs.rglob("*") if file.is_file())


@pytest.mark.slow
def test_trackio_has_each_row_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    logs = train(tmp_path / "run", "[csv,trackio]", stops=(7,))
    key = json.loads((logs / "run.json").read_text())["id"]
    found = SQLiteStorage.get_logs("ltbench", key)
    assert sorted({row["step"] for row in found}) == STEPS
    losses = [(row["step"], row["train/loss"]) for row in found if "train/loss" in row]
    expected = [
        (int(row["step"]), float(row["train/loss"]))
        for row in csv_rows(logs / "metrics.csv")
        if row["train/loss"]
    ]
    assert sorted(losses) == expected


def test_a_log_that_fails_does_not_stop_the_run(tmp_path, monkeypatch):
    class Broken(sinks.Csv):
        def write(self, step, values):
            if step > 2:
                raise ConnectionError("no network\nsecond line")
            super().write(step, values)

    monkeypatch.setitem(sinks.SINKS, "csv", Broken)
    with pytest.warns(UserWarning, match=r"^`log=csv` stopped, .* without it: no network$") as all_:
        logs = train(tmp_path / "run", "csv", more=("run.max_steps=3",))
    assert sum("log=csv" in str(w.message) for w in all_) == 1
    assert (tmp_path / "run" / "record.json").is_file()
    assert [row["step"] for row in csv_rows(logs / "metrics.csv")] == ["2"]


def test_no_login_is_one_note(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "login", lambda prompt: prompt)  # nobody is logged in
    logs = Logs(get_recipe("quickstart", *WORDS, "log=wandb"), NoProgress())
    info = SimpleNamespace(name="digits_lt")
    plan = SimpleNamespace(folder=tmp_path, data=SimpleNamespace(info=info), steps=(2,))
    with pytest.warns(UserWarning, match="log=wandb.*no login; run `wandb login`"):
        logs.begin(plan)
    assert logs.sinks == {}


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_library_is_named_before_anything_is_written(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda _: None)
    recipe = get_recipe("quickstart", f"log={name}", f"out={tmp_path / 'run'}")
    with pytest.raises(UserError, match=rf"`log={name}` needs .*: pip install .*{name}"):
        runner.run(recipe)
    assert not (tmp_path / "run").exists()


def test_an_unknown_log_is_one_line():
    with pytest.raises(UserError, match="`log") as caught:
        get_recipe("quickstart", "log=mlflow")
    assert len(str(caught.value).splitlines()) == 1


def test_a_torn_line_is_replaced(tmp_path):
    log = sinks.Csv()
    about = sinks.About(tmp_path, "k", "n", "g", (), {})
    log.open(about)
    for step in (2, 4):
        log.write(step, {"train/loss": 1.0})
    log.close(False)
    file = tmp_path / "metrics.csv"
    file.write_bytes(file.read_bytes()[:-5])
    log = sinks.Csv()
    log.open(about)
    log.write(4, {"train/loss": 2.0})
    log.close(True)
    assert [(row["step"], row["train/loss"]) for row in csv_rows(file)] == [
        *(("2", "1.0"), ("4", "2.0")),
    ]
