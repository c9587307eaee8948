from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from timm.data.readers.reader_wds import ReaderWds

from ltbench.data.files import FileSource
from ltbench.data.shards import format
from ltbench.data.shards.check import LEVELS, check
from ltbench.data.shards.foreign import index_tars
from ltbench.data.shards.format import read_index, read_keys, read_manifest
from ltbench.data.shards.layout import PartToPack
from ltbench.data.shards.pack import pack
from ltbench.errors import UserError
from ltbench.seeding import keyed_bits

NUMBER = 17


def image(seed: int) -> bytes:
    from PIL import Image

    pixels = keyed_bits(seed, np.arange(20 * 20 * 3)).reshape(20, 20, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


IMAGES = [image(i) for i in range(NUMBER)]


@pytest.fixture
def tars(tmp_path: Path) -> list[Path]:
    """Three tars as webdataset's own writer makes them, with members that do not count."""
    folder = tmp_path / "tars"
    folder.mkdir()
    with (
        contextlib.redirect_stdout(io.StringIO()),
        wds.ShardWriter(str(folder / "set-%04d.tar"), maxcount=7) as writer,
    ):
        for i, data in enumerate(IMAGES):
            meta = {"label": i % 4, "caption": "x", "where": {"id": i}}
            writer.write(
                {"__key__": f"d/{i:03d}", "jpg": data, "cls": i % 4, "json": meta, "seg.png": b"no"}
            )
    return sorted(folder.glob("*.tar"))


def member(name: str, data: bytes, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], kind: int = 1) -> Path:
    with tarfile.open(path, "w", format=kind, errors="surrogateescape") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def bytes_by_index(folder: Path) -> list[bytes]:
    manifest = read_manifest(folder)
    found = []
    for row in read_index(folder, manifest):
        data = (folder / manifest.shards[row["shard"]].name).read_bytes()
        found.append(data[row["offset"] :][: row["size"]])
    return found


