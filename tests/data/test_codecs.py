from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ltbench.data import codecs
from ltbench.data.codecs import DamagedJPEG, decode_jpeg, open_image
from ltbench.data.decode import decode_pil, decode_pixels
from ltbench.data.files import FileSource
from ltbench.data.images import ImageSplit
from ltbench.data.official_sets import PlacesLT
from ltbench.data.shards.resize import shrink
from ltbench.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8)


def jpeg(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def array(content: bytes) -> np.ndarray:
    return np.frombuffer(bytearray(content), dtype=np.uint8)


def damaged(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    return {
        "cut": content[:middle],
        "cut, with an end": content[:middle] + b"\xff\xd9",
        "half zeros": content[:middle] + bytes(len(content) - middle),
        "zeros inside": content[:middle] + bytes(500) + content[middle + 500 :],
    }


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
@pytest.mark.parametrize("decode", [decode_pixels, decode_pil])
def test_a_damaged_jpeg_is_refused(options: dict[str, object], decode: object) -> None:
    for content in damaged(jpeg(**options)).values():
        with pytest.raises(UserError, match=r"`a\.jpg`: ") as caught:
            decode(array(content), "a.jpg")  # type: ignore[operator]
        assert "\n" not in str(caught.value)


def test_surplus_bytes_before_and_after_the_end_are_harmless() -> None:
    content = jpeg()
    whole = decode_pixels(array(content), "x").numpy()
    for more in (content[:-2] + bytes(5) + content[-2:], content + b"\0\0 a trailer"):
        assert np.array_equal(decode_pixels(array(more), "x").numpy(), whole)


def test_official_images_are_decoded_as_in_the_literature(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(damaged(jpeg())["zeros inside"])
    labels = np.zeros(1, dtype=np.int64)
    at = labels
    official = PlacesLT(image_size=8).files(["a.jpg"], labels, tmp_path)
    assert official.load(at, key=None, positions=at)[0].shape == (1, 3, 8, 8)
    own = ImageSplit(FileSource(["a.jpg"], tmp_path), labels, augment="imagenet", image_size=8)
    with pytest.raises(UserError, match="compressed data are damaged"):
        own.load(at, key=None, positions=at)


def test_damage_is_not_hidden_by_resizing() -> None:
    assert shrink(damaged(jpeg())["zeros inside"], 32, "a.jpg") is None
    small = shrink(jpeg(), 32, "a.jpg")
    assert small is not None
    assert open_image(small).size == (32, 32)


def bomb(side: int) -> dict[str, bytes]:
    """Return headers of images of ``side`` x ``side`` pixels."""
    sides = struct.pack(">HH", side, side)
    content = jpeg()
    at = content.index(b"\xff\xc0") + 5
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "PNG")
    png = buffer.getvalue()
    chunk = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
    return {
        "jpg": content[:at] + sides + content[at + 4 :],
        "png": png[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:],
        "pgm": b"P5 %d %d 255\n" % (side, side),
    }


def test_all_formats_have_one_limit_on_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    for ending, content in bomb(20_000).items():
        for decode in (decode_pixels, decode_pil):
            with pytest.raises(UserError, match=r"178,956,970"):
                decode(array(content), f"a.{ending}")
    monkeypatch.setattr(codecs, "MAX_PIXELS", 96 * 96 - 1)
    with pytest.raises(ValueError, match="96 x 96 pixels"):
        decode_jpeg(array(jpeg()))


@pytest.mark.parametrize("size", [(1001, 1), (1, 1001)])
def test_sides_may_not_differ_beyond_a_factor(size: tuple[int, int]) -> None:
    for kind in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        Image.new("L", size).save(buffer, kind)
        for decode in (decode_pixels, decode_pil):
            with pytest.raises(UserError, match="one side may be at most 1,000 times the other"):
                decode(array(buffer.getvalue()), "a")
    codecs.check_size(1000, 1)


def test_an_eps_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(UserError, match="is not an image"):
        decode_pixels(array(eps), "a.jpg")
    with pytest.raises(UserError, match="is not an image"):
        shrink(eps, 8, "a.jpg")
    assert not (tmp_path / "ran").exists()


def test_sixteen_bits_keep_the_upper_eight() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pgm = b"P5\n8 8\n%d\n"
    files = {
        "full.pgm": pgm % 65535 + ramp.astype(">u2").tobytes(),
        "twelve.pgm": pgm % 4095 + (ramp >> 4).astype(">u2").tobytes(),
    }
    for kind in ("PNG", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(ramp).save(buffer, kind)
        files[kind] = buffer.getvalue()
    for name, content in files.items():
        found = decode_pixels(array(content), name)[..., 1].numpy().astype(int)
        assert np.abs(found - (ramp >> 8)).max() <= 1, name


def test_odd_modes_become_rgb() -> None:
    animation = io.BytesIO()
    frames = [Image.new("P", (8, 8), k) for k in range(3)]
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:], transparency=1)
    turned = Image.Exif()
    turned[0x0112] = 6
    upright = decode_pixels(array(jpeg()), "x").numpy()
    assert decode_pixels(array(animation.getvalue()), "a.gif").shape == (8, 8, 3)
    assert np.array_equal(decode_pixels(array(jpeg(exif=turned)), "x").numpy(), upright)


def test_cmyk_is_left_to_pillow_unless_it_is_damaged() -> None:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).convert("CMYK").save(buffer, "JPEG")
    assert decode_jpeg(array(buffer.getvalue())) is None
    with pytest.raises(DamagedJPEG):
        decode_jpeg(array(damaged(buffer.getvalue())["zeros inside"]))
