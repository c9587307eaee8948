"""Tables, keys and tars that somebody wrote to do harm: one line, within bounds."""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltbench.data.shards import reader
from ltbench.data.shards.bounds import keys_bytes, unpack
from ltbench.data.shards.check import check
from ltbench.data.shards.dataset import Shards
from ltbench.data.shards.foreign import DENSE, index_tars
from ltbench.data.shards.format import INDEX, KEYS, MANIFEST, content_of, read_keys
from ltbench.data.shards.pack import PartToPack, pack
from ltbench.data.shards.reader import ShardSource
from ltbench.errors import UserError

N = 6


def picture(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder: Path, labels: list[int] | None = None) -> Path:
    numbers = np.array(labels or [i % 2 for i in range(N)])
    names = [str(c) for c in range(int(numbers.max()) + 1)]
    paths = [f"c/{i}.png" for i in range(len(numbers))]
    pack(PartToPack("toy", folder.name, picture, paths, numbers, names), folder, workers=1)
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PAUSE", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "train")


def edit(folder: Path, **fields: Any) -> None:
    """Edit the manifest as somebody who knows that its checksum may be left out."""
    path = folder / MANIFEST
    content = json.loads(path.read_text())
    content.pop("checksum", None)
    path.write_text(json.dumps({**content, **fields}))


def edit_shard(folder: Path, **fields: Any) -> None:
    shards = json.loads((folder / MANIFEST).read_text())["shards"]
    edit(folder, shards=[{**shards[0], **fields}, *shards[1:]])


def edit_index(folder: Path, change: Callable[[np.ndarray], object]) -> None:
    """Write another index and the manifest that its author would write to it."""
    rows = np.array(np.load(folder / INDEX))
    change(rows)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, rows, version=(1, 0))
    (folder / INDEX).write_bytes(buffer.getvalue())
    edit(folder, index_sha256=hashlib.sha256(buffer.getvalue()).hexdigest())


def put(field: str, value: int) -> Callable[[np.ndarray], object]:
    def change(rows: np.ndarray) -> None:
        rows[field][0] = value

    return change


def replace_keys(folder: Path, data: bytes) -> None:
    (folder / KEYS).write_bytes(data)
    edit(folder, keys_sha256=hashlib.sha256(data).hexdigest())


def use(folder: Path) -> None:
    source = ShardSource(folder)
    source.verify()
    source.fingerprint(source.labels)
    source.read(np.arange(len(source)))


def refused(folder: Path) -> str:
    """Return the message of the reader; the check has to find something too."""
    with pytest.raises(UserError) as caught:
        use(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    problems = check(folder, "decode", workers=1).problems
    assert problems
    assert all("\n" not in problem for problem in problems)
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label", 2**31 - 1), ("label", 2), ("label", -1), ("shard", 1), ("shard", 2**32 - 1),
        ("offset", 2**63), ("offset", 2**64 - 1), ("offset", 2**40), ("size", 2**32 - 1),
        ("size", 2**20),
    ],
)  # fmt: skip
def test_numbers_of_an_index_are_bounded(folder: Path, field: str, value: int) -> None:
    edit_index(folder, put(field, value))
    assert "disagree" in refused(folder)


def test_images_of_an_index_do_not_overlap(folder: Path) -> None:
    """A small shard cannot stand for a batch that fills the memory."""

    def change(rows: np.ndarray) -> None:
        rows["offset"] = 0
        rows["size"] = json.loads((folder / MANIFEST).read_text())["shards"][0]["bytes"]

    edit_index(folder, change)
    assert "overlap" in refused(folder)


@pytest.mark.parametrize("size", [2**28, 30])
def test_an_index_of_another_size(folder: Path, size: int) -> None:
    with (folder / INDEX).open("r+b") as file:
        file.truncate(size)
    refused(folder)


