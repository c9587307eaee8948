from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from sklearn.datasets import load_sample_images
from torchvision.transforms import RandomResizedCrop, v2

from ltbench.data import codecs
from ltbench.data.decode import (
    crop_box,
    crop_draws,
    decode_pil,
    decode_pixels,
    resized_centre,
    resized_crop,
)
from ltbench.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "caltech101_short96.zip"
PHOTOS = [Image.fromarray(image) for image in load_sample_images().images]
SMALL = PHOTOS[1].resize((64, 48))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def array(content: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(content), dtype=np.uint8)


def by_pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def photographs() -> list[bytes]:
    """Real photographs as JPEG: two of scikit-learn, many where the archive is."""
    found = [encoded(photo, quality=q) for photo in PHOTOS for q in (60, 93)]
    if SHARED.is_file():
        with zipfile.ZipFile(SHARED) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
            found += [archive.read(name) for name in names[:: len(names) // 60]]
    return found


# Decoding ------------------------------------------------------------------------------------


def test_photographs_decode_to_pillows_pixels() -> None:
    for content in photographs():
        found = decode_pixels(array(content), "x")
        assert found.dtype == torch.uint8
        assert found.is_contiguous()
        assert np.array_equal(found.numpy(), by_pillow(content))


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"optimize": True},
        {"subsampling": 0},
        {"subsampling": 1},
        {"restart_marker_blocks": 2},
        {"keep_rgb": True},
        {"quality": 1},
        {"quality": 100},
    ],
)
def test_kinds_of_jpeg_decode_to_pillows_pixels(options: dict[str, object]) -> None:
    for size in ((64, 48), (17, 33), (1, 1)):
        content = encoded(PHOTOS[0].resize(size), **options)
        assert np.array_equal(decode_pixels(array(content), "x").numpy(), by_pillow(content))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "PNG"),  # whatever its name says
        ("L", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("LA", "PNG"),
        ("RGBA", "WEBP"),
        ("RGB", "BMP"),
        ("RGB", "TIFF"),
    ],
)
def test_every_mode_and_format_becomes_rgb(mode: str, kind: str) -> None:
    content = encoded(SMALL.convert(mode), kind)
    found = decode_pixels(array(content), "x.jpg").numpy()
    assert found.shape == (48, 64, 3)
    assert np.array_equal(found, by_pillow(content))
    assert np.array_equal(found, np.asarray(decode_pil(array(content), "x.jpg")))


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    image = decode_pixels(array(encoded(Image.fromarray(ramp), "PNG")), "deep.png")
    assert np.array_equal(image[..., 0].numpy(), (ramp >> 8).astype(np.uint8))
    deep = encoded(Image.fromarray(ramp.astype(np.float32)), "TIFF")
    with pytest.raises(UserError, match=r"`float\.tif`: it has 32 bits"):
        decode_pixels(array(deep), "float.tif")


def test_bytes_that_must_not_be_written_are_read_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    content = encoded(SMALL)
    found = decode_pixels(np.frombuffer(content, dtype=np.uint8), "x")
    assert np.array_equal(found.numpy(), by_pillow(content))
    assert "writable" not in "".join(str(warning.message) for warning in recwarn.list)


def test_without_its_decoder_pillow_decodes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    content = array(encoded(PHOTOS[0]))
    expected = decode_pixels(content, "x")
    monkeypatch.setattr(codecs, "simplejpeg", None)
    assert torch.equal(decode_pixels(content, "x"), expected)


JPEG = encoded(SMALL)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xd8\xff\xd9",
        b"not an image\n",
        b"\x89PNG\r\n\x1a\n",
        JPEG[: len(JPEG) // 2],
        JPEG[:-2],
        JPEG[: JPEG.index(b"\xff\xda")] + b"\xff\xd9",
        encoded(SMALL, progressive=True)[:-700],
        encoded(SMALL.convert("CMYK"))[:-900],
        encoded(SMALL, "PNG")[:2000],
    ],
)
def test_a_damaged_image_is_named_in_one_line(content: bytes) -> None:
    for decode in (decode_pixels, decode_pil):
        with pytest.raises(UserError) as caught:
            decode(array(content), "some/bad.jpg")
        assert "`some/bad.jpg`" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "0x" not in str(caught.value)  # no address of an object


def cut_everywhere(content: bytes, step: int) -> None:
    for length in range(0, len(content) - 1, step):
        with pytest.raises(UserError):
            decode_pixels(array(content[:length]), "cut.jpg")
    # The last byte alone carries no pixels; Pillow has the last word.
    assert np.array_equal(by_pillow(content), decode_pixels(array(content), "x").numpy())


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_no_cut_image_passes(options: dict[str, object]) -> None:
    cut_everywhere(encoded(SMALL, **options), 23)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_no_image_cut_at_any_byte_passes(options: dict[str, object]) -> None:
    cut_everywhere(encoded(SMALL, **options), 1)
    cut_everywhere(encoded(SMALL.convert("L"), **options), 1)


