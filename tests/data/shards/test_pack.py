from __future__ import annotations

import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from timm.data.readers.reader_wds import ReaderWds

from ltbench.data.files import FileSource
from ltbench.data.shards import format, layout, shard
from ltbench.data.shards.format import (
    read_index,
    read_keys,
    read_manifest,
    write_info,
)
from ltbench.data.shards.layout import PartToPack
from ltbench.data.shards.pack import pack
from ltbench.errors import UserError
from ltbench.seeding import keyed_bits

NUMBER = 60


def photo(seed: int, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A smooth random picture, of a size that depends on the seed."""
    width, height = size[0] + seed % 7, size[1] + seed % 5
    coarse = keyed_bits(seed, np.arange(8 * 6 * 3)).reshape(6, 8, 3).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for i in range(NUMBER):
        path = root / name_of(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(i).save(path, quality=90)
    return root


def name_of(i: int) -> str:
    return f"train/class{i % 3}/{i:03d}" + (".png" if i % 10 == 0 else ".jpg")


def part_of(root: Any, **changes: Any) -> PartToPack:
    part = PartToPack(
        dataset="toy",
        split="train",
        root=root,
        paths=[name_of(i) for i in range(NUMBER)],
        labels=np.arange(NUMBER) % 3,
        class_names=("class0", "class1", "class2"),
        list_sha256="abc",
    )
    return replace(part, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


def bytes_by_index(folder: Path) -> list[bytes]:
    manifest = read_manifest(folder)
    found = []
    for row in read_index(folder, manifest):
        data = (folder / manifest.shards[row["shard"]].name).read_bytes()
        found.append(data[row["offset"] :][: row["size"]])
        assert zlib.crc32(found[-1]) == row["crc32"]
    return found


@pytest.fixture(scope="module")
def packed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "train"
    pack(part_of(images), out, shard_bytes=40_000, workers=1)
    return out


@pytest.fixture
def part(images: Path) -> PartToPack:
    return part_of(images)


def test_the_index_is_in_list_order_and_the_bytes_are_those_of_the_files(
    packed: Path, images: Path
) -> None:
    manifest = read_manifest(packed)
    assert bytes_by_index(packed) == [(images / name_of(i)).read_bytes() for i in range(NUMBER)]
    index = read_index(packed, manifest)
    assert index["label"].tolist() == [i % 3 for i in range(NUMBER)]
    assert read_keys(packed, manifest) == [name_of(i) for i in range(NUMBER)]
    assert manifest.samples == NUMBER
    assert manifest.class_counts == (20, 20, 20)
    assert manifest.class_names == ("class0", "class1", "class2")
    assert (manifest.dataset, manifest.split, manifest.list_sha256) == ("toy", "train", "abc")
    assert manifest.parameters == {"shard_bytes": 40_000, "seed": 0, "resize_short": None}
    for number, one in enumerate(manifest.shards):
        data = (packed / one.name).read_bytes()
        assert one.name == f"train-{number:05d}.tar"
        assert one.bytes == len(data) <= 40_000
        assert one.sha256 == sha256(data).hexdigest()
        assert one.samples == (index["shard"] == number).sum() > 1
    assert len(manifest.shards) > 3


def test_the_order_in_the_shards_is_a_shuffle_that_the_seed_fixes(
    packed: Path, part: PartToPack, tmp_path: Path
) -> None:
    def order(folder: Path) -> list[int]:
        index = read_index(folder, read_manifest(folder))
        return np.lexsort((index["offset"], index["shard"])).tolist()

    assert order(packed) != list(range(NUMBER))
    assert len({i % 3 for i in order(packed)[:10]}) == 3
    pack(part, tmp_path / "a", shard_bytes=40_000, seed=1, workers=1)
    assert order(tmp_path / "a") != order(packed)


def test_the_fingerprint_is_that_of_the_folder(
    packed: Path, part: PartToPack, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FileSource(list(part.paths), images)
    assert read_manifest(packed).content == source.fingerprint(part.labels)
    limit = int(source.sizes().sum())
    monkeypatch.setattr(format, "CONTENT_LIMIT", limit - 1)
    listing = pack(part, tmp_path / "a", workers=1).content
    assert listing.startswith("listing:")
    assert listing == source.fingerprint(part.labels)
    monkeypatch.setattr(format, "CONTENT_LIMIT", limit)
    assert pack(part, tmp_path / "b", workers=1).content == source.fingerprint(part.labels)


def test_any_number_of_workers_writes_the_same_bytes(
    packed: Path, part: PartToPack, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    pack(
        part,
        tmp_path / "train",
        shard_bytes=40_000,
        workers=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert contents(tmp_path / "train") == contents(packed)
    assert seen[-1] == (NUMBER, NUMBER)
    assert seen == sorted(seen)


@pytest.mark.parametrize("workers", [1, 2])
def test_images_in_memory(packed: Path, images: Path, tmp_path: Path, workers: int) -> None:
    encoded = [(images / name_of(i)).read_bytes() for i in range(NUMBER)]
    pack(part_of(encoded.__getitem__), tmp_path / "train", shard_bytes=40_000, workers=workers)
    assert contents(tmp_path / "train") == contents(packed)


def test_a_large_image_has_a_shard_for_itself(tmp_path: Path) -> None:
    encoded = [b"x" * 5000, b"y" * 90_000, b"z" * 4000]
    part = part_of(
        encoded.__getitem__, paths=["a.jpg", "b.jpg", "c.jpg"], labels=np.array([0, 1, 2])
    )
    for seed in range(6):
        out = tmp_path / str(seed)
        manifest = pack(part, out, shard_bytes=20_000, seed=seed, workers=1)
        assert all(s.bytes <= 20_000 or s.samples == 1 for s in manifest.shards)
        assert bytes_by_index(out) == encoded


def test_webdataset_and_timm_stream_the_shards(packed: Path, images: Path) -> None:
    manifest = read_manifest(packed)
    tars = [str(packed / one.name) for one in manifest.shards]
    found = {}
    for sample in wds.WebDataset(tars, shardshuffle=False):
        (ending,) = {"jpg", "png"} & set(sample)
        found[f"{sample['__key__']}.{ending}"] = (int(sample["cls"]), sample[ending])
    assert found == {name_of(i): (i % 3, (images / name_of(i)).read_bytes()) for i in range(NUMBER)}
    index = read_index(packed, manifest)
    order = np.lexsort((index["offset"], index["shard"])).tolist()
    reader = ReaderWds(str(packed.parent), split="train", input_key="jpg;png")
    assert len(reader) == NUMBER
    streamed = list(reader)
    assert [label for _, label in streamed] == [i % 3 for i in order]
    for (image, _), i in zip(streamed, order, strict=True):
        with Image.open(images / name_of(i)) as expected:
            assert np.array_equal(np.asarray(image), np.asarray(expected.convert("RGB")))


def test_odd_names(tmp_path: Path) -> None:
    paths = [
        "a.b/c.d.e.JPEG",
        "deep/" * 30 + "image.jpg",
        "très/鳥 1.jpg",
        "x/caf\udce9.png",
        "__meta__/a.jpg",
        "/absolute/a.jpg",
        "../outside/a.jpg",
        "x" * 97 + ".p",  # with .cls in place of .p it would not fit
    ]
    encoded = [bytes([65 + i]) * (i + 1) for i in range(len(paths))]
    part = part_of(encoded.__getitem__, paths=paths, labels=np.arange(len(paths)) % 3)
    manifest = pack(part, tmp_path / "train", workers=1)
    assert read_keys(tmp_path / "train", manifest) == paths
    assert bytes_by_index(tmp_path / "train") == encoded
    found = {}
    for sample in wds.WebDataset([str(tmp_path / "train/train-00000.tar")], shardshuffle=False):
        (data,) = (v for k, v in sample.items() if k in ("jpg", "png", "p"))
        found[data] = (sample["__key__"], int(sample["cls"]))
    names = [found[data][0] for data in encoded]
    assert names[0] == "a.b/c_d_e"
    assert names[2:4] == ["très/鳥 1", "x/caf\udce9"]
    assert all(names[i].startswith("long/") for i in (1, 4, 5, 6, 7))
    assert len(set(names)) == len(paths)
    assert [found[data][1] for data in encoded] == [i % 3 for i in range(len(paths))]
    done = subprocess.run(
        ["tar", "-tf", tmp_path / "train/train-00000.tar"], capture_output=True, check=True
    )
    assert done.stderr == b""


# Going on


def test_a_rerun_keeps_what_is_finished_and_repairs_what_is_not(
    packed: Path, part: PartToPack, tmp_path: Path
) -> None:
    out = tmp_path / "train"
    options: dict[str, Any] = {"shard_bytes": 40_000, "workers": 1}
    pack(part, out, **options)

    def inodes() -> dict[str, int]:
        return {p.name: p.stat().st_ino for p in out.glob("*.tar")}

    before = inodes()
    pack(part, out, **options)
    assert inodes() == before
    assert contents(out) == contents(packed)
    names = sorted(before)
    damaged = bytearray((out / names[0]).read_bytes())
    damaged[5000] ^= 1
    (out / names[0]).write_bytes(damaged)
    (out / f"{names[1]}.json").unlink()
    (out / f"{names[2]}.json").write_text("{}")
    (out / names[3]).write_bytes(b"")
    (out / f"{names[4]}.123.part").write_bytes(b"half")
    (out / f".partial-{names[4]}.json").write_bytes(b"half")
    (out / "keys.zlib").unlink()
    pack(part, out, **options)
    assert contents(out) == contents(packed)
    after = inodes()
    assert all(after[name] == before[name] for name in names[4:])
    assert len(names) > 5


def test_a_finished_folder_loses_its_manifest_before_a_shard_is_replaced(
    part: PartToPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "train"
    pack(part, out, shard_bytes=40_000, workers=1)
    (out / "train-00002.tar").write_bytes(b"")
    monkeypatch.setattr(shard, "_write_shard", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack(part, out, shard_bytes=40_000, workers=1)
    assert not (out / "manifest.json").exists()
    assert not (out / "train-00002.tar.json").exists()
    assert (out / "train-00001.tar.json").exists()


def interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def changed_parts(images: Path) -> Iterator[tuple[str, PartToPack, dict[str, Any]]]:
    part = part_of(images)
    labels = part.labels.copy()
    labels[5] = 0
    yield "shard_bytes was 40000, now it is 50000", part, {"shard_bytes": 50_000}
    yield "seed was 0, now it is 1", part, {"seed": 1}
    yield "resize_short was None, now it is 16", part, {"resize_short": 16}
    yield "dataset was toy, now it is other", replace(part, dataset="other"), {}
    yield "paths or labels of the list differ", replace(part, labels=labels), {}
    yield "paths or labels of the list differ", replace(part, paths=part.paths[::-1]), {}
    yield "names of the classes differ", replace(part, class_names=("a", "b", "c")), {}
    yield "images was 60, now it is 59", replace(part, paths=part.paths[1:], labels=labels[1:]), {}


def test_changed_parameters_or_lists_are_refused(
    packed: Path, images: Path, tmp_path: Path
) -> None:
    before = contents(packed)
    for message, part, options in changed_parts(images):
        with pytest.raises(UserError, match=message) as error:
            pack(part, packed, **{"shard_bytes": 40_000, "workers": 1, **options})
        assert "\n" not in str(error.value)
        assert "delete that folder" in str(error.value)
    assert contents(packed) == before


def test_changed_images_are_refused(tmp_path: Path) -> None:
    encoded = [b"x" * 5000, b"y" * 9000, b"z" * 4000]
    part = part_of(
        encoded.__getitem__, paths=["a.jpg", "b.jpg", "c.jpg"], labels=np.array([0, 1, 2])
    )
    pack(part, tmp_path / "a", workers=1)
    encoded[1] += b"more"
    with pytest.raises(UserError, match="sizes of the image files differ"):
        pack(part, tmp_path / "a", workers=1)


# Mistakes


@pytest.mark.parametrize("workers", [1, 2])
def test_images_that_cannot_be_read(images: Path, tmp_path: Path, workers: int) -> None:
    root = tmp_path / "odd"
    (root / "folder.jpg").mkdir(parents=True)
    (root / "empty.jpg").write_bytes(b"")
    for path, reason in (
        ("none.jpg", "No such file"),
        ("empty.jpg", "empty"),
        ("folder.jpg", "not a file"),
    ):
        paths = [str(images / name_of(i)) for i in range(NUMBER)]
        paths[7] = path
        part = part_of(root, paths=paths)
        with pytest.raises(UserError, match=rf"1 of 60 images .*`{path}` \({reason}") as error:
            pack(part, tmp_path / "out/train", workers=workers)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", ["longer", "shorter", "rewritten", "gone"])
def test_images_that_change_meanwhile(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, workers: int
) -> None:
    root = tmp_path / "images"
    for i in range(NUMBER):
        (root / name_of(i)).parent.mkdir(parents=True, exist_ok=True)
        (root / name_of(i)).write_bytes((images / name_of(i)).read_bytes())
    victim = root / name_of(3)
    data = victim.read_bytes()
    planned = layout.make_plan

    def meddle(*args: Any) -> Any:
        plan = planned(*args)
        if how == "gone":
            victim.unlink()
        else:
            victim.write_bytes({"longer": data + b"x", "shorter": data[:-1]}.get(how, data))
            os.utime(victim, ns=(1, 1 + int(how == "rewritten")))
        return plan

    monkeypatch.setattr("ltbench.data.shards.pack.make_plan", meddle)
    message = "No such file" if how == "gone" else "changed while it was being packed"
    with pytest.raises(UserError, match=message) as error:
        pack(part_of(root), tmp_path / "train", shard_bytes=40_000, workers=workers)
    assert str(victim) in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("train/*.part"))
    check_commits(tmp_path / "train")


def test_names_that_cannot_be_packed(images: Path, tmp_path: Path) -> None:
    for names, message in (
        (["a/1.jpg", "a/1.png"], "would both be `a/1`"),
        (["a/1.x.jpg", "a/1_x.jpg"], "would both be `a/1_x`"),
        (["a/1.jpg", "a/" + "1.jpg"], "names `a/1.jpg` twice"),
        (["a/1", "a/2.jpg"], "no name with an ending"),
        (["a/.jpg", "a/2.jpg"], "no name with an ending"),
        (["a/1.cls", "a/2.jpg"], "no name with an ending"),
        (["a/1\n.jpg", "a/2.jpg"], "no name with an ending"),
    ):
        part = part_of([b"x", b"y"].__getitem__, paths=names, labels=np.array([0, 1]))
        with pytest.raises(UserError, match=message) as error:
            pack(part, tmp_path / "a", workers=1)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists()


def test_labels_and_parameters(part: PartToPack, tmp_path: Path) -> None:
    high, low = part.labels.copy(), part.labels.copy()
    high[4], low[4] = 3, -1
    for changes, message in (
        ({"labels": high}, r"`train/class1/004.jpg` has label 3, .* 3 classes, 0 to 2"),
        ({"labels": low}, r"has label -1"),
        ({"labels": high[1:]}, "60 paths and 59 labels"),
        ({"labels": high[:0], "paths": []}, "no images"),
        ({"split": "dev"}, "train, val, test"),
    ):
        with pytest.raises(UserError, match=message):
            pack(replace(part, **changes), tmp_path / "a", workers=1)
    for options, message in (
        ({"shard_bytes": 0}, "1 GiB"),
        ({"shard_bytes": 2**30 + 1}, "1 GiB"),
        ({"seed": -1}, "0 or larger"),
        ({"resize_short": 0}, "1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            pack(part, tmp_path / "a", workers=1, **options)
    assert not (tmp_path / "a").exists()


def test_places_that_cannot_be_packed_into(
    part: PartToPack, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for out in (images, images / "shards/train"):
        with pytest.raises(UserError, match="inside the folder of the images"):
            pack(part, out, workers=1)
    assert not (images / "shards").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"`thesis\.tex`"):
        pack(part, tmp_path / "mine", workers=1)
    assert contents(tmp_path / "mine") == {"thesis.tex": b"mine"}
    with pytest.raises(UserError, match=r"cannot write to .*Not a directory"):
        pack(part, tmp_path / "mine/thesis.tex/train", workers=1)

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot write to .*Permission denied; pass another out="):
        pack(part, tmp_path / "new/train", workers=1)


def test_a_second_packing_of_the_same_folder_is_refused(part: PartToPack, tmp_path: Path) -> None:
    def again(done: int, total: int) -> None:
        with pytest.raises(UserError, match="another process is packing"):
            pack(part, tmp_path / "train", shard_bytes=40_000, workers=1)

    pack(part, tmp_path / "train", shard_bytes=40_000, workers=1, progress=again)


def test_a_damaged_plan_is_refused(part: PartToPack, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for text in ("{", "[]"):
        (tmp_path / "train/plan.json").write_text(text)
        with pytest.raises(UserError, match=r"plan.json` cannot be read"):
            pack(part, tmp_path / "train", workers=1)


def test_a_full_disk(
    packed: Path, part: PartToPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "train"
    real = os.write
    for room in (0, 100, 45_000, 100_000):
        left = room

        def write(descriptor: int, data: Any) -> int:
            nonlocal left
            if left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written = real(descriptor, data[: min(left, 10_000)])
            left -= written
            return written

        with monkeypatch.context() as patch:
            patch.setattr(shard.os, "write", write)
            with pytest.raises(UserError, match=r"train-0.*No space left.*make room") as error:
                pack(part, out, shard_bytes=40_000, workers=1)
        assert "\n" not in str(error.value)
        assert not list(out.glob("*.part"))
        check_commits(out)
    assert len(list(out.glob("*.tar"))) >= 2
    pack(part, out, shard_bytes=40_000, workers=1)
    assert contents(out) == contents(packed)


# Resizing


def test_resizing(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for i, mode in enumerate(("RGB", "L", "CMYK")):
        photo(i, mode, (90 + 60 * i, 61)).save(root / f"{i}.jpg", quality=95)
    photo(3, "P", (80, 70)).save(root / "3.png")
    photo(4, "RGB", (48, 200)).save(root / "4.jpg")  # not larger
    deep = np.linspace(0, 65535, 100 * 80).reshape(80, 100).astype(np.uint16)
    Image.fromarray(deep).save(root / "5.png")
    paths = [f"{i}.jpg" for i in range(3)] + ["3.png", "4.jpg", "5.png"]
    part = part_of(root, paths=paths, labels=np.arange(6) % 3)
    manifest = pack(part, tmp_path / "train", resize_short=52, workers=1)
    assert manifest.parameters["resize_short"] == 52
    assert "Pillow" in manifest.parameters["resized_by"]
    found = bytes_by_index(tmp_path / "train")
    assert found[4] == (root / "4.jpg").read_bytes()
    for i, data in enumerate(found):
        with Image.open(root / paths[i]) as image, Image.open(io.BytesIO(data)) as small:
            if i == 4:
                continue
            assert min(small.size) == 52
            assert small.format == "JPEG"
            assert max(small.size) == round(max(image.size) * 52 / min(image.size))
            if i == 5:
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            grey = image.mode == "L"
            exact = image.convert("L" if grey else "RGB").resize(small.size, Image.BICUBIC)
            buffer = io.BytesIO()
            exact.save(buffer, "JPEG", quality=95)
            assert data == buffer.getvalue()
            difference = np.asarray(small, dtype=int) - np.asarray(exact, dtype=int)
            assert np.abs(difference).mean() < 6
    with tarfile.open(tmp_path / "train/train-00000.tar") as tar:
        names = {name for name in tar.getnames() if not name.endswith(".cls")}
    assert names == {f"{i}.jpg" for i in range(6)}
    pack(part, tmp_path / "again", resize_short=52, workers=2, shard_bytes=2**28)
    assert contents(tmp_path / "again") == contents(tmp_path / "train")


def test_an_image_that_cannot_be_resized(images: Path, tmp_path: Path) -> None:
    encoded = [(images / name_of(1)).read_bytes(), b"no image", b"no image"]
    part = part_of(encoded.__getitem__, paths=["1.jpg", "2.jpg", "3.jpg"], labels=np.arange(3))
    with pytest.raises(UserError, match=r"cannot resize image `[23].jpg`") as error:
        pack(part, tmp_path / "a", resize_short=10, workers=1)
    assert "\n" not in str(error.value)


def test_other_splits_stay_in_the_description(part: PartToPack, tmp_path: Path) -> None:
    pack(part, tmp_path / "train", workers=1)
    pack(replace(part, split="test"), tmp_path / "test", workers=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/manifest.json").write_text("{}")  # somebody else's
    write_info(tmp_path)
    splits = json.loads((tmp_path / "_info.json").read_text())["splits"]
    assert {name: split["num_samples"] for name, split in splits.items()} == {
        "train": NUMBER,
        "test": NUMBER,
    }
    assert splits["test"]["filenames"] == ["test/test-00000.tar"]


# Kills

SCRIPT = """
import signal
import sys
import numpy as np
from ltbench.data.shards.layout import PartToPack
from ltbench.data.shards.pack import pack

def main(root, out, workers, number):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    names = [f"{i % 9}/{i}.jpg" for i in range(int(number))]
    labels = np.arange(len(names)) % 9
    part = PartToPack("toy", "train", root, names, labels, [str(c) for c in range(9)])
    try:
        print("begin", flush=True)  # the signal may come before print returns
        pack(part, out, shard_bytes=60_000, workers=int(workers),
             progress=lambda done, total: print(done, flush=True))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


class Packer:
    """Packs many random files in a process of its own, which can be stopped at any time."""

    def __init__(self, tmp_path: Path, number: int = 400) -> None:
        self.out, self.number = tmp_path / "shards/train", number
        self.root, self.script = tmp_path / "images", tmp_path / "script.py"
        self.script.write_text(SCRIPT)
        draw = random.Random(0)
        for i in range(number):
            path = self.root / f"{i % 9}/{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(draw.randbytes(draw.randint(500, 8000)))

    def start(self, out: Path | None = None, workers: int = 1) -> subprocess.Popen[str]:
        command = [sys.executable, self.script, self.root, out or self.out, workers, self.number]
        return subprocess.Popen(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, out: Path | None = None, workers: int = 1) -> None:
        process = self.start(out, workers)
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")


def check_commits(out: Path) -> int:
    """Check that every shard with a sidecar is right, and that there is no manifest."""
    assert not (out / "manifest.json").exists()
    sidecars = list(out.glob("train-*.tar.json"))
    for path in sidecars:
        sidecar = json.loads(path.read_text())
        data = path.with_suffix("").read_bytes()
        assert len(data) == sidecar["bytes"]
        assert sha256(data).hexdigest() == sidecar["sha256"]
        for offset, size, crc32 in zip(
            sidecar["offset"], sidecar["size"], sidecar["crc32"], strict=True
        ):
            assert zlib.crc32(data[offset : offset + size]) == crc32
    return len(sidecars)


def kill_and_go_on(packer: Packer, times: int, seed: int) -> None:
    """Kill packings at random moments, checking what each leaves, then compare the bytes."""
    undisturbed = packer.root.parent / "undisturbed/train"
    packer.finish(undisturbed)
    draw = random.Random(seed)
    shards = len(list(undisturbed.glob("*.tar")))
    kills, committed = 0, []
    while kills < times:
        workers = 1 + kills % 2
        process = packer.start(workers=workers)
        assert process.stdout is not None
        at = draw.randrange(0, max(2, 2 * shards // times))
        lines = iter(process.stdout.readline, "")
        for number, _ in enumerate(lines):
            if number >= at:
                break
        time.sleep(draw.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)  # returns when no worker holds the pipes any more
        if process.returncode == 0:  # it was faster
            assert contents(packer.out) == contents(undisturbed)
            for path in packer.out.iterdir():
                path.unlink()
            continue
        kills += 1
        if (packer.out / "manifest.json").exists():  # killed after its last step
            assert contents(packer.out) == contents(undisturbed)
            for path in packer.out.iterdir():
                path.unlink()
        else:
            committed.append(check_commits(packer.out))
    packer.finish(workers=1 + seed % 2)
    assert contents(packer.out) == contents(undisturbed)
    assert any(committed), "no kill came after a shard was finished"
    assert not list(packer.out.glob("*.part"))


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    kill_and_go_on(Packer(tmp_path), times=4, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_many_times_it_goes_on(tmp_path: Path, seed: int) -> None:
    kill_and_go_on(Packer(tmp_path, 1500), times=25, seed=seed)


class Killed(BaseException):
    pass


def test_killed_before_any_step_it_goes_on(
    packed: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that changes files fails from the n-th such call on, for every n."""
    part, out = part_of(images), tmp_path / "train"
    calls, allowed = 0, 0

    def mortal(real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > allowed:
                raise Killed
            return real(*args, **options)

        return call

    found = []
    while True:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", mortal(os.write))
            patch.setattr(os, "fsync", mortal(os.fsync))
            patch.setattr(Path, "replace", mortal(Path.replace))
            patch.setattr(Path, "unlink", mortal(Path.unlink))
            calls = 0
            try:
                pack(part, out, shard_bytes=40_000, workers=1)
                break
            except Killed:
                pass
        if (out / "manifest.json").exists():  # only names of files were not safe yet
            assert contents(out) == contents(packed)
        else:
            found.append(check_commits(out))
        if allowed % 3:  # from the beginning, or on from here
            shutil.rmtree(out)
        allowed += 1
    assert set(found) == set(range(len(list(packed.glob("*.tar"))) + 1))
    assert contents(out) == contents(packed)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_interrupt_ends_all_workers_and_leaves_nothing_half_written(
    tmp_path: Path, workers: int
) -> None:
    packer = Packer(tmp_path, 600)
    for moment in ("working", "starting"):
        process = packer.start(workers=workers)
        assert process.stdout is not None
        for line in process.stdout:
            if moment == "starting" or (line != "begin\n" and int(line) > 100):
                break
        if moment == "starting" and workers > 1:
            time.sleep(0.2)  # they begin by importing; one worker would be done by then
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert output.endswith("interrupted\n")
        assert errors == ""
        assert check_commits(packer.out) > 0
        assert not list(packer.out.glob("*.part"))
        assert not list(packer.out.glob(".partial-*"))
    packer.finish(workers=workers)
    packer.finish(tmp_path / "undisturbed/train")
    assert contents(packer.out) == contents(tmp_path / "undisturbed/train")


SLOW = """
import multiprocessing, time

def slow(i):
    if multiprocessing.parent_process() is not None:
        time.sleep(0.01)
    return bytes(100_000)
"""


def test_an_interrupt_does_not_wait_for_shards(tmp_path: Path) -> None:
    packer = Packer(tmp_path, 400)
    script = SCRIPT.replace('"train", root,', '"train", slow,').replace("60_000", "20_000_000")
    packer.script.write_text(SLOW + script)
    process = packer.start(workers=2)
    assert process.stdout is not None
    for line in process.stdout:
        if line not in ("begin\n", "0\n"):
            break
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")
    assert not list(packer.out.glob("*.tar"))


def test_no_room_in_worker_processes(tmp_path: Path) -> None:
    """A limit on the size of files, which the kernel enforces, in place of a full disk."""
    packer = Packer(tmp_path, 40)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
    packer.script.write_text(limited + SCRIPT)
    process = packer.start(workers=2)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "UserError: could not write" in errors.splitlines()[-1]
    assert "File too large; make room" in errors.splitlines()[-1]
    assert not list(packer.out.glob("*.part"))
    packer.script.write_text(SCRIPT)
    packer.finish(workers=2)


FATAL = """
import multiprocessing, os, signal

class Fatal:
    def __init__(self, root):
        self.root = root

    def __call__(self, i):
        if i == 111 and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(f"{self.root}/{i % 9}/{i}.jpg", "rb") as file:
            return file.read()
"""


def test_a_killed_worker_is_one_line(tmp_path: Path) -> None:
    packer = Packer(tmp_path)
    packer.script.write_text(FATAL + SCRIPT.replace('"train", root,', '"train", Fatal(root),'))
    process = packer.start(workers=2)
    _, errors = process.communicate(timeout=60)
    assert "UserError: a worker process was killed" in errors.splitlines()[-1]
    assert not list(packer.out.glob("*.part"))
    check_commits(packer.out)
    packer.finish(workers=1)  # images in memory and in files are the same to it
    packer.script.write_text(SCRIPT)
    packer.finish(tmp_path / "undisturbed/train")
    assert contents(packer.out) == contents(tmp_path / "undisturbed/train")
