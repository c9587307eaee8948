"""Nothing in a file is executed, sizes are checked first, and tensors are exact."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import struct
import sys
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from ltbench.errors import UserError
from ltbench.importing import legacy, reading, zipped
from ltbench.importing.pickles import Damaged, Foreign, Interpreter, plain_classes
from ltbench.importing.reading import loaded, read_checkpoint, tensors_of
from ltbench.importing.storages import DTYPES
from tests.importing.theirs import foreign, saved

WEIGHT = torch.arange(12, dtype=torch.float32).reshape(3, 4)


class Runs:
    """An object whose pickle calls a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def tensors(path: Path) -> dict[str, torch.Tensor]:
    found = read_checkpoint(path)
    return loaded(dict(tensors_of(found.content)), path)


@pytest.mark.parametrize("legacy", [False, True])
def test_all_dtypes_views_and_shared_storages(tmp_path, legacy):
    base = torch.arange(24.0)
    content = OrderedDict(
        {
            "a": base[3:15].view(3, 4),
            "b": base.view(4, 6).T,
            "c": base,
            "scalar": torch.tensor(3),
            "empty": torch.zeros(0, 5),
            "parameter": torch.nn.Parameter(torch.ones(2)),
            **{str(d): torch.ones(3, dtype=d) for d in DTYPES.values()},
        }
    )
    found = tensors(saved(tmp_path / "a.pth", content, legacy))
    assert list(found) == list(content)
    for name, tensor in content.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach())
        assert found[name].is_contiguous()


@pytest.mark.parametrize("legacy", [False, True])
def test_plain_values_are_read_as_they_are(tmp_path, legacy):
    counts: defaultdict[str, int] = defaultdict(int, {"a": 1})
    content = {
        "numbers": [1, -(2**70), 2.5, True, None],
        "text": ("ü", b"bytes", bytearray(b"array")),
        "sets": ({1, 2}, frozenset({3})),
        "counts": counts,
        "more": Counter("aab"),
        "size": torch.Size([2, 3]),
        "numpy": [np.float64(0.25), np.float32(0.5), np.int64(7), np.bool_(True)],
        "arrays": [np.arange(6).reshape(2, 3), np.asfortranarray(np.ones((2, 3), np.float32))],
        "weight": WEIGHT,
    }
    found = read_checkpoint(saved(tmp_path / "a.pth", content, legacy)).content
    assert found["numbers"] == content["numbers"]
    assert found["text"] == ("ü", b"bytes", b"array")
    assert found["sets"] == content["sets"]
    assert found["counts"] == {"a": 1}
    assert found["more"] == {"a": 2, "b": 1}
    assert found["size"] == (2, 3)
    assert found["numpy"] == [0.25, 0.5, 7, True]
    assert all(type(x) in (float, int, bool) for x in found["numpy"])
    for array, wanted in zip(found["arrays"], content["arrays"], strict=True):
        assert array.dtype == wanted.dtype
        assert (array == wanted).all()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "function",
    [(os.system, "touch {}"), (eval, "open('{}', 'w')"), (exec, "open('{}', 'w')")],
    ids=["system", "eval", "exec"],
)
def test_code_in_a_pickle_is_not_run(tmp_path, legacy, function):
    call, text = function
    victim = tmp_path / "victim"
    content = {
        "state_dict": {"weight": WEIGHT},
        "evil": Runs(call, text.format(victim)),
        "deeper": [{"x": Runs(call, text.format(victim))}],
    }
    path = saved(tmp_path / "a.pth", content, legacy)
    torch.load(path, weights_only=False)
    assert victim.exists()  # the file is what it seems
    victim.unlink()
    found = read_checkpoint(path)
    assert not victim.exists()
    assert torch.equal(loaded(dict(tensors_of(found.content)), path)["state_dict.weight"], WEIGHT)
    assert isinstance(found.content["evil"], Foreign)
    assert any(name.endswith(("system", "eval", "exec")) for name in found.foreign)


def test_no_module_is_imported_and_stubs_keep_plain_state(tmp_path, monkeypatch):
    with foreign() as module:
        path = saved(tmp_path / "a.pth", {"config": module.ConfigParser(), "weight": WEIGHT})
    monkeypatch.setattr("builtins.__import__", _no_import(__import__))
    found = read_checkpoint(path)
    config = found.content["config"]
    assert config.name == "parse_config.ConfigParser"
    assert config.state["_config"]["arch"]["args"]["num_experts"] == 3
    assert config.state["path"].name.startswith("pathlib.")
    assert config.state["path"].args == ("/", "a", "b")
    assert "parse_config" not in sys.modules


def _no_import(original):
    def guarded(name, *args, **kwargs):
        assert not name.startswith("parse_config"), name
        return original(name, *args, **kwargs)

    return guarded


def test_dunder_tricks_change_nothing():
    """BUILD, attributes and calls on what a reader stands in for are without effect."""
    read = Interpreter(plain_classes(), lambda pid: pid)
    program = b"\x80\x02ccollections\nOrderedDict\n}U\x08__init__K\x01sb."  # state for a class
    read.load(io.BytesIO(program))
    assert OrderedDict([(1, 2)]) == {1: 2}
    assert dict(plain_classes()["collections.OrderedDict"].make([(1, 2)])) == {1: 2}
    getter = b"\x80\x02cbuiltins\ngetattr\ncos\npath\nU\x04join\x86R."
    assert isinstance(read.load(io.BytesIO(getter)), Foreign)
    for wrong in (
        b"\x80\x02K\x01)R.",  # a call of a number
        b"\x80\x02]K\x01K\x02s.",  # items for a list
        b"\x80\x02.",  # nothing
        b"\x80\x02h\x05.",  # an unknown memo
        b"\x80\x02}",  # no end
        b"\x80\x02\x82\x01.",  # an extension
        b"\x80\x05\x97.",  # a buffer from elsewhere
        b"\x80\x02(K\x01t\x93.",
        b"garbage",
        b"",
    ):
        with pytest.raises(Damaged):
            read.load(io.BytesIO(wrong))


