from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltbench.data.base import Data
from ltbench.data.listing import read_list
from ltbench.data.lists import ImageList, check_files, rewrite
from ltbench.errors import UserError

TRAIN = "train/x/0.png 0\ntrain/x/1.png 0\ntrain/y/0.png 1\ntrain/x/2.png 0\n"
TEST = "test/x/0.png 0\ntest/y/0.png 1\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in (TRAIN + TEST).split("\n"):
        if name:
            file = root / name.split()[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9)).save(file)
    (root / "train.txt").write_text(TRAIN)
    (root / "test.txt").write_text(TEST)
    return root


def load(root: Path, **options: Any) -> Data:
    return ImageList(root=str(root), image_size=8, **options).load()


def test_lists_in_the_root(root: Path) -> None:
    data = load(root)
    assert data.info.name == "list"
    assert data.info.class_counts == (3, 1)
    assert data.info.class_names == ("x", "y")
    assert data.train.labels.tolist() == [0, 0, 1, 0]
    assert data.test.labels.tolist() == [0, 1]
    assert data.val is None
    assert data.manifest["source"] == "list"
    assert data.manifest["train_list"] == read_list(root / "train.txt").sha256
    (images,) = data.train.load(np.arange(4), key=1, positions=np.arange(4))
    assert images.shape == (4, 3, 8, 8)


def test_lists_elsewhere_and_compressed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "train.txt").unlink()
    (tmp_path / "mine.txt.gz").write_bytes(gzip.compress(TRAIN.encode()))
    assert load(root, train=str(tmp_path / "mine.txt.gz")).info.class_counts == (3, 1)
    assert load(root, train=str(tmp_path / "mine.txt"), val="test.txt").val is not None
    monkeypatch.chdir(tmp_path)
    assert load(root, train="mine.txt").info.class_counts == (3, 1)
    (root / "mine.txt").write_text(TRAIN.replace("train/x/2.png 0\n", ""))
    assert load(root, train="mine.txt").info.class_counts == (2, 1)  # the root comes first


