from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ltbench.data import official
from ltbench.data.listing import read_list
from ltbench.data.official import ImageNetLT, INat18, Official, PlacesLT, facts
from ltbench.errors import UserError

REPO = Path(__file__).parents[2]
LISTS = official.LISTS
CONFIGS = [ImageNetLT, PlacesLT, INat18]


@pytest.mark.parametrize(
    ("name", "classes", "lines", "extremes", "groups"),
    [
        ("imagenet_lt", 1000, (115_846, 20_000, 50_000), (1280, 5), (385, 479, 136)),
        ("places_lt", 365, (62_500, 7_300, 36_500), (4980, 5), (131, 163, 71)),
        ("inat18", 8142, (437_513, None, 24_426), (1000, 2), (842, 4076, 3224)),
    ],
)
def test_facts_are_the_published_ones(
    name: str,
    classes: int,
    lines: tuple[int | None, ...],
    extremes: tuple[int, int],
    groups: tuple[int, int, int],
) -> None:
    known = facts(name)
    parts = known["parts"]
    found = [parts[part]["lines"] if part in parts else None for part in ("train", "val", "test")]
    assert tuple(found) == lines
    counts = np.array(parts["train"]["counts"])
    assert (len(counts), known["num_classes"]) == (classes, classes)
    assert counts.sum() == lines[0]
    assert (counts.max(), counts.min()) == extremes
    assert (
        (counts > 100).sum(),
        ((counts >= 20) & (counts <= 100)).sum(),
        (counts < 20).sum(),
    ) == groups
    for part, known_part in parts.items():
        if part != "train":
            assert isinstance(known_part["counts"], int)
            assert known_part["counts"] * classes == known_part["lines"]


