from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltbench.data.files import FileSource, LongTail
from ltbench.data.lists import ImageList
from ltbench.data.pipelines import IMAGENET_STATS, INAT_STATS
from ltbench.data.shards import format
from ltbench.data.transforms import train_transform
from ltbench.errors import UserError
from ltbench.seeding import keyed_bits


def picture(seed: int = 0, height: int = 30, width: int = 40) -> Image.Image:
    pixels = keyed_bits(seed, np.arange(height * width * 3)).reshape(height, width, 3)
    return Image.fromarray(pixels.astype(np.uint8))


NAMES = ["c0/0.jpg", "c1/1.jpg", "c0/2.jpg", "c1/3.jpg"]
LABELS = np.array([0, 1, 0, 1])


@pytest.fixture
def source(tmp_path: Path) -> FileSource:
    for i, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(i).save(tmp_path / name)
    return FileSource(NAMES, tmp_path)


def test_bytes_names_and_sizes_are_those_of_the_files(source: FileSource) -> None:
    assert len(source) == 4
    assert source.paths == NAMES
    found = source.read(np.array([2, 0, 2]))
    for content, name in zip(found, ["c0/2.jpg", "c0/0.jpg", "c0/2.jpg"], strict=True):
        assert content.dtype == np.uint8
        assert content.tobytes() == (Path(source.root) / name).read_bytes()
    assert source.name(1) == f"{source.root}/c1/1.jpg"
    assert source.sizes().tolist() == [(Path(source.root) / n).stat().st_size for n in NAMES]


def test_a_missing_file_is_named(source: FileSource) -> None:
    (Path(source.root) / "c1" / "1.jpg").unlink()
    (Path(source.root) / "c1" / "3.jpg").unlink()
    (Path(source.root) / "c1" / "3.jpg").mkdir()
    for index, reason in ((1, "No such file"), (3, "Is a directory")):
        with pytest.raises(UserError, match=rf"c1/{index}\.jpg`: {reason}"):
            source.read(np.array([0, index]))
    with pytest.raises(UserError, match=r"c1/1\.jpg`: No such file"):
        source.sizes()
    with pytest.raises(UserError, match=r"c1/1\.jpg`: No such file"):
        source.fingerprint(LABELS)


def test_options_make_the_split(source: FileSource) -> None:
    options = ImageList(image_size=16, augment="inat", augment_views=("sim",))
    split = options.files(NAMES, LABELS, Path(source.root))
    views = split.load(np.array([2, 0]), key=3, positions=np.array([7, 8]), views=2)
    assert [(view.shape, view.dtype) for view in views] == [
        ((2, 3, 16, 16), torch.uint8),
        ((2, 3, 16, 16), torch.float32),
    ]
    assert split.labels.tolist() == LABELS.tolist()
    assert split.fingerprint() == source.fingerprint(LABELS)
    same = options.split(source, LABELS).load(
        np.array([2, 0]), key=3, positions=np.array([7, 8]), views=2
    )
    assert all(map(torch.equal, views, same))
    slow = ImageList(image_size=16, augment="inat", decode="pil").split(source, LABELS)
    assert slow.load(np.array([2]), key=3, positions=np.array([7]))[0].dtype == torch.float32
    with pytest.raises(ValueError, match="decode"):
        ImageList(decode="opencv")
    with pytest.raises(ValueError, match="unreadable"):
        ImageList(unreadable="skip")


def test_an_unreadable_file_is_replaced_where_that_is_asked_for(source: FileSource) -> None:
    (Path(source.root) / "c0" / "0.jpg").write_bytes(b"")
    split = ImageList(image_size=16, unreadable="replace").split(source, LABELS)
    at = {"key": 3, "positions": np.array([7])}
    (found,) = split.load(np.array([0]), **at)
    assert torch.equal(found, split.load(np.array([2]), **at)[0])
    (note,) = split.take_notes()
    assert "c0/0.jpg" in note
    assert "c0/2.jpg" in note
    with pytest.raises(UserError, match=r"c0/0\.jpg`: it is empty"):
        ImageList(image_size=16).split(source, LABELS).load(np.array([0]), **at)


def test_inat_has_its_own_statistics_and_no_jitter() -> None:
    grey = Image.new("RGB", (32, 32), (128, 128, 128))
    for name in ("inat", "plain"):
        mean, std = INAT_STATS if name == "inat" else IMAGENET_STATS
        expected = (128 / 255 - torch.tensor(mean)) / torch.tensor(std)
        assert torch.allclose(train_transform(name, 8)(grey)[:, 0, 0], expected, atol=1e-5)
    for name in ("imagenet", "inat_jitter"):
        brightness = {float(train_transform(name, 8)(grey)[0, 0, 0]) for _ in range(5)}
        assert len(brightness) > 1


def printed(root: Path, names: list[str], labels: list[int]) -> str:
    return FileSource(names, root).fingerprint(np.array(labels))


def test_fingerprint_sees_content_labels_and_order_but_not_folders(source: FileSource) -> None:
    root = Path(source.root)
    base = printed(root, NAMES, [0, 1, 0, 1])
    assert base.startswith("content:")
    assert source.fingerprint(LABELS) == base
    assert printed(root, NAMES, [0, 1, 1, 1]) != base
    assert printed(root, NAMES[::-1], [0, 1, 0, 1]) != base
    elsewhere = ["0.jpg", "../c1/1.jpg", "2.jpg", "../c1/3.jpg"]
    assert printed(root / "c0", elsewhere, [0, 1, 0, 1]) == base
    file = root / "c0" / "0.jpg"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert printed(root, NAMES, [0, 1, 0, 1]) != base
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"0\.jpg` is empty"):
        printed(root, NAMES, [0, 1, 0, 1])
    with pytest.raises(UserError, match=r"0\.jpg` is empty"):
        source.sizes()
    file.unlink()
    with pytest.raises(UserError, match=r"0\.jpg"):
        printed(root, NAMES, [0, 1, 0, 1])


