"""`data.val_fraction`: stratified, always the same images, none of them trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltbench import get_recipe
from ltbench.data.base import Data, DatasetInfo
from ltbench.data.digits import DigitsLT
from ltbench.data.files import FileSource
from ltbench.data.images import ImageSplit
from ltbench.data.lists import ImageList
from ltbench.data.memory import MemorySplit
from ltbench.data.prepare import prepare
from ltbench.data.shards.dataset import Shards
from ltbench.data.val_split import ValFraction, val_indices
from ltbench.errors import UserError
from ltbench.leaderboard.steps import read_data
from tests.data.folders import fill, load


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=200),
    st.floats(0.001, 0.999),
)
def test_each_class_keeps_an_image_and_gives_its_share(labels: list[int], fraction: float) -> None:
    given = np.array(labels)
    held = val_indices(given, fraction)
    assert np.array_equal(held, np.unique(held))  # sorted, none twice
    for label in np.unique(given):
        count, taken = int((given == label).sum()), int((given[held] == label).sum())
        assert count - taken >= 1
        assert taken >= (count > 1)
        assert abs(taken - fraction * count) <= 1 or taken in (1, count - 1)


def test_the_choice_is_frozen_and_belongs_to_each_class() -> None:
    labels = np.repeat([0, 1, 2], [20, 6, 1])
    assert val_indices(labels, 0.2).tolist() == [0, 3, 7, 16, 20]
    assert val_indices(labels, 0.0).tolist() == []
    mixed = np.concatenate([labels[20:], labels[:20]])  # the other classes come first now
    assert [i - 7 for i in val_indices(mixed, 0.2) if mixed[i] == 0] == [0, 3, 7, 16]


def test_digits_are_divided_and_the_counts_are_those_trained_on() -> None:
    whole, data = DigitsLT().load(), DigitsLT(val_fraction=0.1).load()
    assert isinstance(data.train, MemorySplit)
    assert isinstance(data.val, MemorySplit)
    assert isinstance(whole.train, MemorySplit)
    assert data.info.class_counts == tuple(np.bincount(data.train.labels).tolist())
    assert len(data.train) + len(data.val) == len(whole.train)
    assert set(np.bincount(data.val.labels) > 0) == {True}
    held = val_indices(whole.train.labels, 0.1)
    assert np.array_equal(data.val.images, whole.train.images[held])
    rest = np.setdiff1d(np.arange(len(whole.train)), held)
    assert np.array_equal(data.train.images, whole.train.images[rest])
    assert data.test.fingerprint() == whole.test.fingerprint()
    assert data.train.fingerprint() != whole.train.fingerprint()
    assert data.manifest["val_fraction"] == "0.1"
    assert data.manifest["val_images"] == str(len(held))
    assert data.manifest["val_index_sha256"][:16] == "f4b4b45dfa8b5a00"
    assert not [key for key in whole.manifest if key.startswith("val")]


def test_validation_images_are_not_augmented() -> None:
    data = DigitsLT(val_fraction=0.1).load()
    assert isinstance(data.val, MemorySplit)
    rows, info = np.arange(len(data.val)), data.info
    bare = MemorySplit(
        data.val.images, data.val.labels, mean=info.mean, std=info.std, augment="none"
    )
    (expected,) = bare.load(rows, key=None, positions=rows)
    (found,) = data.val.load(rows, key=None, positions=rows)
    (augmented,) = data.val.load(rows, key=3, positions=rows)
    assert (found == expected).all()
    assert (augmented != expected).any()


def test_the_digest_changes_only_with_it() -> None:
    plain, none, tenth = (
        get_recipe("quickstart", *words)
        for words in ((), ("data.val_fraction=0",), ("data.val_fraction=0.1",))
    )
    assert plain.digest == none.digest != tenth.digest
    other = get_recipe("quickstart", "data.val_fraction=0.1", "seed=7")
    assert other.data.config.load().manifest == tenth.data.config.load().manifest  # type: ignore[attr-defined]
    resolved = tenth.tree(digest_only=True)
    again = read_data(resolved, {})  # what `leaderboard verify` reads
    assert again.train.fingerprint() == tenth.data.config.load().train.fingerprint()  # type: ignore[attr-defined]


def names(split: object) -> list[str]:
    assert isinstance(split, ImageSplit)
    assert isinstance(split.source, FileSource)
    return split.source.paths


def test_folders_lists_and_shards_hold_out_the_same_images(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", {"train/a": 9, "train/b": 4, "train/c": 1})
    fill(root, {f"test/{c}": 2 for c in "abc"})
    for part in ("train", "test"):
        lines = [
            f"{path.relative_to(root)} {'abc'.index(path.parent.name)}"
            for path in sorted((root / part).rglob("*.png"))
        ]
        (root / f"{part}.txt").write_text("\n".join(lines))
    folder = load(root, val_fraction=0.3)
    listed = ImageList(root=str(root), image_size=8, val_fraction=0.3).load()
    prepare("folder", tmp_path / "shards", root=str(root))
    shards = Shards(root=str(tmp_path / "shards"), image_size=8, val_fraction=0.3).load()
    assert folder.info.class_counts == (6, 3, 1)
    assert folder.val is not None
    assert np.bincount(folder.val.labels).tolist() == [3, 1]
    assert not set(names(folder.val)) & set(names(folder.train))
    for other in (listed, shards):
        assert other.val is not None
        assert other.info.class_counts == folder.info.class_counts
        assert other.val.fingerprint() == folder.val.fingerprint()
        assert other.train.fingerprint() == folder.train.fingerprint()
    rows = np.arange(len(folder.val))
    (one,), (two,) = (s.load(rows, key=None, positions=rows) for s in (folder.val, shards.val))  # type: ignore[union-attr]
    assert (one == two).all()


def test_images_are_thinned_before_they_are_divided(tmp_path: Path) -> None:
    fill(tmp_path, {f"{part}/{c}": n for part, n in (("train", 20), ("test", 3)) for c in "abc"})
    data = load(tmp_path, imbalance_ratio=4, val_fraction=0.2)
    assert data.val is not None
    assert np.bincount(data.val.labels).tolist() == [4, 2, 1]
    assert data.info.class_counts == (16, 8, 4)


def test_a_set_with_validation_images_of_its_own_is_refused_in_one_line(tmp_path: Path) -> None:
    fill(tmp_path, {f"{part}/{c}": 3 for part in ("train", "val", "test") for c in "ab"})
    with pytest.raises(UserError, match=r"val_fraction=0\.1, but folder has 6 validation") as error:
        load(tmp_path, val_fraction=0.1)
    assert "\n" not in str(error.value)


def test_nothing_to_hold_out_is_one_line(tmp_path: Path) -> None:
    fill(tmp_path, {f"{part}/{c}": 1 for part in ("train", "test") for c in "ab"})
    with pytest.raises(UserError, match="one training image, which stays in training"):
        load(tmp_path, val_fraction=0.5)


def test_streams_cannot_be_divided() -> None:
    words = ["data={name: shards, stream: true, val_fraction: 0.1}", "run.save_minutes=null"]
    with pytest.raises(UserError, match=r"`data\.val_fraction`: data\.stream=true reads"):
        get_recipe("ce_cifar10", *words)


def test_images_of_another_kind_of_split_say_what_they_need() -> None:
    class Own:
        labels = np.array([0, 0, 1, 1])

    data = Data(DatasetInfo("own", (2, 2), ("a", "b")), Own(), Own(), None, {})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"split `Own` needs a method `subset\(indices\)`"):
        ValFraction(val_fraction=0.5).hold_out(data)
