from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from ltbench.data.shards import reader
from ltbench.data.shards.format import INDEX, KEYS, MANIFEST, Manifest, read_keys
from ltbench.data.shards.pack import PartToPack, pack
from ltbench.data.shards.reader import ShardSource
from ltbench.errors import UserError
from ltbench.seeding import keyed_bits

N = 40
LABELS = np.arange(N) % 3


def content(i: int) -> bytes:
    return keyed_bits(i, np.arange(60 + 40 * i)).astype(np.uint8).tobytes()


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty files of 60 to 1620 random bytes in shards of 24 KiB."""
    folder = tmp_path_factory.mktemp("packed") / "train"
    paths = [f"c{i % 3}/{i}.jpg" for i in range(N)]
    part = PartToPack("list", "train", content, paths, LABELS, ("a", "b", "c"))
    pack(part, folder, shard_bytes=24 * 1024, workers=1)
    return folder


@pytest.fixture
def folder(packed: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    copy = tmp_path / "train"
    copy.mkdir()
    for file in packed.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def damage(folder: Path, index: int, at: int = 0) -> Path:
    """Flip a bit of an image and return its shard."""
    source = ShardSource(folder)
    row = source.index[index]
    shard = folder / source.manifest.shards[row["shard"]].name
    data = bytearray(shard.read_bytes())
    data[int(row["offset"]) + at] ^= 4
    shard.write_bytes(data)
    return shard


def test_bytes_come_in_the_order_asked_for(packed: Path) -> None:
    source = ShardSource(packed)
    assert len(source.manifest.shards) > 3
    assert len(source) == N
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == LABELS.tolist()
    assert source.class_counts.tolist() == [14, 13, 13]
    for order in (np.arange(N), np.arange(N)[::-1], np.array([7, 7, 3, 39, 0, 7]), np.array([5])):
        images = source.read(order)
        assert [image.dtype for image in images] == [np.uint8] * len(order)
        assert [image.tobytes() for image in images] == [content(i) for i in order.tolist()]
    assert source.read(np.array([], dtype=np.int64)) == []
    assert source.name(5) == f"c2/5.jpg ({source.manifest.shards[source.index[5]['shard']].name})"


def test_the_buffer_is_reused_and_grows(packed: Path) -> None:
    source = ShardSource(packed)
    (small,) = source.read(np.array([1]))
    both = source.read(np.array([30, 31]))
    assert both[1].base is both[0].base
    (again,) = source.read(np.array([2]))
    assert again.base is both[0].base
    assert again.tobytes() == content(2)
    assert small.tobytes() == content(1)  # its buffer was replaced by a larger one


def test_a_part_of_the_index(packed: Path) -> None:
    rows = np.array([9, 2, 33])
    part = ShardSource(packed, rows)
    assert part.labels.tolist() == LABELS[rows].tolist()
    assert part.class_counts.tolist() == [2, 0, 1]
    assert [image.tobytes() for image in part.read(np.array([2, 0]))] == [content(33), content(9)]
    assert part.name(1).startswith("c2/2.jpg ")
    inner = part.subset(np.array([2]))
    assert inner.rows is not None
    assert inner.rows.tolist() == [33]
    assert inner.read(np.array([0]))[0].tobytes() == content(33)


def test_fingerprints(packed: Path) -> None:
    whole = ShardSource(packed)
    assert whole.fingerprint(LABELS) == whole.manifest.content
    assert whole.manifest.content.startswith("content:")
    assert ShardSource(packed, np.arange(N)).fingerprint(LABELS) == whole.manifest.content
    parts = [np.arange(9), np.arange(9)[::-1], np.arange(10), np.r_[np.arange(8), 20]]
    found = [ShardSource(packed, rows).fingerprint(LABELS[rows]) for rows in parts]
    found.append(whole.fingerprint(LABELS[::-1]))
    assert all(one.startswith("content:") and len(one) == 8 + 64 for one in found)
    assert len(set(found)) == len(found)
    assert ShardSource(packed, parts[0]).fingerprint(LABELS[:9]) == found[0]


def read_in_child(source: ShardSource, expected: list[bytes], send: object) -> None:
    ok = [image.tobytes() for image in source.read(np.arange(N))] == expected
    send.send((ok, sorted(source._files._open.values())))  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_open_shards_by_themselves(packed: Path, method: str) -> None:
    source = ShardSource(packed, np.arange(N)[::-1])
    before = source.read(np.arange(N))
    expected = [image.tobytes() for image in before]
    own = set(source._files._open.values())
    context = multiprocessing.get_context(method)
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=read_in_child, args=(source, expected, send))
    child.start()
    assert receive.poll(60)
    ok, theirs = receive.recv()
    child.join(60)
    assert child.exitcode == 0
    assert ok
    if method == "fork":
        assert own.isdisjoint(theirs)
    assert [image.tobytes() for image in source.read(np.arange(N))] == expected


def test_a_pickle_holds_neither_index_nor_descriptors(packed: Path) -> None:
    source = ShardSource(packed)
    source.read(np.arange(N))
    source.name(0)
    data = pickle.dumps(source)
    assert len(data) < 2500 + len(pickle.dumps(source.manifest))
    other = pickle.loads(data)
    assert other._files._open == {}
    assert other.read(np.array([4]))[0].tobytes() == content(4)


def descriptors() -> set[str]:
    try:
        return {path.name for path in Path("/proc/self/fd").iterdir()}
    except OSError:  # elsewhere than on Linux
        return set()


def test_few_descriptors_are_kept(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "OPEN_FILES", 2)
    source = ShardSource(packed)
    open_before = descriptors()
    for i in range(N):
        assert source.read(np.array([i]))[0].tobytes() == content(i)
        assert len(source._files._open) <= 2
    assert len(source.read(np.arange(N))) == N  # a batch may need more of them
    del source
    assert descriptors() <= open_before


def test_a_flipped_bit_is_named(folder: Path) -> None:
    shard = damage(folder, 11, at=37)
    source = ShardSource(folder)
    others = np.delete(np.arange(N), 11)
    assert [image.tobytes() for image in source.read(others)] == [content(i) for i in others]
    with pytest.raises(UserError) as caught:
        source.read(np.array([3, 11]))
    message = str(caught.value)
    offset = source.index[11]["offset"]
    for part in ("c2/11.jpg", str(shard), f"offset {offset}", "level=sha256", "copy that shard"):
        assert part in message
    assert "\n" not in message
    with pytest.raises(UserError, match=r"c2/11\.jpg"):
        ShardSource(folder, np.array([11])).read(np.array([0]))


def test_bytes_that_are_right_at_the_second_look(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = damage(folder, 11)
    source = ShardSource(folder)
    whole = bytearray(shard.read_bytes())
    whole[int(source.index[11]["offset"])] ^= 4
    forgotten = []

    def forget(self: object, number: int, offset: int, size: int) -> None:
        forgotten.append((offset, size))
        shard.write_bytes(whole)

    monkeypatch.setattr(reader._Files, "_forget", forget)
    assert source.read(np.array([11]))[0].tobytes() == content(11)
    assert forgotten == [(source.index[11]["offset"], len(content(11)))]


def test_the_whole_batch_is_announced_before_waiting(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ShardSource(packed)
    real, log = os.preadv, []

    def preadv(fd: int, into: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        log.append(("read", offset, len(into[0])))
        return real(fd, into, offset)

    monkeypatch.setattr(reader, "_AT_ONCE", 8)
    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(
        os, "posix_fadvise", lambda fd, at, n, advice: log.append(("told", at, n)), raising=False
    )
    order = np.array([20, 4, 31, 8])
    assert [image.tobytes() for image in source.read(order)] == [content(i) for i in order]
    assert [kind for kind, _, _ in log] == ["told"] * 4 + ["read"] * 4
    assert {one[1:] for one in log[:4]} == {one[1:] for one in log[4:]}


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_three_tries(folder: Path, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    monkeypatch.setattr(reader, "PAUSE", 0.0)
    source = ShardSource(folder)
    source.read(np.arange(N))
    real, left, opened = os.preadv, [failures + 1], []  # and the try that does not wait

    def preadv(*args: int) -> int:
        if left[0]:
            left[0] -= 1
            raise OSError(5, "Input/output error")
        return real(*args)

    real_open = os.open
    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "open", lambda *a: opened.append(a) or real_open(*a))
    if failures < 3:
        assert source.read(np.array([6]))[0].tobytes() == content(6)
        assert len(opened) == failures  # a descriptor that failed is not used again
    else:
        with pytest.raises(UserError, match=r"Input/output error \(3 tries\).*copy this shard"):
            source.read(np.array([6]))


def test_a_shard_that_shrinks_while_it_is_open(folder: Path) -> None:
    source = ShardSource(folder)
    source.read(np.arange(N))
    shard = folder / source.manifest.shards[0].name
    inside = int(np.flatnonzero(source.index["shard"] == 0)[0])
    with shard.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match=r"has 100 bytes, its manifest says [\d,]+: a partial copy"):
        source.read(np.array([inside]))


@pytest.mark.parametrize("change", ["missing", "shorter", "longer", "folder"])
def test_a_shard_that_is_not_the_one(
    folder: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "PAUSE", 0.0)
    shard = folder / ShardSource(folder).manifest.shards[1].name
    data = shard.read_bytes()
    shard.unlink()
    if change == "folder":
        shard.mkdir()
    elif change != "missing":
        shard.write_bytes(data[:-512] if change == "shorter" else data + bytes(512))
    source = ShardSource(folder)
    inside = np.flatnonzero(source.index["shard"] == 1)
    outside = np.flatnonzero(source.index["shard"] != 1)
    assert [i.tobytes() for i in source.read(outside)] == [content(i) for i in outside]
    with pytest.raises(UserError) as caught:
        source.read(inside)
    message = str(caught.value)
    assert str(shard) in message
    reasons = {"missing": "No such file", "folder": "not a regular file"}
    assert reasons.get(change, "manifest says") in message
    assert "copy this shard again" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", [INDEX, KEYS, MANIFEST])
def test_damaged_or_missing_companions(folder: Path, name: str) -> None:
    file = folder / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data[:-3] if name == MANIFEST else data)
    if name == KEYS:  # only messages need it, and they do without
        source = ShardSource(folder)
        assert source.name(4).startswith("image 4 (train-")
        with pytest.raises(UserError, match="damaged"):
            read_keys(folder, source.manifest)
        return
    with pytest.raises(UserError, match=name):
        ShardSource(folder)
    file.unlink()
    with pytest.raises(UserError, match=name):
        ShardSource(folder)


def test_a_manifest_of_other_classes(folder: Path) -> None:
    manifest = folder / MANIFEST
    text = manifest.read_text()
    edited = text.replace('"class_counts": [\n  14', '"class_counts": [\n  15')
    assert edited != text
    manifest.write_text(edited)
    with pytest.raises(UserError, match="checksum does not match"):
        ShardSource(folder)


def test_the_index_is_the_list(packed: Path) -> None:
    """Row i is image i of the list, wherever it lies in the shards."""
    source = ShardSource(packed)
    manifest: Manifest = source.manifest
    assert np.any(np.diff(source.index["offset"].astype(np.int64)) < 0)
    for i in range(N):
        row = source.index[i]
        data = (packed / manifest.shards[row["shard"]].name).read_bytes()
        found = data[int(row["offset"]) : int(row["offset"]) + int(row["size"])]
        assert hashlib.sha256(found).digest() == hashlib.sha256(content(i)).digest()
