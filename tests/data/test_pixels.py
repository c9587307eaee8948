"""Operations on batches against torchvision and Pillow, image by image, on real photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms.v2 import functional as F

from ltbench.data import pixels
from ltbench.data.pixels import BRIGHTNESS, CONTRAST, SATURATION
from ltbench.seeding import keyed_uniform
from tests.data.photographs import IMAGES, PHOTOS, N, levels_apart


def drawn(low: float, high: float, key: int = 1) -> np.ndarray:
    return low + (high - low) * keyed_uniform(key, np.arange(N))


def column(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).view(-1, 1, 1, 1)


def each(change, *given) -> torch.Tensor:
    """One image after the other, [3, H, W]."""
    rows = zip(IMAGES.permute(0, 3, 1, 2), *given, strict=True)
    return torch.stack([change(image, *row) for image, *row in rows]).permute(0, 2, 3, 1)


def by_pillow(change, *given) -> torch.Tensor:
    rows = zip(PHOTOS, *given, strict=True)
    return torch.from_numpy(
        np.stack([np.asarray(change(Image.fromarray(image), *row)) for image, *row in rows])
    )


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        (BRIGHTNESS, F.adjust_brightness),
        (CONTRAST, F.adjust_contrast),
        (SATURATION, F.adjust_saturation),
    ],
)
def test_blends_are_torchvisions(kind, theirs):
    factor = drawn(0.1, 1.9)
    planes = pixels.to_planes(IMAGES)
    before = planes.clone()
    flags = [torch.full((N, 1, 1, 1), float(kind == which)) for which in (CONTRAST, SATURATION)]
    found = pixels.blend(planes, column(factor), column(1 - factor), *flags)
    assert torch.equal(pixels.to_bytes(found), each(theirs, factor.tolist()))
    assert torch.equal(planes, before)


def test_sharpness_is_torchvisions_and_within_a_level_of_pillows():
    factor = drawn(0.1, 1.9)
    found = pixels.sharpen(IMAGES, column(1 - factor))
    assert torch.equal(found, each(F.adjust_sharpness, factor.tolist()))
    assert levels_apart(found, by_pillow(F.adjust_sharpness, factor.tolist())) <= 1
    small = IMAGES[:, :2]
    assert pixels.sharpen(small, column(1 - factor)) is small


def test_hue_is_torchvisions():
    turn = drawn(-0.5, 0.5).astype(np.float32)
    found = pixels.shift_hue(pixels.to_planes(IMAGES), column(turn)[:, 0])
    assert torch.equal(pixels.to_bytes(found), each(F.adjust_hue, turn.tolist()))


@pytest.mark.parametrize("degrees", [drawn(-15, 15), np.zeros(N), drawn(-180, 180, key=2)])
def test_rotation_is_pillows(degrees):
    found = pixels.rotate(IMAGES, torch.from_numpy(pixels.rotations(degrees, 40, 32)))
    assert torch.equal(found, by_pillow(Image.Image.rotate, degrees.tolist()))


@pytest.mark.parametrize("ends", [(0.1, 2.0), (0.01, 0.3)])
def test_blur_is_pillows(ends):
    radius = drawn(*ends)
    found = pixels.blur(IMAGES, torch.from_numpy(pixels.box_blurs(radius.astype(np.float32))))
    wanted = by_pillow(lambda image, r: image.filter(ImageFilter.GaussianBlur(r)), radius.tolist())
    assert torch.equal(found, wanted)


def test_no_blur_changes_nothing():
    weights = torch.tensor([[2**24, 0, 0]]).expand(N, -1)
    assert torch.equal(pixels.blur(IMAGES, weights), IMAGES)


@pytest.mark.parametrize("mirrored", [0, 1])
def test_boxes_of_every_size_are_resized_as_torch_resizes_bytes(mirrored):
    image = IMAGES[:1]
    sizes = [(h, 1 + (7 * h + 3 * w) % 32) for h in range(1, 41) for w in range(12)]
    boxes = torch.tensor([[(40 - h) // 3, (32 - w) // 2, h, w] for h, w in sizes])
    many = image.expand(len(boxes), -1, -1, -1)
    found = pixels.enlarge(many, boxes, torch.full((len(boxes),), mirrored))
    top = image[0].permute(2, 0, 1)
    for got, box in zip(found, boxes.tolist(), strict=True):
        wanted = F.resized_crop(top, *box, [40, 32], antialias=True)
        wanted = wanted.flip(2) if mirrored else wanted
        assert levels_apart(got.permute(2, 0, 1), wanted) == 0
        theirs = F.resized_crop(Image.fromarray(PHOTOS[0]), *box, [40, 32])
        theirs = theirs.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else theirs
        assert levels_apart(got, torch.from_numpy(np.array(theirs))) <= 1


def test_places_below_zero_are_black():
    index = torch.arange(40 * 32).flip(0).expand(N, -1).clone()
    index[:, 5] = -1
    found = pixels.take(IMAGES, index)
    wanted = IMAGES.reshape(N, -1, 3).flip(1)
    wanted[:, 5] = 0
    assert torch.equal(found, wanted)


def test_an_accelerator_computes_all_rows_and_keeps_the_chosen_ones():
    rows = torch.tensor([True, False, True])
    images, more = torch.arange(3.0).view(3, 1), torch.tensor([10.0, 20.0, 30.0]).view(3, 1)
    there = pixels.on_rows(
        images.to("meta"), rows.to("meta"), lambda x, add: x + add, more.to("meta")
    )
    assert there.shape == (3, 1)
    here = pixels.on_rows(images, rows, lambda x, add: x + add, more)
    assert here[:, 0].tolist() == [10, 1, 32]
    unchanged = pixels.on_rows(here, rows & False, lambda x: 1 / 0)
    assert unchanged is here
