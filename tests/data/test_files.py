from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltbench.data import files
from ltbench.data.files import FileSplit, LongTail, read_image
from ltbench.data.transforms import IMAGENET_STATS, INAT_STATS, eval_transform, train_transform
from ltbench.errors import UserError
from ltbench.seeding import keyed_bits


def picture(seed: int = 0, height: int = 30, width: int = 40) -> Image.Image:
    pixels = keyed_bits(seed, np.arange(height * width * 3)).reshape(height, width, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def make(root: Path, names: list[str], labels: list[int], size: int = 16) -> FileSplit:
    transforms = train_transform("imagenet", size), eval_transform("imagenet", size)
    return FileSplit(names, np.array(labels), root, *transforms)


@pytest.fixture
def split(tmp_path: Path) -> FileSplit:
    for i in range(4):
        (tmp_path / f"c{i % 2}").mkdir(exist_ok=True)
        picture(i).save(tmp_path / f"c{i % 2}" / f"{i}.jpg")
    return make(tmp_path, [f"c{i % 2}/{i}.jpg" for i in range(4)], [0, 1, 0, 1])


def test_shapes_types_and_length(split: FileSplit) -> None:
    views = split.load(np.array([2, 0, 1]), key=3, positions=np.array([7, 8, 9]), views=2)
    assert [(view.shape, view.dtype) for view in views] == [((3, 3, 16, 16), torch.float32)] * 2
    assert len(split) == 4
    assert split.labels.dtype == np.int64
    assert not split.in_memory


def test_augmentation_depends_on_key_position_and_view_only(split: FileSplit) -> None:
    positions = np.array([10, 11, 12])
    (a,) = split.load(np.array([3, 1, 3]), key=3, positions=positions)
    (alone,) = split.load(np.array([3]), key=3, positions=np.array([12]))
    assert torch.equal(a[2], alone[0])
    assert not torch.equal(a[0], a[2])  # the same image at two positions
    first, second = split.load(np.array([3]), key=3, positions=np.array([12]), views=2)
    assert torch.equal(first, alone)
    assert not torch.equal(first, second)
    (other,) = split.load(np.array([3]), key=4, positions=np.array([12]))
    assert not torch.equal(other, alone)


def test_evaluation_is_resize_and_centre_crop(split: FileSplit) -> None:
    (image,) = split.load(np.array([0]), key=None, positions=np.array([0]))
    (again,) = split.load(np.array([0]), key=None, positions=np.array([5]))
    assert torch.equal(image, again)
    pil = read_image(f"{split.root}/c0/0.jpg")  # 40 x 30: short side to 18, then crop 16
    small = np.asarray(pil.resize((24, 18), Image.Resampling.BILINEAR))[1:17, 4:20] / 255.0
    expected = (small - np.array(IMAGENET_STATS[0])) / np.array(IMAGENET_STATS[1])
    assert np.allclose(image[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_inat_has_its_own_statistics_and_no_jitter() -> None:
    grey = Image.new("RGB", (32, 32), (128, 128, 128))
    for name in ("inat", "plain"):
        mean, std = INAT_STATS if name == "inat" else IMAGENET_STATS
        expected = (128 / 255 - torch.tensor(mean)) / torch.tensor(std)
        assert torch.allclose(train_transform(name, 8)(grey)[:, 0, 0], expected, atol=1e-5)
    for name in ("imagenet", "inat_jitter"):
        brightness = {float(train_transform(name, 8)(grey)[0, 0, 0]) for _ in range(5)}
        assert len(brightness) > 1


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    rgb = picture()
    for mode, ending in [
        ("L", "png"),
        ("P", "png"),
        ("CMYK", "jpg"),
        ("RGBA", "png"),
        ("1", "png"),
    ]:
        rgb.convert(mode).save(tmp_path / f"{mode}.{ending}")
        image = read_image(str(tmp_path / f"{mode}.{ending}"))
        assert (image.mode, image.size) == ("RGB", rgb.size)
        want = np.asarray(rgb.convert(mode).convert("RGB"), dtype=float)
        assert abs(np.asarray(image, dtype=float) - want).mean() < (40 if ending == "jpg" else 0.5)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    image = np.asarray(read_image(str(tmp_path / "deep.png")))
    assert np.array_equal(image[..., 0], (ramp >> 8).astype(np.uint8))
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match="32 bits"):
        read_image(str(tmp_path / "float.tif"))


@pytest.mark.parametrize("content", [b"", b"not an image\n", b"\x89PNG\r\n\x1a\n", "cut", None])
def test_an_unreadable_image_is_named(tmp_path: Path, content: bytes | str | None) -> None:
    if content == "cut":
        buffer = io.BytesIO()
        picture().save(buffer, "JPEG")
        content = buffer.getvalue()[: len(buffer.getvalue()) // 2]
    if content is not None:
        (tmp_path / "bad.jpg").write_bytes(content)  # type: ignore[arg-type]
    with pytest.raises(UserError) as caught:
        read_image(str(tmp_path / "bad.jpg"))
    assert "bad.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fingerprint_sees_content_labels_and_order_but_not_folders(split: FileSplit) -> None:
    root, names = Path(split.root), ["c0/0.jpg", "c1/1.jpg", "c0/2.jpg", "c1/3.jpg"]
    base = split.fingerprint()
    assert base.startswith("content:")
    assert make(root, names, [0, 1, 0, 1]).fingerprint() == base
    assert make(root, names, [0, 1, 1, 1]).fingerprint() != base
    assert make(root, names[::-1], [0, 1, 0, 1]).fingerprint() != base
    assert (
        make(
            root / "c0", ["0.jpg", "../c1/1.jpg", "2.jpg", "../c1/3.jpg"], [0, 1, 0, 1]
        ).fingerprint()
        == base
    )
    file = root / "c0" / "0.jpg"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert make(root, names, [0, 1, 0, 1]).fingerprint() != base
    file.write_bytes(b"")
    with pytest.raises(UserError, match=r"0\.jpg` is empty"):
        make(root, names, [0, 1, 0, 1]).fingerprint()
    file.unlink()
    with pytest.raises(UserError, match=r"0\.jpg"):
        make(root, names, [0, 1, 0, 1]).fingerprint()


def test_fingerprint_of_a_large_split_is_its_listing(
    split: FileSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CONTENT_LIMIT", 100)
    root, names = Path(split.root), ["c0/0.jpg", "c1/1.jpg"]
    base = make(root, names, [0, 1]).fingerprint()
    assert base.startswith("listing:")
    picture(0).save(root / "c0" / "0.jpg", quality=30)  # a lossy copy
    assert make(root, names, [0, 1]).fingerprint() != base


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
    split = make(tmp_path, names, [int("car" in name) for name in names], size=64)
    (images,) = split.load(np.arange(len(names)), key=1, positions=np.arange(len(names)))
    assert images.shape == (len(names), 3, 64, 64)
    assert torch.isfinite(images).all()
    grey = [i for i, name in enumerate(names) if Image.open(tmp_path / name).mode == "L"]
    assert grey, "the side views of cars are grey"
    (plain,) = split.load(np.array(grey), key=None, positions=np.array(grey))
    raw = plain * torch.tensor(IMAGENET_STATS[1])[:, None, None]
    raw += torch.tensor(IMAGENET_STATS[0])[:, None, None]
    assert torch.allclose(raw[:, 0], raw[:, 1], atol=1e-5)
