from __future__ import annotations

import io
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltbench.data.shards.check import LEVELS, Report, check
from ltbench.data.shards.format import (
    INDEX,
    KEYS,
    MANIFEST,
    Manifest,
    read_index,
    read_keys,
    read_manifest,
    write_index,
    write_manifest,
)
from ltbench.data.shards.layout import PartToPack
from ltbench.data.shards.pack import pack
from ltbench.errors import UserError
from ltbench.seeding import keyed_bits

NUMBER = 24


def jpeg(seed: int, size: int = 24) -> bytes:
    pixels = keyed_bits(seed, np.arange(size * size * 3)).reshape(size, size, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write(out: Path, images: list[bytes], split: str = "train", **options: int) -> Manifest:
    paths = [f"class{i % 3}/{i}.jpg" for i in range(len(images))]
    labels = np.arange(len(images)) % 3
    part = PartToPack("toy", split, images.__getitem__, paths, labels, ("a", "b", "c"))
    return pack(part, out / split, workers=1, shard_bytes=30_000, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    write(out, [jpeg(i) for i in range(NUMBER)])
    write(out, [jpeg(100 + i) for i in range(6)], "test")
    return out


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "root"))


def one_line(report: Report) -> str:
    (problem,) = report.problems
    assert "\n" not in problem
    return problem