def test_tars_of_webdataset(tars: list[Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    out = tmp_path / "out"
    manifest = index_tars(
        tars, out, workers=1, progress=lambda done, total: seen.append((done, total))
    )
    folder = out / "train"
    assert manifest == read_manifest(folder)
    assert bytes_by_index(folder) == IMAGES
    assert read_index(folder, manifest)["label"].tolist() == [i % 4 for i in range(NUMBER)]
    assert read_keys(folder, manifest) == [f"d/{i:03d}.jpg" for i in range(NUMBER)]
    assert (manifest.dataset, manifest.split, manifest.samples) == ("foreign", "train", NUMBER)
    assert manifest.class_counts == (5, 4, 4, 4)
    assert manifest.class_names == ("0", "1", "2", "3")
    for one, tar in zip(manifest.shards, tars, strict=True):
        data = tar.read_bytes()
        assert (one.name, one.bytes) == (tar.name, len(data))
        assert one.sha256 == sha256(data).hexdigest()
        assert (folder / one.name).is_symlink()
    assert [one.samples for one in manifest.shards] == [7, 7, 3]
    total = sum(tar.stat().st_size for tar in tars)
    assert seen[-1] == (total, total)
    for level in LEVELS:
        assert check(out, level, workers=1).problems == ()


def test_timm_streams_what_was_indexed(tars: list[Path], tmp_path: Path) -> None:
    index_tars(tars, tmp_path / "out", "test", workers=1)
    reader = ReaderWds(str(tmp_path / "out"), split="test", input_key="jpg")
    assert [label for _, label in reader] == [i % 4 for i in range(NUMBER)]


def test_workers_and_labels_in_json_give_the_same(tars: list[Path], tmp_path: Path) -> None:
    alone = index_tars(tars, tmp_path / "a", workers=1)
    assert index_tars(tars, tmp_path / "b", workers=2) == alone
    names = ("p", "q", "r", "s", "t")
    json_labels = index_tars(tars, tmp_path / "c", label="json:label", class_names=names, workers=1)
    assert json_labels.class_names == names
    assert json_labels.class_counts == (5, 4, 4, 4, 0)
    assert json_labels.fingerprint == alone.fingerprint


def test_the_fingerprint_is_that_of_a_folder(
    tars: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d").mkdir()
    for i, data in enumerate(IMAGES):
        (tmp_path / f"d/{i:03d}.jpg").write_bytes(data)
    source = FileSource([f"d/{i:03d}.jpg" for i in range(NUMBER)], tmp_path)
    labels = np.arange(NUMBER) % 4
    assert index_tars(tars, tmp_path / "a", workers=1).content == source.fingerprint(labels)
    monkeypatch.setattr(format, "CONTENT_LIMIT", 1000)
    listing = index_tars(tars, tmp_path / "a", workers=1).content
    assert listing == source.fingerprint(labels)
    assert listing.startswith("listing:")


def test_tars_that_lie_in_the_folder_are_not_linked(tars: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "out/train"
    shutil.copytree(tars[0].parent, folder)
    inside = sorted(folder.glob("*.tar"))
    manifest = index_tars(inside, tmp_path / "out", workers=1)
    assert not any(path.is_symlink() for path in folder.iterdir())
    (tmp_path / "out").rename(tmp_path / "moved")
    assert bytes_by_index(tmp_path / "moved/train") == IMAGES
    assert read_manifest(tmp_path / "moved/train") == manifest


def test_links_below_the_root_move_with_it(tars: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(tars[0].parent, root / "all")
    index_tars(sorted((root / "all").glob("*.tar")), root, workers=1)
    root.rename(tmp_path / "moved")
    assert bytes_by_index(tmp_path / "moved/train") == IMAGES


def test_again_and_from_another_place(
    tars: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = [Path(os.path.relpath(tar)) for tar in tars]
    first = index_tars(relative, Path("out"), workers=1)
    assert index_tars(relative, Path("out"), workers=1) == first
    moved = [Path(shutil.copy(tar, tmp_path / tar.name)) for tar in tars]
    for tar in tars:
        tar.unlink()
    assert index_tars(moved, Path("out"), workers=1) == first  # links that led nowhere are renewed
    assert bytes_by_index(tmp_path / "out/train") == IMAGES
    assert index_tars(moved[1:], Path("out"), workers=1).samples == NUMBER - 7


LONG = "long/" * 40 + "name"


@pytest.mark.parametrize(
    "kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["u", "gnu", "pax"]
)
def test_every_kind_of_header(tmp_path: Path, kind: int) -> None:
    extra = {} if kind == tarfile.USTAR_FORMAT else {"mtime": 1.5}  # needs a pax header
    name = LONG if kind != tarfile.USTAR_FORMAT else "long/" * 30 + "name"  # in the prefix field
    tar = write_tar(
        tmp_path / "a.tar",
        member("folder", b"", type=tarfile.DIRTYPE),
        member("link.jpg", b"", type=tarfile.SYMTYPE, linkname="a.jpg"),
        member("README", b"text"),
        member("info.txt", b"text"),
        member("__meta__/x.jpg", b"skipped"),
        member(f"{name}.jpg", b"first", **extra),
        member(f"{name}.cls", b"2\n"),
        member("./très/鳥.x.jpg", b"not an image by webdataset's names"),
        member("./très/鳥.JPEG", b"second"),
        member("./très/鳥.cls", b"0"),
        member("a/b.png", b"mask"),
        member("a/b.cls", b"1"),
        member("a/b.webp", b"other"),
        member("a/b.jpg", b"third" * 1000),
        kind=kind,
    )
    manifest = index_tars([tar], tmp_path / "out", workers=1)
    folder = tmp_path / "out/train"
    assert bytes_by_index(folder) == [b"first", b"second", b"third" * 1000]
    assert read_index(folder, manifest)["label"].tolist() == [2, 0, 1]
    assert read_keys(folder, manifest) == [f"{name}.jpg", "./très/鳥.JPEG", "a/b.jpg"]
    assert manifest.class_counts == (1, 1, 1)


def good(name: str = "a", label: bytes = b"1") -> list[tuple[tarfile.TarInfo, bytes]]:
    return [member(f"{name}.jpg", b"data of " + name.encode()), member(f"{name}.cls", label)]


def refused(tar: Path, message: str, **options: Any) -> str:
    out = tar.parent / "out"
    with pytest.raises(UserError, match=message) as error:
        index_tars([tar], out, workers=1, **options)
    assert "\n" not in str(error.value)
    assert str(tar) in str(error.value)
    assert not out.exists()
    return str(error.value)


def test_samples_that_lack_something_or_occur_twice(tmp_path: Path) -> None:
    a = tmp_path / "a.tar"
    for members, message in (
        ([*good(), member("b.jpg", b"x")], r"sample `b` .* has no label \(\.cls\)"),
        ([*good(), member("b.cls", b"1")], "sample `b` .* has no image"),
        ([*good(), member("b.txt", b"1")], ""),
        ([*good(), *good()[:1]], r"holds `a\.jpg` twice"),
        ([*good(), *good()[1:]], r"holds `a\.cls` twice"),
        ([*good(label=b"-1")], "a number from 0 .* found `-1`"),
        ([*good(label=b"dog")], "a number from 0 .* found `dog`"),
        ([*good(label=b"")], "a number from 0 .* found ``"),
        ([*good(label=b"1.0")], "a number from 0"),
        ([*good(label="²".encode())], "a number from 0"),
        ([*good(label=b"1000000")], "a number from 0"),
        ([member("a.jpg", b""), *good()[1:]], "is empty"),
        ([member("a\nb.jpg", b"x"), *good()[1:]], "on two lines"),
        ([member("info.txt", b"x")], "holds no samples"),
        ([], "holds no samples"),
    ):
        write_tar(a, *members)
        if message:
            refused(a, message)
        else:
            index_tars([a], tmp_path / "fine", workers=1)


def test_labels_in_json(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    for content, message in (
        ('{"label": 3}', ""),
        ('{"label": "3"}', ""),
        ('{"class": 3, "x": 1}', "field `label` .*found `none`; it has class, x"),
        ('{"label": 3.5}', r"found `3\.5`"),
        ('{"label": true}', "found `True`"),
        ('{"label": null}', "found `None`"),
        ("[3]", "field `label`"),
        ("{", "field `label`"),
    ):
        write_tar(tar, member("a.jpg", b"x"), member("a.json", content.encode()))
        if message:
            refused(tar, message, label="json:label")
        else:
            manifest = index_tars([tar], tmp_path / "fine", label="json:label", workers=1)
            assert manifest.class_counts == (0, 0, 0, 1)
    write_tar(tar, *good(label=b"4"))
    refused(tar, "has label 4, but there are names of 2 classes", class_names=("a", "b"))
    for label in ("jpg", "", "json", "json:", ".cls"):
        with pytest.raises(UserError, match="label is the ending"):
            index_tars([tar], tmp_path / "out", label=label, workers=1)
    write_tar(tar, member("a.jpg", b"x"), member("a.class", b"2"))
    assert index_tars([tar], tmp_path / "fine", label="class", workers=1).class_counts == (0, 0, 1)


def test_compressed_tars(tars: list[Path], tmp_path: Path) -> None:
    data = tars[0].read_bytes()
    for packer, compress in (
        ("gzip", gzip.compress),
        ("bzip2", __import__("bz2").compress),
        ("xz", __import__("lzma").compress),
    ):
        path = tmp_path / "a.tar"  # whatever its name
        path.write_bytes(compress(data))
        refused(path, rf"is compressed \({packer}\)")


def test_cut_and_damaged_tars(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    write_tar(tar, *good("a"), *good("b"), *good("c"))
    whole = tar.read_bytes()
    assert len(whole) == 10_240  # six members of 1,024 bytes, then zeros
    for length in (0, 100, 512, 700, 1536, 2048, 4096, 5000, 6144):
        tar.write_bytes(whole[:length])
        refused(tar, "cut|no tar|no samples")
    for length in (6656, 7168):
        tar.write_bytes(whole[:length])  # the end is marked
        index_tars([tar], tmp_path / "fine", workers=1)
    for at in (0, 150, 2048, 2048 + 124, 4096 + 257):  # names, sizes and marks in headers
        damaged = bytearray(whole)
        damaged[at] ^= 1
        tar.write_bytes(damaged)
        refused(tar, "damaged")
    tar.write_bytes(whole[:2048] + bytes(512) + whole[2560:])  # a block of zeros: readers stop
    refused(tar, "is damaged at byte 2048, or several tars joined")
    tar.write_bytes(whole + whole)
    refused(tar, "several tars joined")
    tar.write_bytes(b"not a tar at all" * 100)
    refused(tar, "no tar")


def test_places_and_words(tars: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="found none"):
        index_tars([], out)
    with pytest.raises(UserError, match="train, val, test, found `dev`"):
        index_tars(tars, out, "dev")
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        index_tars([tmp_path / "none.tar"], out)
    with pytest.raises(UserError, match=r"cannot read .*not a regular file"):
        index_tars([tmp_path], out)
    other = tmp_path / tars[0].name
    shutil.copy(tars[0], other)
    with pytest.raises(UserError, match="have the same name"):
        index_tars([*tars, other], out)
    twin = Path(shutil.copy(tars[0], tmp_path / "twin.tar"))
    with pytest.raises(UserError, match=r"sample `d/000` is in .*set-0000.tar` and in .*twin"):
        index_tars([*tars, twin], out, workers=1)
    assert not out.exists()
    out.write_text("a file")
    with pytest.raises(UserError, match=r"cannot write to .*pass another out="):
        index_tars(tars, out, workers=1)
    (tmp_path / "mine/train").mkdir(parents=True)
    (tmp_path / "mine/train" / tars[1].name).write_bytes(b"mine")
    with pytest.raises(UserError, match="is another file than"):
        index_tars(tars, tmp_path / "mine", workers=1)
    assert (tmp_path / "mine/train" / tars[1].name).read_bytes() == b"mine"
    assert not (tmp_path / "mine/train/manifest.json").exists()
    part = PartToPack("x", "train", IMAGES.__getitem__, ["a.jpg"], np.array([0]), ("a",))
    pack(part, tmp_path / "packed/train", workers=1)
    with pytest.raises(UserError, match="holds packed shards"):
        index_tars(tars, tmp_path / "packed", workers=1)


def test_a_check_finds_damage_in_foreign_tars(tars: list[Path], tmp_path: Path) -> None:
    manifest = index_tars(tars, tmp_path / "out", workers=1)
    row = read_index(tmp_path / "out/train", manifest)[9]
    data = bytearray(tars[1].read_bytes())
    data[int(row["offset"]) + 40] ^= 1
    tars[1].write_bytes(data)
    (problem,) = check(tmp_path / "out", "crc", workers=1).problems
    assert f"{tars[1].name}, offset {row['offset']}, `d/009.jpg`: CRC-32" in problem
    tars[2].unlink()
    assert len(check(tmp_path / "out", "size", workers=1).problems) == 1
    info = json.loads((tmp_path / "out/_info.json").read_text())
    assert info["splits"]["train"]["shard_lengths"] == [7, 7, 3]
