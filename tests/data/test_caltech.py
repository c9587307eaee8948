"""Caltech-101 in its folders, with its natural tail and a thinner one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltbench.config.validation import build_options
from ltbench.data.base import Data
from ltbench.data.caltech import CLASSES, CLUTTER, Caltech101LT
from ltbench.errors import UserError

SIZES = [30 - k // 5 if k != 7 else 60 for k in range(CLASSES)]  # 30 to 10, and one of 60


def made(root: Path, classes: int = CLASSES, parts: tuple[str, ...] = ("train", "test")) -> Path:
    picture = root / "picture.png"
    root.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (200, 100, 50)).save(picture)
    content = picture.read_bytes()
    picture.unlink()
    for part in parts:
        for k in range(classes):
            folder = root / part / f"class{k:03d}"
            folder.mkdir(parents=True)
            for i in range(SIZES[k % CLASSES] if part != "test" else 3 + k % 2):
                (folder / f"image_{i:04d}.png").write_bytes(content + bytes([i]))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("caltech") / "root")


def load(root: Path, **options: object) -> Data:
    config = build_options("DATASETS", "caltech101_lt", {"root": str(root), **options})
    assert isinstance(config, Caltech101LT)
    return config.load()


def test_the_natural_tail_and_a_balanced_test_part(root: Path) -> None:
    data = load(root)
    assert data.info.name == "caltech101_lt"
    assert list(data.info.class_counts) == SIZES
    assert np.bincount(data.test.labels).tolist() == [3] * CLASSES
    assert "subset" not in data.manifest


def test_a_thinned_tail_follows_the_sizes_of_the_classes(root: Path) -> None:
    data = load(root, imbalance_ratio=20)
    counts = np.array(data.info.class_counts)
    by_size = np.argsort(-np.array(SIZES), kind="stable")
    profile = [int(60 * 20 ** (-r / 100)) for r in range(CLASSES)]
    assert counts[by_size].tolist() == np.minimum(np.array(SIZES)[by_size], profile).tolist()
    assert counts.max() / counts.min() == 20
    assert data.manifest["subset"] == "exp 20 seed 0"
    assert load(root, imbalance_ratio=20).train.fingerprint() == data.train.fingerprint()
    with pytest.raises(UserError, match="leaves a class without a training image"):
        load(root, imbalance_ratio=100)


def test_other_classes_and_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found 3 in .*use data=folder"):
        load(made(tmp_path / "few", 3))
    root = made(tmp_path / "all", parts=("train",)) / "train"
    assert load(root, test_per_class=5).info.num_classes == CLASSES
    for path in sorted((root / "class001").iterdir()):
        (root / CLUTTER).mkdir(exist_ok=True)
        (root / CLUTTER / path.name).write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=rf"found 102 in .*move `{CLUTTER}` elsewhere"):
        load(root, test_per_class=5)
    config = build_options("DATASETS", "caltech101_lt", {})
    with pytest.raises(UserError, match="101_ObjectCategories"):
        config.ready()
