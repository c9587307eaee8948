"""`tools/gpu_check.py` runs without a GPU; what only a GPU can show is not judged here."""

from __future__ import annotations

import itertools
import json
import tarfile
import time
import warnings
import zipfile
from pathlib import Path

import gpu_check
import numpy as np
import pytest
import torch
from gpu_sections import numerics, packed, runs
from gpu_sections.place import Place

from ltbench.data.cifar import CIFAR10LT
from ltbench.records.record import Record
from ltbench.updates.plain import Plain

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place():
    tf32 = torch.backends.cudnn.allow_tf32
    with torch.random.fork_rng(devices=[]):
        yield Place(torch.device("cpu"), small=True, deadline=time.monotonic() + 60)
    torch.backends.cudnn.allow_tf32 = tf32


def test_without_a_gpu_one_line_says_so(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main([f"out={tmp_path}"]) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.count("\n") == 1
    assert "no GPU found" in error
    assert not list(tmp_path.iterdir())


def test_words_that_mean_nothing_are_refused(capsys):
    assert gpu_check.main(["device=cpu", "sections=everything"]) == 2
    assert "no section `everything`" in capsys.readouterr().err
    assert gpu_check.main(["device=cpu", "data.root=DIR"]) == 2
    assert "`data.root=DIR` is for recipes" in capsys.readouterr().err


def test_options_may_begin_with_dashes():
    ours, rest = gpu_check._words(["--recipes", "ce,gcl", "seeds=0,1", "data.root=x=y"])
    assert ours == {"recipes": "ce,gcl", "seeds": "0,1"}
    assert rest == ["data.root=x=y"]


def test_the_same_device_has_the_same_numbers(place):
    rows = list(numerics.numerics(place))
    assert [row["ok"] for row in rows] == [True, True]
    assert rows[0]["plain"] == rows[0]["plot-cagrad"] == rows[0]["loss"] == "0e+00"


def test_other_numbers_and_crashes_are_found(place, monkeypatch):
    step = numerics._step

    count = itertools.count()

    def other(name, kind, device):
        if kind == "plot-cagrad":
            raise RuntimeError("no kernel")
        loss, gradient = step(name, kind, device)
        return loss, gradient * (1 + 1e-4 * (next(count) % 2))

    monkeypatch.setattr(numerics, "_step", other)
    row = next(iter(numerics.numerics(place)))
    assert row["ok"] is False
    assert row["plain"] == "1e-04"
    assert row["plot-cagrad"] == "RuntimeError: no kernel"


def test_waits_are_counted_where_they_are(monkeypatch):
    """On a CPU that pretends: torch warns in the debug mode, and an event is waited for."""
    mode, cpu = [], torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.append)
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda *_: None)
    step = Plain.step

    def waiting(self, *args):
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
        torch.cuda.Event.synchronize(None)
        return step(self, *args)

    monkeypatch.setattr(Plain, "step", waiting)
    with pytest.warns(UserWarning, match="synchronizing"):  # of the steps before
        found = numerics._waits("ce", "plain", cpu)
    assert mode == ["warn", "default"]
    assert found.pop("Event.synchronize") == 1
    ((line, count),) = found.items()
    assert (Path(line).name.partition(":")[0], count) == (Path(__file__).name, 1)


def test_a_section_that_fails_is_a_row(tmp_path, monkeypatch, capsys):
    def breaks(_place):
        yield {"what": "first", "ok": True}
        raise ValueError("broken")

    monkeypatch.setattr(numerics, "numerics", breaks)
    with torch.random.fork_rng(devices=[]):
        threads = torch.get_num_threads()
        gpu_check._section("numerics", "cpu", True, tmp_path / "rows")
        torch.set_num_threads(threads)
    first, second = map(json.loads, (tmp_path / "rows").read_text().splitlines())
    assert first["ok"] is True
    assert (second["ok"], second["error"]) == (False, "ValueError: broken")
    assert "test_gpu_check.py" in second["at"]
    capsys.readouterr()


