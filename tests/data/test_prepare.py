"""From image files to shards and back: the same images, order and record, wherever they lie."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltbench.cli import main
from ltbench.data.cifar import CIFAR10LT
from ltbench.data.folder import Folder
from ltbench.data.frozen_lists import read_frozen
from ltbench.data.listing import read_list
from ltbench.data.lists import ImageList, rewrite
from ltbench.data.loader import batches
from ltbench.data.official import facts
from ltbench.data.official_sets import INat18, PlacesLT
from ltbench.data.prepare import prepare
from ltbench.data.shards.dataset import Shards
from ltbench.errors import UserError
from ltbench.seeding import keyed_bits

COUNTS = {"train": (12, 7, 3), "val": (2, 2, 2), "test": (4, 4, 4)}


def write_images(root: Path) -> None:
    """Three classes of small photos, as lists and as class folders at once."""
    for part, counts in COUNTS.items():
        lines = []
        for label, count in enumerate(counts):
            folder = root / part / f"class.{label}"  # a dot, which keys cannot keep
            folder.mkdir(parents=True)
            for number in range(count):
                size = (30 + 3 * number, 40, 3)
                pixels = keyed_bits(label * 100 + number, np.arange(np.prod(size))).reshape(size)
                name = f"{number}.v1.jpg" if number % 4 else f"{number}.png"
                Image.fromarray((pixels % 256).astype(np.uint8)).save(folder / name)
                lines.append(f"{part}/class.{label}/{name} {label}\n")
        (root / f"{part}.txt").write_text("".join(reversed(lines)))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_images(root)
    return root


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "shards"
    prepare("list", out, root=str(images), options={"val": "val.txt"})
    return out


def pixels(split, **options) -> torch.Tensor:
    order = np.arange(len(split))[::-1].copy()
    steps = batches(split, order, len(split), key=5, views=2, **options)
    return torch.cat([torch.stack(m.views) for step in steps for m in step])


@pytest.mark.parametrize("decode", ["fast", "pil"])
@pytest.mark.parametrize("augment", ["imagenet", "plain", "sim"])
def test_shards_give_what_the_files_give(
    images: Path, shards: Path, decode: str, augment: str
) -> None:
    options = {"image_size": 16, "decode": decode, "augment": augment}
    files = ImageList(root=str(images), val="val.txt", **options).load()
    packed = ImageList(root=str(shards), **options).load()
    assert packed.info == files.info
    for part in ("train", "val", "test"):
        one, two = getattr(files, part), getattr(packed, part)
        assert one.labels.tolist() == two.labels.tolist()
        assert torch.equal(pixels(one), pixels(two))
        assert one.fingerprint() == two.fingerprint()
        assert files.manifest[f"{part}_list"] == packed.manifest[f"{part}_list"]
    assert packed.manifest["source"] == "shards"


def test_a_thinned_tail_is_the_same_from_shards(images: Path, shards: Path) -> None:
    options = {"image_size": 16, "imbalance_ratio": 3, "split_seed": 1}
    files = ImageList(root=str(images), **options).load()
    packed = ImageList(root=str(shards), **options).load()
    assert packed.info.class_counts == files.info.class_counts
    assert torch.equal(pixels(files.train), pixels(packed.train))
    assert files.train.fingerprint() == packed.train.fingerprint()


def test_any_shards_by_their_own_name(images: Path, shards: Path) -> None:
    data = Shards(root=str(shards), image_size=16).load()
    assert data.info.class_counts == COUNTS["train"]
    assert data.info.class_names == ("class.0", "class.1", "class.2")
    with pytest.raises(UserError, match="ltbench data prepare"):
        Shards(root=str(images)).load()


def test_a_folder_of_classes(images: Path, tmp_path: Path) -> None:
    prepare("folder", tmp_path / "out", root=str(images))
    files = Folder(root=str(images), image_size=16).load()
    packed = Folder(root=str(tmp_path / "out"), image_size=16).load()
    assert torch.equal(pixels(files.train), pixels(packed.train))
    assert files.train.fingerprint() == packed.train.fingerprint()


def test_half_a_packing_is_refused(images: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare("list", out, root=str(images))
    (out / "train" / "manifest.json").unlink()
    with pytest.raises(UserError, match="no finished shards"):
        ImageList(root=str(out)).load()
    prepare("list", out, root=str(images))
    assert len(ImageList(root=str(out), image_size=16).load().train) == sum(COUNTS["train"])


def test_cifar_from_shards(tmp_path: Path) -> None:
    """Exact pixels by official position, from the arrays form and from shards of it."""
    frozen = read_frozen("cifar10")
    kept = frozen.indices("seed0", "exp", 100)[::50]
    root = tmp_path / "arrays"
    root.mkdir()
    for part, labels, index in (
        ("train", frozen.train_labels, kept),
        ("test", frozen.test_labels, np.arange(0, 10_000, 500)),
    ):
        made = keyed_bits(1, np.arange(len(index) * 3072)).reshape(-1, 32, 32, 3) % 256
        np.save(root / f"{part}_images.npy", made.astype(np.uint8))
        np.save(root / f"{part}_labels.npy", labels[index].astype(np.int64))
        np.save(root / f"{part}_index.npy", index.astype(np.int64))
    done = prepare("cifar10_lt", tmp_path / "out", root=str(root))
    assert done["train"].samples == len(kept)
    sources = [CIFAR10LT(root=str(r))._source(frozen) for r in (root, tmp_path / "out")]
    assert [s.kind for s in sources] == ["arrays", "shards"]
    for part in ("train", "test"):
        one, two = (getattr(source, part) for source in sources)
        assert one.index.tolist() == two.index.tolist()
        rows = np.arange(len(one.index))[::-1]
        assert np.array_equal(one.read(rows), two.read(rows))


@pytest.fixture
def small_inat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Official facts as small as the images of the test."""
    real = facts("inat18")
    parts = {
        "train": {"lines": 22, "counts": list(COUNTS["train"]), "sha256": None},
        "test": {"lines": 12, "counts": 4, "sha256": None},
    }
    monkeypatch.setattr(
        "ltbench.data.official.facts", lambda _: {**real, "num_classes": 3, "parts": parts}
    )


