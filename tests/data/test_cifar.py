from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import struct
import subprocess
import sys
import urllib.error
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from ltbench.data import frozen_lists
from ltbench.data.cifar import CIFAR10LT, CIFAR100LT
from ltbench.data.cifar_sources import _Files, shard_source
from ltbench.data.frozen_lists import PROTOCOLS, RATIOS, read_frozen
from ltbench.data.longtail import class_profile
from ltbench.data.shards.dataset import open_parts
from ltbench.data.shards.pack import PartToPack, pack
from ltbench.errors import UserError

SETS = {"cifar10": CIFAR10LT, "cifar100": CIFAR100LT}
ROOT = Path(__file__).parents[2]


def coded(index, split):
    """Images whose first pixel tells their official index and split; the others are black."""
    images = np.zeros((len(index), 32, 32, 3), dtype=np.uint8)
    images[:, 0, 0] = np.stack([index // 256, index % 256, np.full(len(index), split)], axis=1)
    return images


def png(image):
    """Encode an image without looking for a short form of it."""

    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    rows = np.pad(image.reshape(len(image), -1), ((0, 0), (1, 0)))  # each begins with its filter
    head = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def decoded(images):
    return images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 0, 1]


def write_arrays(folder, dataset, train, test=None, **changed):
    """Write a copy of the images at these official indices; ``changed`` replaces arrays."""
    folder.mkdir(exist_ok=True)
    frozen = read_frozen(dataset)
    for split, (name, index) in enumerate({"train": train, "test": test}.items()):
        labels = frozen.train_labels if name == "train" else frozen.test_labels
        index = np.arange(len(labels)) if index is None else np.asarray(index)
        content = {"images": coded(index, split), "labels": labels[index].astype(int)}
        for what, array in {**content, "index": index}.items():
            np.save(folder / f"{name}_{what}.npy", changed.get(f"{name}_{what}", array))
    return folder


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """CIFAR-10 copy with exactly the images of seed0/exp/100."""
    kept = read_frozen("cifar10").indices("seed0", "exp", 100)
    return write_arrays(tmp_path_factory.mktemp("cifar") / "arrays", "cifar10", kept)


# The frozen lists


@pytest.mark.parametrize("dataset", SETS)
def test_lists_have_the_published_counts_and_are_nested(dataset):
    frozen = read_frozen(dataset)
    n_max = 50_000 // frozen.num_classes
    for protocol in PROTOCOLS:
        for profile in ("exp", "step"):
            larger = set(range(50_000))
            for ratio in RATIOS:
                kept = frozen.indices(protocol, profile, ratio)
                counts = np.bincount(frozen.train_labels[kept], minlength=frozen.num_classes)
                assert tuple(counts) == class_profile(n_max, frozen.num_classes, ratio, profile)
                assert np.all(np.diff(kept) > 0)
                assert set(kept) <= larger
                larger = set(kept)
    tails = [tuple(frozen.indices(protocol, "exp", 100)) for protocol in PROTOCOLS]
    assert len(set(tails)) == len(PROTOCOLS)
    assert len(frozen.indices("seed0", "exp", 1)) == 50_000


@pytest.mark.parametrize("dataset", SETS)
def test_labels_are_balanced(dataset):
    frozen = read_frozen(dataset)
    assert set(np.bincount(frozen.train_labels)) == {50_000 // frozen.num_classes}
    assert set(np.bincount(frozen.test_labels)) == {10_000 // frozen.num_classes}
    assert len(set(frozen.class_names)) == frozen.num_classes


@pytest.mark.parametrize("dataset", SETS)
def test_the_tool_draws_the_committed_files_again(dataset):
    path = ROOT / "tools" / "freeze_cifar_lt.py"
    spec = importlib.util.spec_from_file_location("freeze_cifar_lt", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    frozen = read_frozen(dataset)
    content, facts = tool.freeze(frozen.train_labels, frozen.test_labels, list(frozen.class_names))
    assert content == (frozen_lists.FOLDER / f"{dataset}.safetensors").read_bytes()
    assert facts == (frozen_lists.FOLDER / f"{dataset}.json").read_text()


def test_seed0_is_the_rule_of_the_literature():
    labels = read_frozen("cifar10").train_labels
    rng = np.random.RandomState(0)
    kept = []
    for c in range(10):
        mine = np.where(labels == c)[0]
        rng.shuffle(mine)
        kept.extend(mine[: int(5000 * 0.01 ** (c / 9.0))])
    assert sorted(kept) == read_frozen("cifar10").indices("seed0", "exp", 100).tolist()


def test_a_damaged_list_is_noticed(monkeypatch, tmp_path):
    frozen = read_frozen("cifar10")
    draw = frozen.draws["seed0"].copy()
    draw[-500] ^= 1
    monkeypatch.setitem(frozen.draws, "seed0", draw)
    with pytest.raises(UserError, match=r"seed0/exp/10 .*not the published one"):
        frozen.indices("seed0", "exp", 10)
    monkeypatch.setattr(frozen_lists, "FOLDER", tmp_path)
    read_frozen.cache_clear()
    with pytest.raises(UserError, match="frozen lists of cifar10 cannot be read"):
        read_frozen("cifar10")


# Sources


def test_arrays_give_the_listed_images(arrays):
    data = CIFAR10LT(root=str(arrays)).load()
    kept = read_frozen("cifar10").indices("seed0", "exp", 100)
    assert data.info.name == "cifar10_lt"
    assert data.info.class_counts == (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
    assert data.info.class_names[6] == "frog"
    assert decoded(data.train.images).tolist() == kept.tolist()
    assert decoded(data.test.images).tolist() == list(range(10_000))
    assert np.array_equal(data.train.labels, read_frozen("cifar10").train_labels[kept])
    assert data.val is None
    assert data.manifest == {
        "protocol": "seed0",
        "profile": "exp",
        "imbalance_ratio": "100",
        "index_sha256": read_frozen("cifar10").hashes["seed0/exp/100"],
        "source": "arrays",
    }
    # A nested list needs no other copy, a parent folder will do, and training images are augmented.
    nested = CIFAR10LT(root=str(arrays.parent), imbalance_ratio=200).load()
    assert sum(nested.info.class_counts) == 11203
    assert nested.train.augment == "standard"
    assert nested.test.augment == "none"


@pytest.mark.slow
def test_every_kind_of_source_gives_the_same_pixels(tmp_path, monkeypatch, arrays):
    frozen = read_frozen("cifar10")
    labels = np.concatenate([frozen.train_labels, frozen.test_labels])
    pixels = np.concatenate([coded(np.arange(50_000), 0), coded(np.arange(10_000), 1)])
    rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    binary, python = tmp_path / "cifar-10-batches-bin", tmp_path / "tv" / "cifar-10-batches-py"
    binary.mkdir()
    python.mkdir(parents=True)
    for i in range(6):
        at = slice(10_000 * i, 10_000 * (i + 1))
        name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
        np.concatenate([labels[at, None], rows[at]], axis=1).tofile(binary / f"{name}.bin")
        (python / name).write_bytes(pickle.dumps({"data": rows[at], "labels": labels[at].tolist()}))
    (python / "batches.meta").write_bytes(pickle.dumps({"label_names": frozen.class_names}))
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    folders = tmp_path / "folders"
    for split, kept in {
        "train": frozen.indices("seed0", "exp", 200),
        "test": np.arange(10_000),
    }.items():
        official = frozen.train_labels if split == "train" else frozen.test_labels
        for name in frozen.class_names:
            (folders / split / name).mkdir(parents=True)
        for i, image in zip(kept, coded(kept, split == "test"), strict=True):
            file = folders / split / frozen.class_names[official[i]] / f"{i:05d}.png"
            file.write_bytes(png(image))
    found = {
        root: CIFAR10LT(root=str(root), imbalance_ratio=200).load()
        for root in (arrays, binary, python, tmp_path / "tv", folders)
    }
    kinds = [data.manifest["source"] for data in found.values()]
    assert kinds == ["arrays", "binary", "torchvision", "torchvision", "folders"]
    assert len({data.train.fingerprint() for data in found.values()}) == 1
    assert len({data.test.fingerprint() for data in found.values()}) == 1
    # One broken, one oversized, one foreign image: the first that is read.
    first = frozen.indices("seed0", "exp", 200)[0]
    victim = folders / "train" / frozen.class_names[frozen.train_labels[first]]
    path = victim / f"{first:05d}.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    config = CIFAR10LT(root=str(folders), imbalance_ratio=200)
    with pytest.raises(UserError, match=f"broken image `{path}`"):
        config.load()
    Image.new("RGB", (33, 32)).save(path)
    with pytest.raises(UserError, match="must be 32x32 pixels, found 33x32"):
        config.load()
    path.rename(victim / "truck_1.png")
    with pytest.raises(UserError, match=r"1 files .* not named .*truck_1.png"):
        config.load()


def test_download_failures_are_one_line(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torchvision.datasets.CIFAR100, "download", fail)
    with pytest.raises(UserError, match=r"CIFAR-100 could not be fetched .*no route.*network"):
        CIFAR100LT(root=str(tmp_path), download=True).load()
    monkeypatch.undo()
    (tmp_path / "cifar-100-python").mkdir()
    with pytest.raises(UserError, match=r"CIFAR-100 could not be read .*copy it again"):
        CIFAR100LT(root=str(tmp_path)).load()


# Copies that must be refused


def test_roots_that_hold_nothing(tmp_path):
    with pytest.raises(UserError, match=r"needs the images of CIFAR-10: data.root=.*download=true"):
        CIFAR10LT().load()
    with pytest.raises(UserError, match="does not exist"):
        CIFAR10LT(root=str(tmp_path / "nowhere")).load()
    with pytest.raises(UserError, match="is empty"):
        CIFAR10LT(root=str(tmp_path)).load()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds no CIFAR-10: .*found nothing"):
        CIFAR10LT(root=str(tmp_path)).load()


def test_the_other_data_set_is_refused(arrays, tmp_path):
    with pytest.raises(UserError, match=r"holds no CIFAR-100: .*has arrays of 10 classes"):
        CIFAR100LT(root=str(arrays)).load()
    for split in ("train", "test"):
        (tmp_path / split / "apple").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no CIFAR-10: .*not named like its classes"):
        CIFAR10LT(root=str(tmp_path)).load()


def test_names_that_are_no_index_are_refused(tmp_path):
    folder = tmp_path / "folders"
    for split in ("train", "test"):
        (folder / split / "cat").mkdir(parents=True)
        (folder / split / "cat" / f"{10**30}.png").touch()
    with pytest.raises(UserError, match=r"1 files .* are not named `<official index>\.png`"):
        CIFAR10LT(root=str(folder)).load()
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(UserError, match=r"broken image `.*1\.png` \(.*not a regular file"):
        _Files([tmp_path / "1.png"])(np.array([0]))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cat/x", b"any", "hold `cat/x.png`, but images of CIFAR-10 are named"),
        (f"cat/{10**30}", b"any", "are named `<class>/<official index>.png`"),
        ("", b"no image", r"broken image `cat/.*copy it again"),
        ("", png(np.zeros((8, 8, 3), dtype=np.uint8)), "must be 32x32 pixels, found 8x8"),
    ],
)
def test_shards_of_other_images_are_refused(tmp_path, name, content, said):
    frozen = read_frozen("cifar10")
    label = frozen.class_names.index("cat")
    index = np.flatnonzero(frozen.train_labels == label)[0]
    for split in ("train", "test"):
        part = PartToPack(
            "cifar10", split, lambda _: content, [f"{name or f'cat/{index}'}.png"],
            np.array([label]), frozen.class_names,
        )  # fmt: skip
        pack(part, tmp_path / split, workers=1)
    parts = open_parts(str(tmp_path))
    with pytest.raises(UserError, match=said):
        shard_source(parts, "cifar10").train.read(np.array([0]))


def test_missing_training_images_are_named(arrays):
    kept = set(read_frozen("cifar10").indices("seed0", "exp", 100).tolist())
    wanted = read_frozen("cifar10").indices("draw1", "exp", 100)
    missing = [i for i in wanted.tolist() if i not in kept]
    with pytest.raises(UserError) as error:
        CIFAR10LT(root=str(arrays), protocol="draw1").load()
    text = str(error.value)
    assert f"lack {len(missing)} of the 12406 that draw1/exp/100 needs" in text
    assert f"first official indices {missing[0]} (" in text
    assert str(arrays) in text


def test_missing_test_images_are_named(tmp_path):
    kept = read_frozen("cifar10").indices("seed0", "exp", 200)
    write_arrays(tmp_path, "cifar10", kept, np.delete(np.arange(10_000), [70, 71]))
    with pytest.raises(UserError, match=r"test images .* lack 2 of the 10000 .*indices 70 \("):
        CIFAR10LT(root=str(tmp_path), imbalance_ratio=200).load()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_labels": "shift"}, "disagree with the official labels for 1 of 100 .*index 7: "),
        ({"train_index": "twice"}, "hold official index 6 twice"),
        ({"train_index": "beyond"}, r"index 50000, beyond 0..49999"),
        ({"train_index": np.arange(99)}, "differ in length: 100 images, 100 labels, 99 indices"),
        ({"train_images": np.zeros((100, 32, 32, 3), np.float32)}, "must hold uint8 .* float32"),
        ({"test_images": np.zeros((10_000, 8, 8, 3), np.uint8)}, "must hold uint8"),
        ({"train_labels": np.zeros(100)}, "must hold integers"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, changed, message):
    labels = read_frozen("cifar10").train_labels[:100].astype(int)
    index = np.arange(100)
    made = {
        "shift": np.where(index == 7, (labels + 1) % 10, labels),
        "twice": np.where(index == 7, 6, index),
        "beyond": np.where(index == 7, 50_000, index),
    }
    changed = {k: made[v] if isinstance(v, str) else v for k, v in changed.items()}
    if "twice" in message:  # the labels stay right, so only the repetition is wrong
        changed["train_labels"] = np.where(index == 7, labels[6], labels)
    write_arrays(tmp_path, "cifar10", index, **changed)
    with pytest.raises(UserError, match=message):
        CIFAR10LT(root=str(tmp_path)).load()


def test_truncated_files_are_refused(tmp_path):
    write_arrays(tmp_path, "cifar10", np.arange(100))
    file = tmp_path / "train_images.npy"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"train_images.npy` cannot be read"):
        CIFAR10LT(root=str(tmp_path)).load()
    (tmp_path / "train.bin").write_bytes(b"\0" * 3074)
    with pytest.raises(UserError, match=r"train.bin` must have 153700000 bytes .* found 3074"):
        CIFAR100LT(root=str(tmp_path)).load()


# Real images


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory, shared_data):
    """The archives of real images as arrays."""
    root = tmp_path_factory.mktemp("sheets")
    for dataset, archive in {"cifar10": "cifar10lt_sheets", "cifar100": "cifar100_sheets"}.items():
        command = [sys.executable, shared_data / "unpack_sheets.py"]
        subprocess.run(
            [*command, shared_data / f"{archive}.zip", root / dataset],
            check=True,
            capture_output=True,
        )
    return root


@pytest.mark.slow
def test_real_cifar10_subset(unpacked, shared_data):
    with zipfile.ZipFile(shared_data / "cifar10lt_sheets.zip") as archive:
        for split, labels in (("train", "train_labels"), ("test", "test_labels")):
            official = np.array(archive.read(f"{split}_labels.txt").split(), dtype=int)
            assert np.array_equal(official, getattr(read_frozen("cifar10"), labels))
    data = CIFAR10LT(root=str(unpacked), imbalance_ratio=10).load()
    assert sum(data.info.class_counts) == 20431
    index = np.load(unpacked / "cifar10" / "train_index.npy")
    assert np.array_equal(index, read_frozen("cifar10").indices("seed0", "exp", 10))
    assert np.array_equal(data.train.images, np.load(unpacked / "cifar10" / "train_images.npy"))
    with pytest.raises(UserError, match=r"lack [0-9]+ of the 25250 that seed0/step/100 needs"):
        CIFAR10LT(root=str(unpacked), profile="step").load()


@pytest.mark.slow
def test_real_cifar100_from_arrays_and_from_the_original_binary(unpacked, tmp_path, shared_data):
    with zipfile.ZipFile(shared_data / "cifar100_sheets.zip") as archive:
        lines = archive.read("classes.csv").decode().splitlines()[1:]
    coarse = np.array([int(line.split(",")[2]) for line in lines], dtype=np.uint8)
    sums = {
        "train": "e207cd2e05b73b1393c74c7f5e7bea451d63e08e",
        "test": "8fb6623e830365ff53cf14adec797474f5478006",
    }
    for split, published in sums.items():
        images = np.load(unpacked / "cifar100" / f"{split}_images.npy")
        fine = np.load(unpacked / "cifar100" / f"{split}_labels.npy").astype(np.uint8)
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        record = np.concatenate([coarse[fine][:, None], fine[:, None], rows], axis=1)
        assert hashlib.sha1(record.tobytes()).hexdigest() == published
        record.tofile(tmp_path / f"{split}.bin")
    for options, total in [
        ({}, 10847),
        ({"imbalance_ratio": 200}, 9502),
        ({"profile": "step", "protocol": "draw2"}, 25250),
    ]:
        by_array = CIFAR100LT(root=str(unpacked / "cifar100"), **options).load()
        by_binary = CIFAR100LT(root=str(tmp_path), **options).load()
        assert by_array.manifest["source"] == "arrays"
        assert by_binary.manifest["source"] == "binary"
        assert sum(by_array.info.class_counts) == total
        assert by_array.info == by_binary.info
        assert by_array.train.fingerprint() == by_binary.train.fingerprint()
        assert by_array.test.fingerprint() == by_binary.test.fingerprint()


def test_images_are_normalised_with_the_statistics_asked_for(arrays):
    plain, own = (
        CIFAR10LT(root=str(arrays), statistics=name).load() for name in ("cifar10", "cifar100")
    )
    at = {"key": None, "positions": np.arange(2)}
    for data, mean, std in ((plain, 0.4914, 0.2023), (own, 0.5071, 0.2675)):
        assert (data.info.mean[0], data.info.std[0]) == (mean, std)
        for split in (data.train, data.test):
            (images,) = split.load(np.arange(2), **at)
            assert float(images[0, 0, 5, 5]) == pytest.approx(-mean / std)  # black