def test_lines_are_split_at_the_last_space(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes("\ufeffa b/\u2028é.jpg 0\r\n\r\n  c.jpg\t12  \r\n".encode())
    listing = read_list(file)
    assert listing.paths == ["a b/\u2028é.jpg", "c.jpg"]
    assert listing.labels.tolist() == [0, 12]
    assert listing.lines == [1, 3]


@pytest.mark.parametrize(
    "content",
    [
        b"a b.jpg\t0\nc.jpg\t1\n",
        b"a b.jpg,0\nc.jpg,1\n",
        b'"a b.jpg", 0\n"c.jpg", 1\n',
        b"a b.jpg; 0\rc.jpg; 1\r",
        "a b.jpg 0\nc.jpg 1\n".encode("utf-16"),
        b"\r\n# a comment 3\r\na b.jpg 000\r\n#also\r\n\r\nc.jpg 1",
    ],
)
def test_other_ways_to_write_a_list_are_understood(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "l").write_bytes(content)
    listing = read_list(tmp_path / "l")
    assert listing.paths == ["a b.jpg", "c.jpg"]
    assert listing.labels.tolist() == [0, 1]
    assert len(listing.lines) == 2


@pytest.mark.parametrize("header", ["path label", "image,class_id", "filename;Label", "label"])
def test_a_header_is_skipped_with_a_note(tmp_path: Path, header: str) -> None:
    (tmp_path / "l").write_text(f"{header}\na.jpg 0\nb.jpg 1\n")
    with pytest.warns(UserWarning, match=f"line 1: `{header}` is taken for a header"):
        assert read_list(tmp_path / "l").lines == [2, 3]


def test_images_named_twice_are_noted_and_stand_in_the_record(root: Path) -> None:
    (root / "link.png").symlink_to(root / "train" / "y" / "0.png")
    (root / "alias").symlink_to(root / "train" / "x")
    (root / "train.txt").write_text(TRAIN + "./train/x/0.png 0\ntrain/x/1.png 1\n")
    (root / "test.txt").write_text(TEST + "train//x/2.png 0\nlink.png 1\nalias/0.png 0\n")
    with (
        pytest.warns(UserWarning, match="3 of 5 test images are training images"),
        pytest.warns(UserWarning, match="count twice: 2"),
        pytest.warns(UserWarning, match=r"images with two labels: 1 \(first: `train/x/1\.png`\)"),
    ):
        data = load(root)
    assert data.manifest["overlap"] == "3 of 5 test images are training images"
    assert data.manifest["two_labels"] == "1"
    (root / "train.txt").write_text(TRAIN)
    (root / "test.txt").write_text(TEST)
    assert not {"overlap", "two_labels"} & set(load(root).manifest)


def test_a_prefix_may_lead_out_of_the_root_but_a_list_may_not(root: Path, tmp_path: Path) -> None:
    (root / "train").rename(tmp_path / "train")
    with pytest.raises(UserError, match="4 of 4 images"):
        load(root)
    for prefix in ({"train/": "../train/"}, {"train/": f"{tmp_path}/train/"}):
        assert load(root, prefix=prefix).info.class_counts == (3, 1)
    (root / "train.txt").write_text(TRAIN.replace("train/", f"{tmp_path}/train/"))
    with pytest.raises(UserError, match=r"line 1: .* leads out of data\.root.*data\.prefix="):
        load(root)
    prefix = {f"{tmp_path}/": "../"}
    assert load(root, prefix=prefix).info.class_counts == (3, 1)


def test_links_to_nowhere_and_folders_are_no_images(root: Path) -> None:
    (root / "train" / "x" / "0.png").unlink()
    (root / "train" / "x" / "0.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"1 of 4 .*`train/x/0\.png`; links that lead nowhere"):
        load(root)
    (root / "train" / "x" / "0.png").unlink()
    (root / "train" / "x" / "0.png").mkdir()
    with pytest.raises(UserError, match=r"1 of 4 .*`train/x/0\.png`"):
        load(root)


def test_the_hash_knows_neither_prefixes_nor_order(tmp_path: Path) -> None:
    def sha(text: str) -> str:
        (tmp_path / "l").write_text(text)
        return read_list(tmp_path / "l").sha256

    base = sha("train/x/a.jpg 0\ntrain/y/b.jpg 1\n")
    assert sha("data_256/y/b.jpg 1\ndata_256/x/a.jpg 0") == base
    assert sha("train/x/a.jpg 1\ntrain/y/b.jpg 0\n") != base
    assert sha("train/x/a.jpg 0\ntrain/y/b.jpg 1\ntrain/y/b.jpg 1\n") != base


def test_prefixes(root: Path) -> None:
    assert rewrite(["a/b/1", "a/2", "c/3"], {"a/": "x/", "a/b/": ""}) == ["1", "x/2", "c/3"]
    (root / "train.txt").write_text(TRAIN.replace("train/", "data_256/"))
    data = load(root, prefix={"data_256/": "train/"})
    assert data.info.class_names == ("x", "y")
    with pytest.raises(UserError, match=r"without `data_256/`|another data\.root"):
        load(root)


def test_class_names(root: Path) -> None:
    (root / "names.txt").write_text("cat\nblue whale\n")
    assert load(root, class_names="names.txt").info.class_names == ("cat", "blue whale")
    (root / "names.txt").write_text("cat\n")
    with pytest.raises(UserError, match="1 class names, the training list 2"):
        load(root, class_names="names.txt")
    (root / "train.txt").write_text("train/x/0.png 0\ntrain/x/1.png 1\n")
    assert load(root).info.class_names == ("0", "1")  # one folder for both says nothing


def test_long_tail(root: Path) -> None:
    lines = [f"train/{'xy'[c]}/0.png {c}\n" for c in (0, 1) for _ in range(20)]
    (root / "train.txt").write_text("".join(lines))
    data = load(root, imbalance_ratio=5)
    assert data.info.class_counts == (20, 4)
    assert data.manifest["subset"] == "exp 5 seed 0"
    assert data.train.labels.tolist() == [0] * 20 + [1] * 4


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("", TEST, "list .*train.txt` is empty"),
        (TRAIN + "lonely.jpg\n", TEST, "train.txt, line 5: found `lonely.jpg`"),
        (TRAIN + "a.jpg cat\n", TEST, "train.txt, line 5: label `cat`"),
        (TRAIN + "a.jpg 1.0\n", TEST, "train.txt, line 5: label `1.0`"),
        (TRAIN + "a.jpg -1\n", TEST, "train.txt, line 5: label `-1`.*unknown class"),
        (TRAIN + "train/x/0.png 3\n", TEST, r"class 2 has no training image.*up to 3 \(line 5\)"),
        (TRAIN + "train/x/0.png 99999999999999999\n", TEST, "class 2 has no training image"),
        (TRAIN.replace(" 0\n", " 2\n"), TEST, "class 0 has no training image"),
        ("train/x/0.png 0\n", TEST, "at least two classes"),
        (TRAIN, TEST + "test/x/0.png 2\n", r"test.txt, line 3: label 2, but .* classes 0\.\.1"),
        (TRAIN, "test/x/0.png 0\n", "test.txt: class 1 has no test image"),
        (TRAIN + "train/z/9.png 1\n", TEST, "1 of 5 images.*`train/z/9.png`.*not unpacked"),
        (TRAIN + "train/x/9.png 1\n", TEST, "1 of 5 images.*`train/x/9.png`.*incomplete copy"),
        (TRAIN.replace("train/", "a/train/"), TEST, r'4 of 4 .*give data.prefix=\{"a/": ""\}'),
        (TRAIN.replace("train/", ""), TEST, "4 of 4 .*they lie in .*root/train`"),
        (TRAIN.replace(".png", ".jpg"), TEST, "4 of 4 images.*, ...; none is there"),
        (TRAIN + "x" * 10**6 + " 0\n", TEST, "line 5: the path `x{40}...` has 1,000,000 letters"),
        (TRAIN + "a\0b.png 0\n", TEST, "line 5: found a zero byte"),
        (TRAIN + "/etc/hostname 0\n", TEST, "line 5: `/etc/hostname` leads out of"),
        (TRAIN + "a/../../b.png 0\n", TEST, "line 5: .* leads out of"),
        (TRAIN + "a.png " + "9" * 20 + "\n", TEST, "line 5: label `9{20}...` has 20 digits"),
        (TRAIN + "a.png " + "9" * 5000 + "\n", TEST, "line 5: label .* has 5,000 digits"),
        (TRAIN + "train/x/0.png 999999\n", TEST, "class 2 has no training image"),
        (TRAIN + "a.png -9\n", TEST, "line 5: label `-9`"),
        (TRAIN + "a.png ٣\n", TEST, "line 5: label `٣`"),
        (TRAIN + "0 a.png\n", TEST, "line 5: .*the label before the path"),
        (TRAIN + "a.png,0,cat\n", TEST, "line 5: label `cat`"),
        (TRAIN + "path label\n", TEST, "line 5: label `label`"),
        (TRAIN.replace("train/x", "train\\x"), TEST, "backslashes"),
        (TRAIN + f"{'n' * 300}/a.png 0\n", TEST, "1 of 5 images of .* are not below"),
    ],
)
def test_mistakes_are_one_line(root: Path, train: str, test: str, message: str) -> None:
    (root / "train.txt").write_text(train)
    (root / "test.txt").write_text(test)
    with pytest.raises(UserError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_lists_that_cannot_be_read(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train=`nowhere\.txt` is neither in"):
        load(root, train="nowhere.txt")
    (root / "cut.gz").write_bytes(gzip.compress(TRAIN.encode() * 100)[:40])
    with pytest.raises(UserError, match=r"cannot read .*cut\.gz"):
        load(root, train="cut.gz")
    (root / "binary").write_bytes(b"\xff\xd8\xff\xe0 0\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load(root, train="binary")
    for part in ("train", "test"):
        with pytest.raises(UserError, match=rf"data\.{part}=`` is neither in"):
            load(root, **{part: ""})
    with pytest.raises(UserError, match=r"needs data\.root=DIR"):
        ImageList().load()


def test_missing_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1").touch()
    check_files(tmp_path, ["a/1", "./a/1", "a//1"], Path("list"))
    with pytest.raises(
        UserError, match=r"1,000 of 1,001 images of `list`.*`a/2`, `a/3`, `a/4`, \.\.\."
    ):
        check_files(tmp_path, [f"a/{i}" for i in range(1, 1002)], Path("list"))


def test_paths_stay_out_of_the_digest() -> None:
    fields = ImageList.model_fields
    outside = {name for name, f in fields.items() if f.json_schema_extra == {"digest": False}}
    assert outside == {"root", "train", "test", "val", "class_names", "prefix"}
