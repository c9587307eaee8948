from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltbench.data import walk
from ltbench.data.overlap import same_content
from ltbench.data.prepare import prepare
from ltbench.data.shards.check import check
from ltbench.errors import UserError
from tests.data.folders import fill, load


@pytest.fixture(autouse=True)
def _notes_are_errors() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "val"),
        ("training", "validation"),
        ("train_set", "test_set"),
        ("train", "valid"),
        ("Training Data", "testing"),
    ],
)
def test_parts_are_known_by_their_usual_names(tmp_path: Path, train: str, test: str) -> None:
    fill(tmp_path, {f"{train}/a": 3, f"{train}/b": 2, f"{test}/a": 1, f"{test}/b": 1})
    data = load(tmp_path)
    assert data.info.class_names == ("a", "b")
    assert data.info.class_counts == (3, 2)
    assert len(data.test) == 2


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path, {"car": 12, "train": 12, "tram": 12})
    assert load(tmp_path).info.class_names == ("car", "train", "tram")


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({"val/a": 2, "val/b": 2, "test/a": 2}, {}, "no folder for training.*data.train"),
        ({"v1/a": 2, "v1/b": 2, "v2/a": 2, "v2/b": 2}, {}, "data.train=v1 data.test=v2"),
        ({"a/train": 2, "a/test": 2, "b/train": 2, "b/test": 2}, {}, "hold the parts themselves"),
        ({"Train/a": 2, "training/a": 2, "test/a": 2}, {}, "`Train` and `training`; say which"),
        ({"train/a": 2, "train/b": 2, "test": 3}, {}, "holds images but no class folders"),
        ({"train": 3, "test": 3}, {}, "at least two class folders.*but images"),
        ({"data/a": 3, "data/b": 3}, {}, "give data.root=.*data"),
        ({"a": 3, "b": 3}, {"train": "c"}, "no folder `c` in .*; found a, b"),
        ({"a": 3, "b": 3}, {"train": ""}, "data.train=``: there is no folder"),
        ({"train/a": 3, "train/b": 3}, {"test": ""}, "data.test=``: there is no folder"),
        ({"a": 30, "b": 1, "c": 1}, {"test_per_class": 1}, r"`b` has 1 image \(such classes: 2\)"),
        ({"a": 30, "b": 8}, {}, "lower it to 7 or less"),
        (
            {"train/a": 2, "train/b": 2, "train/c": 2, "test/a": 2, "test/x": 1},
            {},
            "`b, c` are only in the training part `.*train` and `x` is only there",
        ),
    ],
)  # fmt: skip
def test_unclear_layouts_are_refused(
    tmp_path: Path, counts: dict[str, int], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(fill(tmp_path, counts), **options)
    assert "\n" not in str(caught.value)


def test_files_in_place_of_folders(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a": 2, "train/b": 2, "test/a": 2})
    (tmp_path / "test" / "b").write_text("")
    with pytest.raises(UserError, match=r"`b` is only in the training part.*b` is a file"):
        load(tmp_path)
    other = fill(tmp_path / "other", {"test/a": 2, "test/b": 2})
    (other / "train").write_text("")
    with pytest.raises(UserError, match="train` is a file"):
        load(other)


def test_hidden_and_tools_folders_are_left_aside_at_any_depth(tmp_path: Path) -> None:
    fill(tmp_path, {f"{part}/{name}": 2 for part in ("train", "test") for name in "ab"})
    for place in (
        "train/a/.ipynb_checkpoints", "train/a/@eaDir/0.png", "test/b/.thumbnails",
        "train/__MACOSX", "lost+found", "train/b/deep/__MACOSX", "test/$RECYCLE.BIN",
    ):  # fmt: skip
        fill(tmp_path, {place: 1})
    for file in ("train/a/._000.png", "train/a/Thumbs.db", "train/b/.DS_Store"):
        (tmp_path / file).write_bytes(b"no image")
    data = load(tmp_path, test_images="all")
    assert data.info.class_counts == (2, 2)
    assert len(data.test) == 4


def test_endings_in_any_case_and_a_note_about_the_others(tmp_path: Path) -> None:
    fill(tmp_path, {f"{part}/{name}": 2 for part in ("train", "test") for name in "ab"})
    here = tmp_path / "train" / "a"
    for name in ("1.JPG", "2.Jpeg", "3.jfif", "4.jpe", "5.GIF", "6.TIF", "7.pnm"):
        (here / name).write_bytes((here / "000.png").read_bytes())
    assert load(tmp_path).info.class_counts == (9, 2)
    for name in ("x.avif", "y.avif", "z.txt", "z"):
        (here / name).write_text("")
    with pytest.warns(UserWarning, match=r"left out: \.avif \(2\), \.txt \(1\), no ending \(1\)"):
        assert load(tmp_path).info.class_counts == (9, 2)


def test_nested_classes_are_noted(tmp_path: Path) -> None:
    fill(tmp_path, {f"{part}/{c}": 2 for part in ("train", "test") for c in ("x/a", "x/b", "y/c")})
    with pytest.warns(UserWarning, match="images in x/a belong to class `x`"):
        assert load(tmp_path).info.class_counts == (4, 2)


def test_links_into_loops_are_followed_once(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a": 4, "train/b": 4, "test/a": 2, "test/b": 2, "pool": 3})
    (tmp_path / "train" / "a" / "self").symlink_to(tmp_path / "train" / "a")
    (tmp_path / "train" / "a" / "up").symlink_to("..")
    (tmp_path / "train" / "a" / "above").symlink_to(tmp_path.parent)
    (tmp_path / "train" / "b" / "loop").symlink_to("loop")
    (tmp_path / "train" / "b" / "other").symlink_to("../../pool")
    (tmp_path / "train" / "b" / "twice").symlink_to("../../pool")
    with (
        pytest.warns(UserWarning, match="links not followed.*: 4 "),
        pytest.warns(UserWarning, match=r"links and devices \(1\)"),
    ):
        assert load(tmp_path).info.class_counts == (4, 7)


def test_a_link_to_itself_is_no_folder_of_images(tmp_path: Path) -> None:
    fill(tmp_path, {f"{part}/{name}/deep": 2 for part in ("train", "test") for name in "ab"})
    (tmp_path / "train" / "a" / "loop").symlink_to("loop")
    with pytest.warns(UserWarning, match=r"links and devices \(1\)"):
        assert load(tmp_path).info.class_counts == (2, 2)


def test_class_folders_may_be_links_but_not_to_one_folder(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", {"train/a": 2, "test/a": 2, "test/b": 2})
    fill(tmp_path, {"elsewhere": 5})
    (root / "train" / "b").symlink_to(tmp_path / "elsewhere")
    assert load(root).info.class_counts == (2, 5)
    (root / "train" / "c").symlink_to("b")
    (root / "test" / "c").mkdir()
    with pytest.raises(UserError, match=r"`b` and `c` .* are one folder"):
        load(root)


def test_folders_and_links_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, {f"{part}/{name}": 2 for part in ("train", "test") for name in "ab"})
    (tmp_path / "train" / "a" / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"lead nowhere.*1 \(first: `.*gone\.png`\)"):
        load(tmp_path)
    (tmp_path / "train" / "a" / "gone.png").unlink()
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if str(folder).endswith("train/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(walk.os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot read folder `.*train/b`: Permission denied"):
        load(tmp_path)


def test_images_of_two_parts_or_labels_are_noted(tmp_path: Path) -> None:
    fill(tmp_path, {f"{part}/{name}": 3 for part in ("train", "test") for name in "ab"})
    train, test = tmp_path / "train", tmp_path / "test"
    (test / "a" / "link.png").symlink_to(train / "a" / "000.png")
    os.link(train / "b" / "000.png", test / "b" / "hard.png")
    os.link(train / "b" / "001.png", train / "a" / "other.png")
    with (
        pytest.warns(UserWarning, match="2 of 8 test images are training images"),
        pytest.warns(UserWarning, match="images with two labels: 1"),
        pytest.warns(UserWarning, match="train images that are named twice and count twice: 1"),
    ):
        data = load(tmp_path, test_images="all")
    assert data.manifest["overlap"] == "2 of 8 test images are training images"
    assert data.manifest["two_labels"] == "1"
    assert np.bincount(data.test.labels).tolist() == [4, 4]


def test_copies_of_training_images_stand_in_the_record(tmp_path: Path) -> None:
    fill(tmp_path, {f"{part}/{name}": 3 for part in ("train", "test") for name in "ab"})
    for number, file in enumerate(sorted(tmp_path.rglob("*.png"))):
        Image.new("RGB", (10, 8), (99, 99, number)).save(file)
    copy = (tmp_path / "train" / "a" / "001.png").read_bytes()
    data = load(tmp_path)
    assert same_content(data) == {}  # no checksums yet
    for split in (data.train, data.test):
        split.fingerprint()
    assert same_content(data) == {}
    (tmp_path / "test" / "b" / "002.png").write_bytes(copy)
    data = load(tmp_path)
    for split in (data.train, data.test):
        split.fingerprint()
    fact = "1 of 6 test images are copies of training images"
    two = {"copies_with_two_labels": "1"}
    with (
        pytest.warns(UserWarning, match=rf"{fact} \(first: `.*test/b/002\.png`\); remove"),
        pytest.warns(UserWarning, match=r"another label: 1 \(first: `.*train/a/001\.png`\)"),
    ):
        assert same_content(data) == {"same_content": fact, **two}
    (tmp_path / "test" / "b" / "002.png").unlink()
    (tmp_path / "train" / "b" / "copy.png").write_bytes(copy)
    data = load(tmp_path)
    for split in (data.train, data.test):
        split.fingerprint()
    with pytest.warns(UserWarning, match="copies under another label: 1"):
        assert same_content(data) == two


def test_damage_is_found_by_the_check_of_shards(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1})
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    file = root / "train" / "a" / "x.jpg"
    Image.fromarray(noise).save(file)
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes(500) + content[middle + 500 :])
    prepare("folder", tmp_path / "shards", root=str(root))
    assert check(tmp_path / "shards", "sha256", workers=1).problems == ()
    (problem,) = check(tmp_path / "shards", "decode", workers=1).problems
    assert "train/a/x.jpg" in problem
    assert "compressed data are damaged" in problem


@pytest.mark.parametrize(
    ("train", "test"), [("caf\u00e9", "cafe\u0301"), ("Cat", "cat"), ("\u00c9tui", "e\u0301tui")]
)
def test_names_that_look_alike_are_said_to(train: str, test: str, tmp_path: Path) -> None:
    fill(tmp_path, {f"train/{train}": 2, "train/b": 2, f"test/{test}": 1, "test/b": 1})
    with pytest.raises(UserError, match="differ only in case, or in the Unicode form"):
        load(tmp_path)
