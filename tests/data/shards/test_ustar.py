from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset as wds

from ltbench.data.shards.ustar import END, header, padding, sample_bytes, sample_head

NAMES = ["a.jpg", "train/bird/1.jpg", "x" * 100, "très/鳥.png", "caf\udce9.jpg", " a b/'c'.jpg"]
SIZES = [0, 1, 511, 512, 513, 57_000, 8**11 - 1]


def encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_headers_are_those_of_python(name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o444, 0
    expected = member.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")
    assert header(encode(name), size) == expected


def test_what_has_no_room_is_refused() -> None:
    for name, size in ((b"", 1), (b"x" * 101, 1), (b"x", 8**11), (b"x", -1)):
        with pytest.raises(ValueError, match="no plain header"):
            header(name, size)


def test_sizes_are_those_of_the_parts() -> None:
    for size in SIZES[:-1]:
        head = sample_head(b"a/b", b".png", 7, size)
        assert len(head) + size + len(padding(size)) == sample_bytes(size)
        assert sample_bytes(size) % 512 == 0
        assert not any(padding(size))


def archive(samples: list[tuple[str, str, int, bytes]]) -> bytes:
    parts = []
    for key, ending, label, data in samples:
        parts += [sample_head(encode(key), encode(ending), label, len(data)), data]
        parts.append(padding(len(data)))
    return b"".join([*parts, END])


SAMPLES = [
    ("train/bird/1", ".jpg", 0, b"first"),
    ("x" * 96, ".png", 8141, b"x" * 512),
    ("très/鳥", ".jpg", 2**31 - 1, b"y" * 513),
    ("a.b/c", ".webp", 12, bytes(range(256)) * 40),
]


def test_python_reads_the_archive() -> None:
    found = []
    with tarfile.open(fileobj=io.BytesIO(archive(SAMPLES)), mode="r:", encoding="utf-8") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            assert (member.uid, member.gid, member.mtime, member.mode) == (0, 0, 0, 0o444)
            assert (member.uname, member.gname) == ("", "")
            found.append((member.name, file.read()))
    expected = []
    for key, ending, label, data in SAMPLES:
        expected += [(f"{key}.cls", str(label).encode()), (key + ending, data)]
    assert found == expected


def test_gnu_tar_reads_the_archive(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(archive(SAMPLES))
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        ["tar", "-xf", tmp_path / "a.tar", "-C", tmp_path / "out"], capture_output=True, check=True
    )
    assert done.stderr == b""
    for key, ending, label, data in SAMPLES:
        assert (tmp_path / "out" / f"{key}{ending}").read_bytes() == data
        assert (tmp_path / "out" / f"{key}.cls").read_text() == str(label)


def test_webdataset_reads_the_archive(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(archive(SAMPLES))
    found = list(wds.WebDataset([str(tmp_path / "a.tar")], shardshuffle=False))
    assert len(found) == len(SAMPLES)
    for sample, (key, ending, label, data) in zip(found, SAMPLES, strict=True):
        assert sample["__key__"] == key
        assert int(sample["cls"]) == label
        assert sample[ending[1:]] == data