@pytest.mark.parametrize("header", [b"(" * 5000, b"{'descr': '|O', 'shape': (6,)}", b"\xff" * 60])
def test_headers_of_an_index(folder: Path, header: bytes) -> None:
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (folder / INDEX).write_bytes(data)
    edit(folder, index_sha256=hashlib.sha256(data).hexdigest())
    refused(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"",
        zlib.compress(b"c/0.png\n" * N)[:-3],
        zlib.compress(b"c/0.png\n" * N) + b"more",
        zlib.compress(b"c/0.png\n" * (N - 1)),
        zlib.compress(b"c/0.png\n" * (N - 1) + b"c/5.png"),
        zlib.compress(b"\n" * 2**22),
        zlib.compress(b"a" * 2**22),
    ],
)
def test_keys_are_bounded(folder: Path, data: bytes) -> None:
    replace_keys(folder, data)
    assert KEYS in refused(folder)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zlib.compress(bytes(2**26), 9)
    with pytest.raises(ValueError, match="more than"):
        unpack(bomb, keys_bytes(N))


ODD: list[Any] = [None, "x", "12", -1, 0, 1.5, True, 2**63, [], {}, [[1]], "\x1b[31m", "é" * 9]


@pytest.mark.parametrize(
    "field",
    ["samples", "class_counts", "class_names", "shards", "index_sha256", "keys_sha256", "split",
     "fingerprint", "content", "list_sha256", "parameters", "dataset", "format"],
)  # fmt: skip
def test_fields_of_a_manifest_have_one_type(folder: Path, field: str) -> None:
    before = (folder / MANIFEST).read_text()
    for value in ODD:
        if (field, value) in [("parameters", {}), ("list_sha256", "x"), ("list_sha256", "12")]:
            continue
        if (field, value) in [("dataset", "x"), ("dataset", "12"), ("format", True)]:
            continue
        (folder / MANIFEST).write_text(before)
        edit(folder, **{field: value})
        with pytest.raises(UserError) as caught:
            use(folder)
        assert str(caught.value).isprintable()
        assert check(folder, "size").problems


@pytest.mark.parametrize("field", ["name", "bytes", "sha256", "samples", "unknown"])
def test_fields_of_a_shard_have_one_type(folder: Path, field: str) -> None:
    before = (folder / MANIFEST).read_text()
    for value in ODD:
        if field == "name" and value in ("x", "12", "é" * 9):
            continue
        (folder / MANIFEST).write_text(before)
        edit_shard(folder, **{field: value})
        refused(folder)


@pytest.mark.parametrize("name", ["../x.tar", "/etc/passwd", "a/b.tar", "..", ".x", "a\\b", "a\0b"])
def test_a_shard_lies_in_its_folder(folder: Path, name: str) -> None:
    edit_shard(folder, name=name)
    assert "plain file name" in refused(folder)


@pytest.mark.parametrize(
    "text",
    ["[" * 10**5, '{"a":' * 10**5, "null", "[]", "", '{"format": 1}', '{"format": ' + "9" * 5000]
)  # fmt: skip
def test_manifests_that_are_none(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    assert MANIFEST in refused(folder)


def test_a_damaged_manifest_is_noticed(folder: Path) -> None:
    path = folder / MANIFEST
    text = path.read_bytes()
    for at in range(0, len(text), 7):
        path.write_bytes(text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :])
        with pytest.raises(UserError):
            use(folder)
        path.write_bytes(text[:at])
        with pytest.raises(UserError):
            use(folder)
    content = json.loads(text)
    del content["checksum"]  # as older versions wrote it
    path.write_text(json.dumps(content))
    use(folder)


def test_a_manifest_is_bounded(folder: Path) -> None:
    with (folder / MANIFEST).open("r+b") as file:
        file.truncate(2**34)  # sparse
    assert "larger than" in refused(folder)