@pytest.mark.usefixtures("small_inat")
def test_official_sets_are_checked_again_from_shards(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    for part, name in (("train", "iNaturalist18_train.txt"), ("test", "iNaturalist18_val.txt")):
        with gzip.open(lists / f"{name}.gz", "wb") as file:
            file.write((images / f"{part}.txt").read_bytes())
    out = tmp_path / "out"
    words = ["dataset=inat18", f"root={images}", f"lists={lists}", f"out={out}", "workers=1"]
    main(["data", "prepare", *words])
    printed = capsys.readouterr().out
    assert f"ltbench run recipe=mislas_plot_inat data.root={out}" in printed.replace("\n", "")
    data = INat18(root=str(out), image_size=16).load()
    assert data.info.class_counts == COUNTS["train"]
    assert data.manifest["train_official"] == "unknown"
    with pytest.raises(UserError, match="shards of `inat18`"):
        PlacesLT(root=str(out)).load()
    main(["data", "check", str(out), "level=decode", "workers=1"])
    assert "34 images" in " ".join(capsys.readouterr().out.split())
    main(["data", "show", str(out), f"out={tmp_path / 'tail.png'}"])
    printed = capsys.readouterr().out
    assert "12" in printed
    assert Image.open(tmp_path / "tail.png").size == (1200, 600)


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["data", *words])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepare", "dataset=list"], "`out=...`"),
        (["prepare", "out=x"], "`dataset=...`"),
        (["prepare", "dataset=nothing", "out=x"], "nothing"),
        (["prepare", "dataset=digits_lt", "out=OUT"], "lies in memory"),
        (["prepare", "dataset=folder", "root=IMAGES", "out=OUT", "shard_mb=5000"], "equal to 1024"),
        (["prepare", "dataset=folder", "root=IMAGES", "out=OUT", "augmet=sim"], "augmet"),
        (["prepare", "dataset=folder", "root=IMAGES", "lists=x", "out=OUT"], "no lists"),
        (["prepare", "dataset=inat18", "root=IMAGES", "out=OUT"], "iNaturalist18_train.txt"),
        (["check"], "expected PATH, found nothing"),
        (["check", "IMAGES", "level=all"], "'size', 'crc', 'sha256' or 'decode'"),
        (["check", "OUT"], "OUT"),
        (["show", "IMAGES"], "holds no shards"),
        (["show", "IMAGES", "where=x"], "`where`: unknown key"),
        (["index", "out=OUT"], "expected TARS"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    said: str,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"IMAGES": str(images), "OUT": str(tmp_path / "out")}
    given = []
    for word in words:
        key, equals, value = word.rpartition("=")
        given.append(key + equals + places.get(value, value))
    assert places.get(said, said) in fails(capsys, *given)
    assert not (tmp_path / "out").exists()


def test_shards_are_not_packed_again(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(
        capsys, "prepare", "dataset=list", f"root={shards}", f"out={tmp_path / 'o'}", "workers=1"
    )
    assert "shards already" in said


LISTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "lists"


@pytest.mark.skipif(not LISTS.is_dir(), reason="the public lists are not here")
def test_the_public_layouts_of_a_list_agree(tmp_path: Path) -> None:
    """Copies differ in the beginnings of paths; rewritten, they are one list."""
    official = read_list(LISTS / "Places_LT_train.txt.gz")
    assert official.sha256 == facts("places_lt")["parts"]["train"]["sha256"]
    other = tmp_path / "other.txt"
    lines = [
        f"data_256/{path.partition('/')[2]} {label}\n"
        for path, label in zip(official.paths, official.labels.tolist(), strict=True)
    ]
    other.write_text("".join(lines))
    found = read_list(other)
    assert found.sha256 == official.sha256
    first = official.paths[0].partition("/")[0]
    assert rewrite(found.paths, {"data_256/": f"{first}/"}) == official.paths


def test_info_is_timms(shards: Path) -> None:
    info = json.loads((shards / "_info.json").read_text())
    assert set(info["splits"]) == {"train", "val", "test"}
    assert info["splits"]["train"]["num_samples"] == sum(COUNTS["train"])