def test_an_end_marker_inside_the_file_is_not_its_end() -> None:
    content = encoded(SMALL, exif=b"Exif\0\0" + b"\xff\xd8 a preview \xff\xd9")
    inner = content.index(b"\xff\xd9") + 2
    assert inner < len(content)
    with pytest.raises(UserError):
        decode_pixels(array(content[:inner]), "cut.jpg")
    assert np.array_equal(decode_pixels(array(content), "x").numpy(), by_pillow(content))


def test_bytes_after_the_end_are_pillows_to_judge() -> None:
    content = encoded(SMALL) + b"\0\0rest"
    assert np.array_equal(decode_pixels(array(content), "x").numpy(), by_pillow(content))


# Boxes ---------------------------------------------------------------------------------------


def boxes(height: int, width: int, n: int, key: int = 3) -> np.ndarray:
    return np.array([crop_box(row, height, width) for row in crop_draws(key, np.arange(n))])


def test_boxes_depend_on_key_and_position_only() -> None:
    whole = crop_draws(5, np.arange(100, 140))
    parts = [crop_draws(5, part) for part in np.split(np.arange(100, 140), [1, 2, 33])]
    assert np.array_equal(whole, np.concatenate(parts))
    assert len(np.unique(whole)) == whole.size
    assert not np.array_equal(whole, crop_draws(6, np.arange(100, 140)))


def test_boxes_are_fixed() -> None:
    assert boxes(375, 500, 4, key=7).tolist() == [
        [38, 103, 322, 341],
        [58, 92, 179, 214],
        [3, 49, 371, 332],
        [90, 209, 268, 290],
    ]


@pytest.mark.parametrize(("height", "width"), [(375, 500), (256, 256), (120, 300), (40, 33)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    n = 4000
    mine = boxes(height, width, n)
    blank = torch.empty(1, height, width)
    draw = RandomResizedCrop.get_params
    theirs = np.array([draw(blank, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    assert (mine[:, :2] >= 0).all()
    assert (mine[:, 0] + mine[:, 2] <= height).all()
    assert (mine[:, 1] + mine[:, 3] <= width).all()
    for value in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 0] + b[:, 2],
    ):
        assert ks_2samp(value(mine), value(theirs)).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (10, 13), (1, 1), (1, 3)])
def test_images_without_room_for_a_box_fall_back_as_torchvision_does(
    height: int, width: int
) -> None:
    blank, huge = torch.empty(1, height, width), [50.0, 60.0]  # times the image's area
    expected = RandomResizedCrop.get_params(blank, huge, [3 / 4, 4 / 3])
    assert crop_box(np.full(22, 50.0), height, width) == tuple(expected)


# Resizing ------------------------------------------------------------------------------------


def worst(found: torch.Tensor, image: Image.Image) -> int:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).int()
    return int((found.int() - pixels).abs().max())


def test_crops_are_within_two_grey_levels_of_pillows() -> None:
    for number, content in enumerate(photographs()):
        pixels, image = decode_pixels(array(content), "x"), decode_pil(array(content), "x")
        batch = torch.empty(1, 3, 224, 224, dtype=torch.uint8, memory_format=torch.channels_last)
        for row in crop_draws(number, np.arange(6)):
            top, left, tall, wide = box = crop_box(row, *pixels.shape[:2])
            resized_crop(pixels, box, batch[0])
            cut = image.crop((left, top, left + wide, top + tall))
            assert worst(batch[0], cut.resize((224, 224), Image.Resampling.BILINEAR)) <= 2


@pytest.mark.parametrize("size", [224, 64])
def test_evaluation_is_within_one_grey_level_of_pillows(size: int) -> None:
    pipeline = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])
    for content in photographs():
        pixels, image = decode_pixels(array(content), "x"), decode_pil(array(content), "x")
        found = torch.empty(3, size, size, dtype=torch.uint8)
        resized_centre(pixels, found)
        assert worst(found, pipeline(image)) <= 1
        turned = torch.empty(3, size, size, dtype=torch.uint8)
        resized_centre(pixels.transpose(0, 1).contiguous(), turned)
        assert worst(turned, pipeline(image.transpose(Image.Transpose.TRANSPOSE))) <= 1


def test_memory_layout_does_not_change_pixels() -> None:
    pixels = decode_pixels(array(encoded(PHOTOS[0])), "x")
    one, two = torch.empty(3, 32, 32, dtype=torch.uint8), torch.empty(32, 32, 3, dtype=torch.uint8)
    resized_crop(pixels, (10, 20, 300, 200), one)
    resized_crop(pixels, (10, 20, 300, 200), two.permute(2, 0, 1))
    resized = pixels[10:310, 20:220].contiguous()
    three = torch.empty(3, 32, 32, dtype=torch.uint8)
    resized_crop(resized, (0, 0, 300, 200), three)
    assert torch.equal(one, two.permute(2, 0, 1))
    assert torch.equal(one, three)