def test_fingerprints_are_written_as_records_have_them(
    source: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, labels = [*NAMES, NAMES[0]], [0, 1, 0, 1, 7]  # an image may be listed twice
    contents = [(Path(source.root) / name).read_bytes() for name in names]
    lines = [
        f"{label} {len(content)} {zlib.crc32(content):08x}\n"
        for label, content in zip(labels, contents, strict=True)
    ]
    whole = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert printed(Path(source.root), names, labels) == f"content:{whole}"
    monkeypatch.setattr(format, "CONTENT_LIMIT", sum(map(len, contents)))
    assert printed(Path(source.root), names, labels) == f"content:{whole}"
    monkeypatch.setattr(format, "CONTENT_LIMIT", sum(map(len, contents)) - 1)
    lines = [
        f"{label} {len(content)} {name.split('/')[1]}\n"
        for label, content, name in zip(labels, contents, names, strict=True)
    ]
    whole = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert printed(Path(source.root), names, labels) == f"listing:{whole}"


def test_images_that_change_after_the_first_look_are_refused(source: FileSource) -> None:
    split = ImageList(image_size=8).split(source, LABELS)
    first = split.fingerprint()
    assert split.fingerprint() == first
    file = Path(source.root) / NAMES[2]
    status, content = file.stat(), file.read_bytes()
    for change in (content + b"\0", content[:-1] + b"\0"):
        file.write_bytes(change)
        os.utime(file, ns=(0, status.st_mtime_ns + (len(change) == len(content))))
        with pytest.raises(UserError, match=r"changed while they were in use: 1 .*c0/2\.jpg"):
            split.fingerprint()
    file.write_bytes(content)
    os.utime(file, ns=(0, status.st_mtime_ns))
    assert split.fingerprint() == first
    file.unlink()
    with pytest.raises(UserError, match=r"c0/2\.jpg`: No such file"):
        split.fingerprint()


def test_empty_files_are_refused_unless_they_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(b"")
    for unreadable in ("raise", "replace"):
        options = ImageList(image_size=8, unreadable=unreadable)
        split = options.files(["0.jpg"], np.zeros(1, dtype=np.int64), tmp_path)
        if unreadable == "raise":
            with pytest.raises(UserError, match=r"0\.jpg` is empty"):
                split.fingerprint()
        else:
            assert split.fingerprint().startswith("content:")


def test_names_that_are_not_text_are_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    picture().save(tmp_path / name)
    source = FileSource([name], tmp_path)
    assert source.paths == [name]
    assert source.read(np.array([0]))[0].tobytes() == (tmp_path / name).read_bytes()
    assert source.fingerprint(np.array([3])).startswith("content:")


def test_thin_keeps_the_ratio_whatever_the_classes_hold() -> None:
    balanced = np.repeat(np.arange(5), 100)
    kept = balanced[LongTail(imbalance_ratio=10).thin(balanced)]
    assert np.bincount(kept).tolist() == [100, 56, 31, 17, 10]
    uneven = np.repeat(np.arange(3), [30, 100, 80])
    options = LongTail(imbalance_ratio=4)
    assert np.bincount(uneven[options.thin(uneven)]).tolist() == [30, 15, 7]
    first = np.repeat(np.arange(3), [100, 20, 80])
    assert np.bincount(first[options.thin(first)]).tolist() == [40, 20, 10]
    step = LongTail(imbalance_ratio=10, profile="step").thin(np.repeat(np.arange(4), 50))
    assert len(step) == 2 * 50 + 2 * 5
    assert LongTail().thin(uneven).tolist() == list(range(len(uneven)))


def test_thin_draws_by_seed_and_refuses_an_empty_class() -> None:
    labels = np.repeat(np.arange(3), 50)
    one = LongTail(imbalance_ratio=5).thin(labels)
    assert one.tolist() == LongTail(imbalance_ratio=5).thin(labels).tolist() == sorted(one.tolist())
    assert one.tolist() != LongTail(imbalance_ratio=5, split_seed=1).thin(labels).tolist()
    with pytest.raises(UserError, match="class 2 without a training image"):
        LongTail(imbalance_ratio=51).thin(labels)


def test_real_photographs_of_every_shape(shared_data: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_data / "caltech101_short96.zip") as archive:
        names = [n for n in archive.namelist() if n.startswith(("test/car_side/", "test/ant/"))][
            :24
        ]
        archive.extractall(tmp_path, names)
    labels, at = np.array([int("car" in name) for name in names]), np.arange(len(names))
    split = ImageList(image_size=64).files(names, labels, tmp_path)
    (images,) = split.finish(split.load(at, key=1, positions=at), key=1, positions=at)
    assert images.shape == (len(names), 3, 64, 64)
    assert torch.isfinite(images).all()
    grey = np.array([i for i in at if Image.open(tmp_path / names[i]).mode == "L"])
    assert len(grey), "the side views of cars are grey"
    (plain,) = split.load(grey, key=None, positions=grey)
    assert torch.equal(plain[:, 0], plain[:, 1])
