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
from ltbench.data.official import EDITIONS, Official, edition, facts
from ltbench.data.official_sets import (
    ISIC2019LT,
    ImageNetLT,
    INat18,
    ISICArchiveLT,
    PlacesLT,
    SemiAves,
    SemiFungi,
    SemiINat,
)
from ltbench.data.prepare import prepare
from ltbench.errors import UserError

REPO = Path(__file__).parents[2]
LISTS = official.LISTS
CONFIGS = [ImageNetLT, PlacesLT, INat18]
SMALLER = [ISIC2019LT, ISICArchiveLT, SemiAves, SemiFungi, SemiINat]


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


@pytest.mark.parametrize(
    ("name", "classes", "lines", "extremes", "each"),
    [
        ("isic2019_lt_100", 8, (10_322, 400, 800), (5000, 51), {"val": 50, "test": 100}),
        ("isic2019_lt_200", 8, (9_400, 400, 800), (5000, 25), {"val": 50, "test": 100}),
        ("isic2019_lt_500", 8, (8_494, 400, 800), (5000, 11), {"val": 50, "test": 100}),
        ("isic_archive_lt", 14, (17_508, 2_503, 5_009), (9012, 9), {}),
        ("semi_aves", 200, (3_959, 2_000, 8_000), (43, 5), {"val": 10, "test": 40}),
        ("semi_fungi", 200, (4_141, None, 4_000), (78, 6), {"test": 20}),
        ("semi_inat", 810, (9_721, None, 4_050), (80, 5), {"test": 5}),
    ],
)
def test_facts_of_the_smaller_sets(
    name: str,
    classes: int,
    lines: tuple[int | None, ...],
    extremes: tuple[int, int],
    each: dict[str, int],
) -> None:
    parts = facts(name)["parts"]
    found = [parts[part]["lines"] if part in parts else None for part in ("train", "val", "test")]
    assert tuple(found) == lines
    counts = np.array(parts["train"]["counts"])
    assert (len(counts), facts(name)["num_classes"]) == (classes, classes)
    assert (counts.sum(), counts.max(), counts.min()) == (lines[0], *extremes)
    assert {k: p["counts"] for k, p in parts.items() if isinstance(p["counts"], int)} == each
    assert all(len(str(part["sha256"])) == 64 for part in parts.values())


def test_facts_follow_from_the_lists(shared_data: Path, tmp_path: Path) -> None:
    make = runpy.run_path(str(REPO / "tools" / "make_facts.py"))["main"]
    make(str(shared_data / "lists"), str(tmp_path))
    committed = sorted((REPO / "ltbench" / "data" / "facts").glob("*.json"))
    for file in committed:
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    sets = {c.registered for c in (*CONFIGS, *SMALLER)} - EDITIONS.keys()
    sets |= {edition(n, {"imbalance_ratio": r}) for n, ratios in EDITIONS.items() for r in ratios}
    assert {file.stem for file in committed} == sets


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


PARTS = {
    "isic2019_lt": {
        "train": "ISIC_1.jpg 0\nISIC_2_downsampled.jpg 0\nISIC_3.jpg 1\n",
        "val": "ISIC_4.jpg 0\nISIC_5.jpg 1\n",
        "test": "ISIC_6.jpg 0\nISIC_7.jpg 1\n",
    },
    "isic_archive_lt": {
        "train": "ISIC_1.jpg 0\nISIC_2.jpg 0\nISIC_3.jpg 1\n",
        "val": "ISIC_4.jpg 0\nISIC_5.jpg 1\n",
        "test": "ISIC_6.jpg 0\nISIC_8.jpg 0\nISIC_7.jpg 1\n",
    },
    "semi_aves": {
        "train": "trainval_images/0/0.jpg 0\ntrainval_images/0/1.jpg 0\n"
        "trainval_images/1/0.jpg 1\n",
        "val": "trainval_images/0/30.jpg 0\ntrainval_images/1/30.jpg 1\n",
        "test": "test/215.jpg 0\ntest/3.jpg 1\n",
    },
    "semi_fungi": {
        "train": "images/1_A b/X 1.JPG 0\nimages/1_A b/X2.JPG 0\nimages/2_C/X.JPG 1\n",
        "test": "images/1_A b/Y.JPG 0\nimages/2_C/Y.JPG 1\n",
    },
    "semi_inat": {
        "train": "l_train/0/0.jpg 0\nl_train/0/1.jpg 0\nl_train/1/0.jpg 1\n",
        "test": "val/0/0.jpg 0\nval/1/0.jpg 1\n",
    },
}