def test_facts_follow_from_the_lists(shared_data: Path, tmp_path: Path) -> None:
    make = runpy.run_path(str(REPO / "tools" / "make_facts.py"))["main"]
    make(str(shared_data / "lists"), str(tmp_path))
    for config in CONFIGS:
        name = f"{config.registered}.json"
        committed = REPO / "ltbench" / "data" / "facts" / name
        assert (tmp_path / name).read_bytes() == committed.read_bytes()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Places-LT of two classes, with lists that match its facts."""
    lists = {
        "train": "train/sea/1.png 0\ntrain/sea/2.png 0\ntrain/hut/1.png 1\n",
        "val": "train/sea/3.png 0\ntrain/hut/3.png 1\n",
        "test": "val/sea/8.png 0\nval/hut/9.png 1\n",
    }
    root = tmp_path / "root"
    parts = {}
    for part, text in lists.items():
        for line in text.splitlines():
            file = root / line.split()[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 9)).save(file)
        (root / f"Places_LT_{part}.txt").write_text(text)
        listing = read_list(root / f"Places_LT_{part}.txt")
        counts: Any = [2, 1] if part == "train" else 1
        parts[part] = {"lines": len(listing.labels), "counts": counts, "sha256": listing.sha256}
    known = {"num_classes": 2, "parts": parts}
    monkeypatch.setattr(official, "facts", lambda name: known)
    return root


def test_official_lists_load(tiny: Path) -> None:
    data = PlacesLT(root=str(tiny), image_size=8).load()
    assert data.info.name == "places_lt"
    assert data.info.class_counts == (2, 1)
    assert data.info.class_names == ("sea", "hut")
    assert data.val is not None
    assert (len(data.train), len(data.val), len(data.test)) == (3, 2, 2)
    assert data.manifest["verify"] == "official"
    assert {data.manifest[f"{part}_official"] for part in ("train", "val", "test")} == {"yes"}


def test_other_prefixes_and_order_are_still_official(tiny: Path) -> None:
    lines = (tiny / "Places_LT_train.txt").read_text().splitlines()[::-1]
    (tiny / "Places_LT_train.txt").write_text("\n".join(lines).replace("train/", "data_256/"))
    data = PlacesLT(root=str(tiny), prefix={"data_256/": "train/"}).load()
    assert data.manifest["train_official"] == "yes"


def test_counts_that_differ(tiny: Path) -> None:
    file = tiny / "Places_LT_train.txt"
    file.write_text(file.read_text() + "train/hut/3.png 1\n")
    with pytest.raises(UserError) as caught:
        PlacesLT(root=str(tiny)).load()
    for words in ("4 images, official 3", "1 classes differ, first class 1: 2, official 1", LISTS):
        assert words in str(caught.value)
    data = PlacesLT(root=str(tiny), verify="none").load()
    assert data.info.class_counts == (2, 2)
    assert data.manifest["train_official"] == "no"
    file.write_text(file.read_text() + "train/hut/3.png 2\n")
    with pytest.raises(UserError, match=r"line 5: label 2, but places_lt has classes 0\.\.1"):
        PlacesLT(root=str(tiny), verify="counts").load()


def test_same_counts_with_other_images(tiny: Path) -> None:
    file = tiny / "Places_LT_train.txt"
    file.write_text(file.read_text().replace("train/sea/2.png", "train/sea/3.png"))
    with pytest.raises(UserError, match=r"other images.*data\.verify=counts"):
        PlacesLT(root=str(tiny)).load()
    data = PlacesLT(root=str(tiny), verify="counts").load()
    assert data.manifest["train_official"] == "no"
    assert data.manifest["test_official"] == "yes"


def test_a_list_of_unknown_hash_is_checked_by_its_counts(tiny: Path) -> None:
    official.facts("places_lt")["parts"]["train"]["sha256"] = None
    data = PlacesLT(root=str(tiny)).load()
    assert data.manifest["train_official"] == "unknown"


@pytest.mark.parametrize("config", CONFIGS)
def test_without_data_one_message_says_everything(config: type[Official], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "images" / "train").mkdir(parents=True)
    for root, found in [
        (None, "no data.root is given"),
        ("nowhere", "is not a folder"),
        (str(tmp_path / "empty"), "is empty"),
        (str(tmp_path / "images"), "no list "),
    ]:
        with pytest.raises(UserError) as caught:
            config(root=root).load()
        message = str(caught.value)
        assert "\n" not in message
        source = {"imagenet_lt": "image-net.org", "places_lt": "places2", "inat18": "inat_comp"}
        lists = [name for name in (config().train, config().val, config().test) if name]
        pack = f"`ltbench data prepare dataset={config.registered} root=IMAGES lists=LISTS out="
        for word in [found, source[config.registered], LISTS, "data.root=DIR", pack, *lists]:
            assert word in message
        assert ("data.val=FILE" in message) == (config is not INat18)


def test_images_that_are_missing(tiny: Path) -> None:
    (tiny / "val" / "hut" / "9.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 images.*`val/hut/9\.png`"):
        PlacesLT(root=str(tiny)).load()


def test_protocol_of_inaturalist() -> None:
    config = INat18()
    assert (config.val, config.test, config.augment) == (None, "iNaturalist18_val.txt", "inat")
    assert (config.image_size, ImageNetLT().augment, PlacesLT().augment) == (
        224,
        "imagenet",
        "imagenet",
    )
    assert not hasattr(config, "imbalance_ratio")


@pytest.mark.parametrize("config", CONFIGS)
def test_paths_stay_out_of_the_digest(config: type[Official]) -> None:
    fields = config.model_fields
    outside = {name for name, f in fields.items() if f.json_schema_extra == {"digest": False}}
    assert outside == {"root", "train", "test", "val", "class_names", "prefix"}


@pytest.fixture
def standin(tmp_path: Path) -> Callable[..., None]:
    def run(*options: str) -> None:
        tool = str(REPO / "tools" / "make_standin.py")
        subprocess.run([sys.executable, tool, str(tmp_path), *options], check=True)

    return run


def test_a_stand_in_has_the_official_counts(tmp_path: Path, standin: Callable[..., None]) -> None:
    standin("--counts", "places_lt", "--size", "8", "--files", "1")
    with pytest.raises(UserError, match=r"data\.verify=counts"):
        PlacesLT(root=str(tmp_path)).load()
    data = PlacesLT(root=str(tmp_path), verify="counts", image_size=16).load()
    assert list(data.info.class_counts) == facts("places_lt")["parts"]["train"]["counts"]
    assert data.val is not None
    assert (len(data.train), len(data.val), len(data.test)) == (62_500, 7_300, 36_500)
    classes = np.unique(data.train.labels, return_index=True)[1][:8]
    (images,) = data.train.load(classes, key=None, positions=classes)
    means = images.float().mean(dim=(2, 3)).numpy()
    assert len({tuple(row) for row in means.round(3).tolist()}) == 8  # a pattern per class


def test_a_stand_in_of_any_profile(tmp_path: Path, standin: Callable[..., None]) -> None:
    standin("--classes", "4", "--largest", "20", "--ratio", "10", "--files", "2")
    train = read_list(tmp_path / "train.txt")
    assert np.bincount(train.labels).tolist() == [20, 9, 4, 2]
    assert np.bincount(read_list(tmp_path / "test.txt").labels).tolist() == [5] * 4
    assert len(set(train.paths)) == 8
    assert train.paths[:3] == [f"train/00/00000/{i}.jpg" for i in (0, 1, 0)]