@pytest.mark.parametrize("level", LEVELS)
def test_whole_shards_pass(made: Path, level: str) -> None:
    seen: list[tuple[int, int]] = []
    report = check(made, level, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert report.problems == ()
    assert (report.splits, report.images, report.level) == (2, NUMBER + 6, level)
    assert report.shards == len(list(made.glob("*/*.tar"))) > 3
    assert report.bytes == sum(path.stat().st_size for path in made.glob("*/*.tar"))
    assert check(made / "test", level, workers=1).images == 6
    assert level == "size" or seen[-1] == (NUMBER + 6, NUMBER + 6)


def test_workers_find_the_same(root: Path) -> None:
    for path in root.glob("*/*.tar"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 8
        path.write_bytes(data)
    alone = check(root, "sha256", workers=1)
    assert check(root, "sha256", workers=2) == alone
    assert len(alone.problems) >= 4


def offset_of(root: Path, i: int) -> tuple[Path, int, int]:
    manifest = read_manifest(root / "train")
    row = read_index(root / "train", manifest)[i]
    path = root / "train" / manifest.shards[row["shard"]].name
    return path, int(row["offset"]), int(row["size"])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_of_an_image(root: Path) -> None:
    path, offset, size = offset_of(root, 7)
    flip(path, offset + size // 2)
    assert check(root, "size", workers=1).problems == ()
    problem = one_line(check(root, "crc", workers=1))
    assert f"{path}, offset {offset}, `class1/7.jpg`: CRC-32" in problem
    found = check(root, "sha256", workers=1).problems
    assert found[0] == problem
    assert len(found) == 2
    assert str(path) in found[1]
    assert "SHA-256" in found[1]


def test_a_wrong_label_file(root: Path) -> None:
    path, offset, _ = offset_of(root, 7)
    flip(path, offset - 1024)
    problem = one_line(check(root, "crc", workers=1))
    assert f"{path}, offset {offset}, `class1/7.jpg`: the label beside it is b'0'" in problem
    assert "the index says 1" in problem


@pytest.mark.parametrize("before", [512, 1536, 1024 - 100])
def test_damage_before_an_image(root: Path, before: int) -> None:
    path, offset, _ = offset_of(root, 7)
    flip(path, offset - before + 20)
    problem = one_line(check(root, "crc", workers=1))
    assert f"{path}, offset {offset}, `class1/7.jpg`: " in problem


def test_damage_that_only_the_hash_sees(root: Path) -> None:
    path, _, _ = offset_of(root, 7)
    flip(path, path.stat().st_size - 3)
    assert check(root, "crc", workers=1).problems == ()
    assert "SHA-256" in one_line(check(root, "sha256", workers=1))


def test_every_byte_of_a_shard_matters(root: Path) -> None:
    path, _, _ = offset_of(root, 7)
    whole = path.read_bytes()
    draw = np.random.RandomState(0)
    for at in draw.randint(0, len(whole), 60).tolist():
        flip(path, at)
        assert check(root / "train", "sha256", workers=1).problems
        path.write_bytes(whole)
    for length in (0, 1, len(whole) - 1, len(whole) // 2):
        path.write_bytes(whole[:length])
        assert "bytes, the manifest says" in one_line(check(root, "size", workers=1))
    path.unlink()
    assert "cannot be read: No such file" in one_line(check(root, "size", workers=1))


def test_images_that_cannot_be_decoded(tmp_path: Path) -> None:
    images = [jpeg(i) for i in range(9)]
    deep = io.BytesIO()
    Image.fromarray(np.full((9, 9), 7, dtype=np.int32)).save(deep, "TIFF")
    images[2], images[4] = images[2][:-300], b"this is text"
    images[5], images[7] = deep.getvalue(), jpeg(7)[:-2]
    write(tmp_path, images)
    assert check(tmp_path, "sha256", workers=1).problems == ()
    found = check(tmp_path, "decode", workers=1).problems
    assert sorted(problem.split("`")[1] for problem in found) == [
        "class1/4.jpg",
        "class1/7.jpg",
        "class2/2.jpg",
        "class2/5.jpg",
    ]
    assert all("cannot be decoded: " in problem for problem in found)
    assert not any("BytesIO" in problem for problem in found)
    assert any("32 bits per channel" in problem for problem in found)


def test_resized_images_are_whole(tmp_path: Path) -> None:
    images = [jpeg(i, 20 + 2 * i) for i in range(9)]
    paths = [f"{i}.png" if i % 2 else f"{i}.jpg" for i in range(9)]  # the ending may lie
    part = PartToPack("toy", "train", images.__getitem__, paths, np.arange(9) % 3, ("a", "b", "c"))
    pack(part, tmp_path / "train", resize_short=26, workers=1)
    assert check(tmp_path, "decode", workers=1).problems == ()


@pytest.mark.parametrize("name", [MANIFEST, INDEX, KEYS])
def test_damaged_tables(root: Path, name: str) -> None:
    path = root / "train" / name
    flip(path, 3)
    report = check(root, "crc", workers=1)
    assert name in one_line(report)
    assert report.images == 6 + (NUMBER if name != MANIFEST else 0)
    if name != MANIFEST:
        path.unlink()
        assert name in one_line(check(root, "crc", workers=1))


def test_shards_are_checked_without_an_index(root: Path) -> None:
    path, offset, _ = offset_of(root, 7)
    flip(path, offset)
    (root / "train" / INDEX).unlink()
    found = check(root, "sha256", workers=1).problems
    assert len(found) == 2
    assert INDEX in found[0]
    assert f"{path}: SHA-256" in found[1]


def rewrite(root: Path, change: str) -> None:
    """Write an index that is undamaged but does not fit."""
    folder = root / "train"
    manifest = read_manifest(folder)
    index, keys = np.array(read_index(folder, manifest)), read_keys(folder, manifest)
    changes = {}
    if change == "label":
        index["label"][3] = 2
    elif change == "offset":
        index["offset"][3] = 2**40
    elif change == "shard":
        index["shard"][3] += 1
    elif change == "negative":
        index["label"][3] = -1
    elif change == "swapped":
        index[[3, 6]] = index[[6, 3]]  # one class
    elif change == "twice":
        keys[3] = keys[6]
    elif change == "fewer keys":
        keys = keys[1:]
    elif change == "counts":
        changes = {"class_counts": (9, 8, 7)}
    hashes = write_index(folder, index, keys)
    write_manifest(
        folder, replace(manifest, index_sha256=hashes[0], keys_sha256=hashes[1], **changes)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("label", "class counts"),
        ("offset", "beyond its"),
        ("shard", "the index has shard "),
        ("negative", "negative labels"),
        ("swapped", "fingerprint"),
        ("twice", "a key occurs twice"),
        ("fewer keys", "23 keys for 24 images"),
        ("counts", "class counts"),
    ],
)
def test_tables_that_disagree(root: Path, change: str, message: str) -> None:
    rewrite(root, change)
    found = check(root, "size", workers=1).problems
    assert any(message in problem for problem in found)
    assert all(str(root / "train") in problem for problem in found)


def test_an_unfinished_split_is_a_problem(root: Path) -> None:
    (root / "train" / MANIFEST).unlink()
    for folder in (root, root / "train"):
        assert "holds no finished shards" in one_line(check(folder, "size", workers=1))


def test_photographs(shared_data: Path, tmp_path: Path) -> None:
    """Photographs of many sizes, some of them grey, as they are and shrunk."""
    archive = shared_data / "caltech101_short96.zip"
    if not archive.is_file():
        pytest.skip(f"needs {archive}")
    with zipfile.ZipFile(archive) as packed:
        names = sorted(name for name in packed.namelist() if name.endswith(".jpg"))[::120]
        packed.extractall(tmp_path / "images", names)
    labels = np.arange(len(names)) % 2
    part = PartToPack("caltech", "train", tmp_path / "images", names, labels, ("a", "b"))
    pack(part, tmp_path / "all/train", workers=1, shard_bytes=50_000)
    pack(part, tmp_path / "small/train", workers=1, resize_short=48)
    for folder in (tmp_path / "all", tmp_path / "small"):
        report = check(folder, "decode", workers=1)
        assert (report.problems, report.images) == ((), len(names))
    manifest = read_manifest(tmp_path / "small/train")
    for row, name in zip(read_index(tmp_path / "small/train", manifest), names, strict=True):
        shard = (tmp_path / "small/train" / manifest.shards[row["shard"]].name).read_bytes()
        data = shard[row["offset"] :][: row["size"]]
        with Image.open(tmp_path / "images" / name) as image, Image.open(io.BytesIO(data)) as small:
            assert min(small.size) == min(48, *image.size)
            assert small.mode == image.mode
    assert len(read_manifest(tmp_path / "all/train").shards) > 2


def test_mistakes(tmp_path: Path, made: Path) -> None:
    with pytest.raises(UserError, match="size, crc, sha256, decode, found `all`"):
        check(made, "all")
    with pytest.raises(UserError, match="holds no shards"):
        check(tmp_path)
    with pytest.raises(UserError, match="holds no shards"):
        check(tmp_path / "none")