def special(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket is short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device", "loop"])
@pytest.mark.parametrize("name", ["train-00000.tar", INDEX, KEYS])
def test_special_files_are_not_waited_for(folder: Path, name: str, kind: str) -> None:
    special(folder / name, kind)
    assert name in refused(folder)


def test_a_manifest_that_is_a_pipe(folder: Path, tmp_path: Path) -> None:
    special(folder / MANIFEST, "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        ShardSource(folder)


def test_content_is_that_of_the_index(folder: Path, tmp_path: Path) -> None:
    """Shards of other images cannot carry the hash of the real ones into a record."""
    for field, fake in (("content", "content:" + "ab" * 32), ("fingerprint", "ab" * 32)):
        before = (folder / MANIFEST).read_text()
        edit(folder, **{field: fake})
        assert "other shards" in refused(folder)
        assert any(field in problem for problem in check(folder, "size").problems)
        (folder / MANIFEST).write_text(before)
    use(folder)
    source = ShardSource(folder)
    index = source.index
    assert source.fingerprint(source.labels) == content_of(
        read_keys(folder, source.manifest), source.labels, index["size"], index["crc32"]
    )


def test_data_sets_of_edited_shards(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "train")
    write(root / "test")
    assert len(Shards(root=str(root)).load().train) == N
    for part in ("train", "test"):
        before = (root / part / MANIFEST).read_text()
        edit(root / part, fingerprint="ab" * 32)
        with pytest.raises(UserError, match="other shards"):
            Shards(root=str(root)).load()
        (root / part / MANIFEST).write_text(before)
    (root / "train").rename(root / "old")
    (root / "test").rename(root / "train")
    (root / "old").rename(root / "test")
    with pytest.raises(UserError, match="swapped"):
        Shards(root=str(root)).load()


@pytest.mark.parametrize("part", ["train", "test"])
def test_every_class_of_shards_has_images(tmp_path: Path, part: str) -> None:
    full, gap = [0, 1, 2] * 2, [0, 2] * 3
    write(tmp_path / "train", gap if part == "train" else full)
    write(tmp_path / "test", gap if part == "test" else full)
    kind = "training" if part == "train" else "test"
    with pytest.raises(UserError, match=rf"class 1, `1`, has no {kind} image"):
        Shards(root=str(tmp_path)).load()


def test_a_damaged_sidecar_is_not_believed(folder: Path) -> None:
    expected = {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}
    sidecar = folder / "train-00000.tar.json"
    text = sidecar.read_text()
    for damaged in (
        text.replace('"crc32": [', '"crc32": [1'),
        text.replace('"offset": [1', '"offset": [2'),
        "[" * 10**5,
    ):
        assert damaged != text
        sidecar.write_text(damaged)
        write(folder)
        assert {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()} == expected
    use(folder)


def test_links_are_not_written_through(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    sidecar = folder / "train-00000.tar.json"
    sidecar.unlink()
    (folder / f"train-00000.tar.{os.getpid()}.part").symlink_to(victim)
    (folder / f".partial-{sidecar.name}").symlink_to(victim)
    (folder / ".partial-manifest.json").symlink_to(victim)
    write(folder)
    assert victim.read_text() == "mine"
    use(folder)


def member(name: str, data: bytes, **fields: Any) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def good(key: str = "a", label: bytes = b"1") -> bytes:
    return member(f"{key}.jpg", picture(1)) + member(f"{key}.cls", label)


def pax(fields: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    lines = b""
    for key, value in fields.items():
        text = f" {key}={value}\n".encode()
        size = len(text) + 1
        while len(f"{size}".encode() + text) != size:
            size += 1
        lines += f"{size}".encode() + text
    return member("x", lines, type=kind)


def patched(header: bytes, at: int, field: bytes) -> bytes:
    """Change a field of a header and put its checksum right."""
    data = bytearray(header)
    data[at : at + len(field)] = field
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


NEGATIVE, HUGE = b"\xff" * 10 + b"\xfe\x00", b"\x80\0\0\0\x7f" + b"\xff" * 7
END = bytes(1024)

TARS = {
    "negative size": good() + patched(member("b.txt", b""), 124, NEGATIVE) + END,
    "negative size of an image": good() + patched(member("b.jpg", b""), 124, NEGATIVE) + END,
    "a member of 2^63 bytes": good() + patched(member("b.txt", b""), 124, HUGE) + END,
    "an image of 2^63 bytes": good() + patched(member("b.jpg", b""), 124, HUGE) + END,
    "size beyond the file": good() + member("b.txt", b"", size=10**6) + END,
    "negative size in pax": good() + pax({"size": "-1024"}) + member("b.txt", b"") + END,
    "long name of 2^40 bytes": good() + patched(member("x", b"", type=b"L"), 124, HUGE) + END,
    "long name of negative size": good() + patched(member("x", b"", type=b"L"), 124, NEGATIVE),
    "pax of 1 MiB": good() + pax({"comment": "x" * 2**20}) + member("b.txt", b"") + END,
    "digits that tarfile reads in quadratic time": good()
    + member("x", b"1" * 2**17, type=tarfile.XHDTYPE) + member("b.txt", b"") + END,
    "headers without end": good() + pax({"a": "b"}) * 3000 + END,
    "sparse without end": good()
    + pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b.txt"})
    + member("b.txt", b"9999999\n0\n0\n".ljust(512, b"0")),
    "old sparse, cut": good() + patched(member("b.txt", b"", type=b"S"), 482, b"\1"),
    "checksum": good() + b"\x01" + good("b")[1:] + END,
    "cut": good() + good("b")[:-512],
    "unended": good() + good("b"),
    "two tars": good() + END + good("b") + END,
    "empty": b"",
    "only an end": END,
    "zeros": bytes(10240),
    "text": b"hello" * 1000,
    "hard link": good() + member("b.jpg", b"", type=tarfile.LNKTYPE, linkname="a.jpg")
    + member("b.cls", b"1") + END,
    "symbolic link": good() + member("b.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    + member("b.cls", b"1") + END,
    "device": good() + member("b.jpg", b"", type=tarfile.CHRTYPE) + member("b.cls", b"1") + END,
    "pipe": good() + member("b.jpg", b"", type=tarfile.FIFOTYPE) + member("b.cls", b"1") + END,
    "label of 10^6 letters": good(label=b"a" * 10**6) + END,
    "label of 64 digits": good(label=b"9" * 64) + END,
    "label of escapes": good(label=b"\x1b[31m") + END,
    "negative label": good(label=b"-1") + END,
    "same name twice": good() + good() + END,
    "image twice": good() + member("a.jpg", picture(2)) + END,
    "long key": pax({"path": "d/" * 3000 + "a.jpg"}) + member("a.jpg", picture(1)) + END,
    "one name for all": pax({"path": "a.jpg"}, tarfile.XGLTYPE) + good() + good("b") + END,
    "many fields for all": pax({f"k{i}": "v" for i in range(5000)}, tarfile.XGLTYPE) + good() + END,
    "label is an id": good("a", b"0") + good("b", b"999999") + END,
    "gzip": b"\x1f\x8b" + bytes(600),
}  # fmt: skip


@pytest.mark.parametrize("name", TARS)
def test_hostile_tars(tmp_path: Path, name: str) -> None:
    tar = tmp_path / "set.tar"
    tar.write_bytes(TARS[name])
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        index_tars([tar], tmp_path / "out", workers=1)
    assert time.process_time() - start < 2
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    assert [p.name for p in tmp_path.iterdir() if p.name != "out"] == ["set.tar"]


DEEP = b"[" * 10**5
JSONS = [
    DEEP, b'{"y":' + DEEP, b'{"y": ' + b"9" * 5000 + b"}", b'{"y": "' + b"9" * 5000 + b'"}',
    b'{"y": -1}', b'{"y": true}', b'{"y": 1.0}', b'{"y": NaN}', b'{"y": [1]}', b'{"y": "x"}',
    b'{"z": 1}', b"[1]", b'"y"', b"null", b"", b"\xff\xfe", b'{"y": "\\u001b[31m"}',
    b'{"y": 1, "x": "' + b"x" * 2**20 + b'"}',
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(JSONS)))
def test_hostile_labels_in_json(tmp_path: Path, number: int) -> None:
    tar = tmp_path / "set.tar"
    tar.write_bytes(member("a.jpg", picture(1)) + member("a.json", JSONS[number]) + END)
    with pytest.raises(UserError, match="a number from 0 to 999999") as caught:
        index_tars([tar], tmp_path / "out", label="json:y", workers=1)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_what_such_tars_may_hold(tmp_path: Path) -> None:
    """Links, devices and sparse files beside the samples do no harm, nor do long names."""
    key = "d/" * 150 + "b"
    content = (
        member("link", b"", type=tarfile.SYMTYPE, linkname="../../etc")
        + member("null", b"", type=tarfile.CHRTYPE)
        + member("../../out.txt", b"x")
        + good("a", b"0")
        + pax({"path": f"{key}.jpg"}) + member("x", picture(1))
        + member("././@LongLink", f"{key}.cls\0".encode(), type=b"L") + member("x", b"1")
        + pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s.txt",
               "GNU.sparse.realsize": "0"})
        + member("s", b"0\n".ljust(512, b"\0"))
        + END
    )  # fmt: skip
    tar = tmp_path / "set.tar"
    tar.write_bytes(content)
    manifest = index_tars([tar], tmp_path / "out", workers=1)
    assert manifest.class_counts == (1, 1)
    source = ShardSource(tmp_path / "out/train")
    assert source.keys() == ["a.jpg", f"{key}.jpg"]
    assert [image.tobytes() for image in source.read(np.arange(2))] == [picture(1)] * 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "set.tar"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket"])
def test_tars_that_are_no_files(tmp_path: Path, kind: str) -> None:
    tar = tmp_path / "set.tar"
    tar.write_bytes(b"")
    special(tar, kind)
    with pytest.raises(UserError, match=r"cannot read .*set\.tar"):
        index_tars([tar], tmp_path / "out", workers=1)


@pytest.mark.parametrize(
    "name", [INDEX, KEYS, MANIFEST, "plan.json", ".x.tar", "a\\b.tar", "\x1b.tar"]
)
def test_names_of_tars(tmp_path: Path, name: str) -> None:
    tar = tmp_path / name
    tar.write_bytes(good(label=b"0") + END)
    with pytest.raises(UserError, match="a tar cannot be called") as caught:
        index_tars([tar], tmp_path / "out", workers=1)
    assert str(caught.value).isprintable()
    assert tar.read_bytes() == good(label=b"0") + END


def test_an_index_stays_where_a_tar_is_in_the_way(tmp_path: Path) -> None:
    tar, out = tmp_path / "set.tar", tmp_path / "out"
    tar.write_bytes(good("a", b"0") + END)
    index_tars([tar], out, workers=1)
    other = tmp_path / "elsewhere/b.tar"
    other.parent.mkdir()
    other.write_bytes(good("a", b"0") + END)
    (out / "train/b.tar").write_bytes(b"mine")
    with pytest.raises(UserError, match="is another file than"):
        index_tars([other], out, workers=1)
    assert (out / "train/b.tar").read_bytes() == b"mine"
    use(out / "train")


def test_many_classes_need_names(tmp_path: Path) -> None:
    tar = tmp_path / "set.tar"
    tar.write_bytes(good("a", b"0") + good("b", b"%d" % DENSE) + END)
    with pytest.raises(UserError, match="not ids"):
        index_tars([tar], tmp_path / "out", workers=1)
    names = [f"c{i}" for i in range(DENSE + 1)]
    assert index_tars([tar], tmp_path / "out", workers=1, class_names=names).num_classes == 10_001