def test_a_section_that_hangs_is_ended_and_keeps_its_rows(monkeypatch, tmp_path):
    script = tmp_path / "hangs.py"
    script.write_text(
        "import sys, time, pathlib\n"
        "file = next(w for w in sys.argv if w.startswith('rows=')).removeprefix('rows=')\n"
        'pathlib.Path(file).write_text(\'{"what": "first", "ok": true}\\n\')\n'
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu_check, "__file__", str(script))
    monkeypatch.setattr(gpu_check, "START", 0)
    rows = gpu_check._run("numerics", "cpu", True, 0.5)
    assert [row["ok"] for row in rows] == [True, False]
    assert "did not end" in rows[1]["error"]
    assert gpu_check._run("numerics", "cpu", True, -1)[0]["left out"] == "no time is left"


@pytest.mark.slow
def test_every_section_runs_on_a_cpu(tmp_path, capfd):
    words = ["device=cpu", "small=true", f"out={tmp_path}"]
    assert gpu_check.main(words) == 0, capfd.readouterr()
    sections = json.loads((tmp_path / "gpu_check.json").read_text())["sections"]
    assert set(sections) == set(gpu_check.SECTIONS)
    assert all(rows for rows in sections.values())
    assert [row["ok"] for row in sections["resume"]] == [True]
    assert all(row["images/s"] > 0 for row in sections["throughput"])
    assert all(row["ms"] > 0 for row in sections["steps"] + sections["compiled"])
    assert [row["ok"] for row in sections["compiled"]] == [True]


@pytest.mark.slow
def test_an_interrupted_run_is_resumed_and_not_begun_again(place, monkeypatch):
    monkeypatch.setattr("ltbench.train.curves._picture", lambda *_: b"")
    (row,) = runs.resume(place)
    assert row["ok"] is True
    assert row["after the interruption"] == row["steps"] - 7  # the 8th was not saved any more


@pytest.mark.slow
def test_recipes_leave_records_and_weights(tmp_path, capfd):
    words = ["recipes=quickstart", "seeds=0,1", "run.max_steps=2", "device=cpu", "jobs=1"]
    assert gpu_check.main([*words, f"out={tmp_path}"]) == 0, capfd.readouterr()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gpu_check.json", "quickstart.tar"]
    with tarfile.open(tmp_path / "quickstart.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    for seed in (0, 1):
        folder = tmp_path / "quickstart" / f"seed{seed}"
        assert Record.load(folder / "record.json").seed == seed
        assert (folder / "model.safetensors").is_file()


def test_packed_images_come_back(tmp_path, monkeypatch):
    """A file of few images, of a data set whose lists name only these."""
    drawn = np.random.default_rng(0)
    names = ["airplane", "automobile"]
    labels = np.array([0, 1, 0, 1, 1, 0])
    pixels = drawn.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)

    class Few:
        test_labels = labels[:4]

        def indices(self, *_):
            return np.array([0, 1, 4])

    monkeypatch.setattr(packed, "read_frozen", lambda _name: Few())
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as sheets:
        sheets.writestr("classes.csv", "label,name\n0,airplane\n1,automobile\n")
        for split, count in (("train", 6), ("test", 4)):
            lines = ["class,tile,official_index,lossless"]
            for label, name in enumerate(names):
                own = np.flatnonzero(labels[:count] == label)
                sheets.writestr(f"{split}/{name}.webp", packed._sheet(pixels[own]))
                lines += [f"{name},{tile},{i},1" for tile, i in enumerate(own)]
            sheets.writestr(f"{split}_tiles.csv", "\n".join(lines))
    packed.pack(tmp_path / "all.zip", tmp_path / "few.zip")
    folder = packed.unpack(tmp_path / "few.zip", tmp_path / "arrays")
    for split, kept in (("train", [0, 1, 4]), ("test", [0, 1, 2, 3])):
        index = np.load(folder / f"{split}_index.npy")
        assert sorted(index) == kept
        assert np.array_equal(np.load(folder / f"{split}_labels.npy"), labels[index])
        assert np.array_equal(np.load(folder / f"{split}_images.npy"), pixels[index])


@pytest.mark.slow
def test_the_packed_subset_of_cifar_is_read(tmp_path):
    sheets = ROOT.parent / "shared" / "data" / "cifar10lt_sheets.zip"
    if not sheets.is_file():
        pytest.skip("needs ../shared/data/cifar10lt_sheets.zip")
    folder = packed.unpack(sheets, tmp_path)
    data = CIFAR10LT(root=str(folder)).load()
    assert data.info.class_counts[0] == 5000
    assert len(data.train) == 12_406