def stand_in(
    config: type[Official], images: Path, lists: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Write images and lists of two classes, and make the facts those of these lists."""
    lists.mkdir(exist_ok=True)
    parts = {}
    for part, text in PARTS[config.registered].items():
        for line in text.splitlines():
            file = images / line.rpartition(" ")[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 12)).save(file, "JPEG")
        file = lists / config()._wanted()[part]
        file.write_text(text)
        listing = read_list(file)
        counts: Any = np.bincount(listing.labels).tolist()
        parts[part] = {"lines": len(listing.labels), "counts": counts, "sha256": listing.sha256}
    known = {"num_classes": 2, "parts": parts}
    monkeypatch.setattr(official, "facts", lambda name: known)
    return known


@pytest.mark.parametrize("config", SMALLER)
def test_smaller_sets_load_and_are_packed(
    config: type[Official], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "images"
    stand_in(config, root, tmp_path / "lists", monkeypatch)
    prepare(config.registered, tmp_path / "out", root=str(root), lists=str(tmp_path / "lists"))
    for data in (
        config(root=str(tmp_path / "out"), image_size=8).load(),
        config(
            root=str(root),
            image_size=8,
            **{p: str(tmp_path / "lists" / name) for p, name in config()._wanted().items()},
        ).load(),
    ):
        assert data.info.name == config.registered
        assert data.info.class_counts == (2, 1)
        parts = PARTS[config.registered]
        assert (data.val is not None) == ("val" in parts)
        assert len(data.test) == len(parts["test"].splitlines())
        assert {data.manifest[f"{part}_official"] for part in parts} == {"yes"}


@pytest.mark.parametrize("config", [SemiAves, SemiFungi, SemiINat])
def test_lists_are_found_under_the_names_they_are_published_by(
    config: type[Official], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(config, tmp_path, tmp_path, monkeypatch)
    for part, name in config()._wanted().items():
        (tmp_path / name).rename(tmp_path / config.published_as[part])
    assert config(root=str(tmp_path)).load().info.class_counts == (2, 1)
    with pytest.raises(UserError, match=r"no list mine\.txt"):
        config(root=str(tmp_path), train="mine.txt").load()


@pytest.mark.parametrize("config", SMALLER)
def test_without_the_smaller_sets_one_message_says_everything(config: type[Official]) -> None:
    with pytest.raises(UserError) as caught:
        config().load()
    message = str(caught.value)
    assert "\n" not in message
    for word in (config.needs, config.lists_from, config.lists_in, *config()._wanted().values()):
        assert word in message
    assert ("there l_train" in message) == config.registered.startswith("semi")
    assert ("dic.npy" in message) == config.registered.startswith("isic")


def test_each_ratio_of_isic_2019_has_lists_of_its_own() -> None:
    assert ISIC2019LT().edition == "isic2019_lt_100"
    other = ISIC2019LT(imbalance_ratio=500)
    assert other.edition == "isic2019_lt_500"
    assert other._wanted()["train"] == "isic2019_lt8_train_500.txt"


def test_the_published_lists_of_the_smaller_sets_pass(shared_data: Path) -> None:
    folders = {"isic": "isic_lt", "semi": "ssl_evaluation"}
    for kind in SMALLER:
        for ratio in EDITIONS.get(kind.registered, (None,)):
            config = kind(**({"imbalance_ratio": ratio} if ratio else {}))
            lists = shared_data / "lists" / folders[kind.registered[:4]]
            for part, name in config._wanted().items():
                assert config._verify(part, read_list(lists / f"{name}.gz")) == "yes"


def test_a_list_of_another_ratio_is_refused(shared_data: Path) -> None:
    listing = read_list(shared_data / "lists" / "isic_lt" / "isic2019_lt8_train_200.txt.gz")
    with pytest.raises(UserError, match=r"9,400 images, official 10,322.*FlexSampling"):
        ISIC2019LT()._verify("train", listing)


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


@pytest.mark.parametrize("config", [*CONFIGS, *SMALLER])
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
