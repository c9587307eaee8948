from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltbench.data.folder import Folder
from ltbench.errors import UserError
from tests.data.folders import fill, load


def test_train_and_test_folders(tmp_path: Path) -> None:
    fill(tmp_path, {"train/cat": 5, "train/ant": 2, "train/bee/deep": 3})
    fill(tmp_path, {"test/cat": 4, "test/ant": 2, "test/bee": 3, "train/.hidden": 1})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "cat" / "._000.png").write_bytes(b"resource fork")
    data = load(tmp_path)
    assert data.info.class_names == ("ant", "bee", "cat")
    assert data.info.class_counts == (2, 3, 5)
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    assert data.val is None
    assert data.manifest == {
        "source": "folder",
        "test": "balanced, 2 a class, seed 0",
        "test_part": "test/, 6 of 9 images",
    }
    assert np.bincount(load(tmp_path, test_images="all").test.labels).tolist() == [2, 3, 4]
    assert np.bincount(load(tmp_path, test_per_class=1).test.labels).tolist() == [1, 1, 1]
    (images,) = data.train.load(np.arange(10), key=0, positions=np.arange(10))
    assert images.shape == (10, 3, 8, 8)


def test_val_folder_is_the_test_or_the_validation_part(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    data = load(tmp_path)
    assert len(data.test) == 2
    assert data.val is None
    fill(tmp_path, {"test/a": 3, "test/b": 3})
    data = load(tmp_path)
    assert len(data.test) == 6
    assert data.val is not None
    assert len(data.val) == 2
    assert len(load(tmp_path, test="val", val="test").test) == 2


def test_one_tree_holds_out_a_balanced_test(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 20, "b": 12})
    data = load(tmp_path)
    assert np.bincount(data.test.labels).tolist() == [10, 10]
    assert data.info.class_counts == (10, 2)
    train, test = data.train, data.test
    names = {*train.source._paths.tolist()}, {*test.source._paths.tolist()}  # type: ignore[attr-defined]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 32
    assert data.manifest["test"] == "held out, 10 a class, seed 0"
    same, other = load(tmp_path), load(tmp_path, split_seed=1)
    assert same.train.fingerprint() == data.train.fingerprint()
    assert other.train.fingerprint() != data.train.fingerprint()


def test_long_tail_thins_the_training_part_only(tmp_path: Path) -> None:
    fill(tmp_path, {f"{part}/{c}": n for part, n in (("train", 20), ("test", 3)) for c in "abc"})
    data = load(tmp_path, imbalance_ratio=4)
    assert data.info.class_counts == (20, 10, 5)
    assert len(data.test) == 9
    assert data.manifest["subset"] == "exp 4 seed 0"


TRAIN = {"train/a": 2, "train/b": 2}


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({}, {}, "is empty"),
        ({"a": 12}, {}, "at least two class folders.*found one folder, `a`"),
        ({"train": 3}, {}, "at least two class folders.*found no folder"),
        (TRAIN, {}, "neither `test` nor `val`"),
        (TRAIN, {"test": "eval"}, "no folder .*eval"),
        (TRAIN | {"test/a": 1}, {}, "other classes.*`b` is only in the training part"),
        (TRAIN | {"test/a": 1, "test/b": 1, "test/c": 1}, {}, "`c` is only there"),
        (TRAIN | {"test/a": 1, "test/b": 0}, {}, "class `b` has no test image"),
        (
            TRAIN | {"train/c": 0, "test/a": 1, "test/b": 1, "test/c": 1},
            {},
            "`c` has no training image",
        ),
        (TRAIN | {"test/a": 1, "test/b": 3}, {"test_per_class": 2}, "class `a` has 1 images"),
        ({"a": 11, "b": 10}, {}, "class `b` has 10 images.*leaves none"),
        ({"a": 20, "b": 20}, {"test_images": "all"}, "held out"),
        ({"a": 20, "b": 20}, {"imbalance_ratio": 11}, "without a training image"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, counts: dict[str, int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(fill(tmp_path, counts), **options)
    assert "\n" not in str(caught.value)


def test_roots_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs data\.root=DIR"):
        Folder().load()
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        load(tmp_path / "file")


def test_photographs_of_a_stranger(shared_data: Path, tmp_path: Path) -> None:
    classes = ("ant", "beaver", "Faces")
    with zipfile.ZipFile(shared_data / "caltech101_short96.zip") as archive:
        names = [n for n in archive.namelist() if Path(n).parent.name in classes]
        archive.extractall(tmp_path, names)
    data = Folder(root=str(tmp_path)).load()
    assert data.info.class_names == ("Faces", "ant", "beaver")
    counts = [sum(n.startswith(f"train/{c}/") for n in names) for c in sorted(classes)]
    assert list(data.info.class_counts) == counts
    assert len(set(np.bincount(data.test.labels).tolist())) == 1
    (images,) = data.test.load(np.arange(3), key=None, positions=np.arange(3))
    assert images.shape == (3, 3, 64, 64)