def test_lengths_beyond_the_end_allocate_nothing():
    read = Interpreter(plain_classes(), lambda pid: pid)
    for code in (b"\x8e", b"\x8d", b"\x96"):  # of 2**60 bytes
        with pytest.raises(Damaged):
            read.load(io.BytesIO(b"\x80\x05" + code + struct.pack("<Q", 2**60) + b"x."))
    place = b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b"."  # a distant place of the memo
    assert read.load(io.BytesIO(place)) is None


def pickled_zip(path: Path, program: bytes, storages: dict[str, bytes], kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"a/data/{key}", data)
    return path


def program_of(shape, stride, offset=0, count=4, kind="FloatStorage") -> bytes:
    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return ("storage", getattr(torch, kind), "0", "cpu", count)
            return None

    class Tensor:
        def __reduce__(self):
            rebuild = torch._utils._rebuild_tensor_v2
            return rebuild, (Storage(), offset, shape, stride, False, OrderedDict())

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"x": Tensor()})
    return buffer.getvalue()


def test_made_up_shapes_are_refused_before_anything_is_read(tmp_path):
    data = {"0": bytes(16)}
    good = pickled_zip(tmp_path / "good.pth", program_of((2, 2), (2, 1)), data)
    assert tensors(good)["x"].shape == (2, 2)
    for number, program in enumerate(
        (
            program_of((2**40,), (0,)),  # one number as a terabyte
            program_of((2, 3), (3, 1)),  # beyond the end
            program_of((2, 2), (2, 1), offset=1),
            program_of((2, 2), (2, 1), offset=-1),
            program_of((-2, -2), (2, 1)),
            program_of((2, 2), (-2, 1)),
            program_of((2, 2), (2,)),
            program_of((2.0, 2), (2, 1)),
            program_of((2, 2), (2, 1), count=2**40),  # more than the entry has
            program_of((2, 2), (2, 1), kind="DoubleStorage"),
        )
    ):
        path = pickled_zip(tmp_path / f"{number}.pth", program, data)
        with pytest.raises(UserError, match="no intact checkpoint"):
            read_checkpoint(path)


def test_archives_that_are_no_checkpoints(tmp_path, monkeypatch):
    data, program = {"0": bytes(16)}, program_of((2, 2), (2, 1))
    packed = pickled_zip(tmp_path / "packed.pth", program, data, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="entries are compressed"):
        read_checkpoint(packed)
    script = tmp_path / "script.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(script))
    with pytest.raises(UserError, match="TorchScript"):
        read_checkpoint(script)
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme", "x")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        read_checkpoint(other)
    for module in (zipped, legacy):
        monkeypatch.setattr(module, "LARGEST_PICKLE", 10)
    with pytest.raises(UserError, match="structure has more than 10 bytes"):
        read_checkpoint(pickled_zip(tmp_path / "a.pth", program, data))
    with pytest.raises(UserError, match="structure has more than 10 bytes"):
        read_checkpoint(saved(tmp_path / "b.pth", {"x": WEIGHT}, legacy=True))
    monkeypatch.setattr(reading, "LARGEST", 10)
    with pytest.raises(UserError, match="at most 10 are read"):
        read_checkpoint(packed)


def test_too_many_names_and_nesting_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_TENSORS", 50)
    with pytest.raises(UserError, match="more than 50 named values"):
        read_checkpoint(saved(tmp_path / "a.pth", {str(k): WEIGHT for k in range(60)}))
    inside = {"x": WEIGHT}
    for _ in range(40):  # two names for each level: 2**40 paths
        inside = {"a": inside, "b": inside}
    with pytest.raises(UserError, match=r"named values|no named tensors"):
        read_checkpoint(saved(tmp_path / "b.pth", inside))


@pytest.mark.parametrize("legacy", [False, True])
def test_cut_files(tmp_path, legacy):
    whole = saved(tmp_path / "a.pth", {"x": WEIGHT, "n": np.float64(1)}, legacy).read_bytes()
    for number, length in enumerate(range(0, len(whole), max(1, len(whole) // 40))):
        path = tmp_path / f"cut{number}.pth"
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            tensors(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_flipped_bytes_raise_user_errors_only(tmp_path, legacy):
    whole = saved(tmp_path / "a.pth", {"x": WEIGHT, "n": np.float64(1)}, legacy).read_bytes()
    generator = np.random.default_rng(0)
    path = tmp_path / "b.pth"
    for _ in range(300):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 3):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            tensors(path)


def test_other_files(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_checkpoint(tmp_path / "missing.pth")
    with pytest.raises(UserError, match="cannot read"):
        read_checkpoint(tmp_path)
    text = tmp_path / "a.pth"
    text.write_text("<html>Google Drive</html>")
    with pytest.raises(UserError, match="neither"):
        read_checkpoint(text)
    with pytest.raises(UserError, match="no named tensors"):
        read_checkpoint(saved(tmp_path / "b.pth", {"a": 1}))
    tar = tmp_path / "c.tar"
    tar.write_bytes(b"\0" * 257 + b"ustar" + b"\0" * 300)
    with pytest.raises(UserError, match="unpack it"):
        read_checkpoint(tar)


def test_every_opcode_is_known_or_refused():
    read = Interpreter(plain_classes(), lambda pid: pid)
    for opcode in pickletools.opcodes:
        with pytest.raises(Damaged):
            read.load(io.BytesIO(b"\x80\x05" + opcode.code.encode("latin-1")))
