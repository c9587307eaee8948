"""AutoAugment of batches against torchvision's, image by image and operation by operation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ltbench.data.autoaugment import _ALL, POLICY, apply_policy, cut_out, draw_policy
from tests.data.photographs import HEIGHT, IMAGES, MANY, SEEDS, WIDTH, image_by_image, levels_apart

THEIRS = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
# Operations that Pillow computes otherwise than torchvision does for bytes: by how many levels.
APART = {"Contrast": 1, "Color": 1, "Brightness": 0, "Sharpness": 1, "AutoContrast": 1}


def test_the_policy_is_torchvisions():
    theirs = [
        tuple((name, chance, level or 0) for name, chance, level in pair)
        for pair in THEIRS._policies
    ]
    assert list(POLICY) == theirs


def test_operations_are_drawn_as_torchvision_draws_them():
    codes = draw_policy(SEEDS)
    assert codes.shape == (len(SEEDS), 2)
    assert (codes == 0).any()
    with torch.random.fork_rng(devices=[]):
        for code, seed in zip(codes.tolist(), SEEDS.tolist(), strict=True):
            torch.manual_seed(seed)
            pair = POLICY[int(torch.randint(25, ()))]
            for one, (name, chance, level) in zip(code, pair, strict=True):
                if not torch.rand(()) <= chance:
                    assert one == 0
                    continue
                signed = THEIRS._AUGMENTATION_SPACE[name][1]
                sign = -1.0 if signed and torch.rand(()) <= 0.5 else 1.0
                assert _ALL[one] == (level, name, sign)


def test_the_policy_changes_photographs_as_torchvision_does():
    found = apply_policy(MANY.clone(), torch.from_numpy(draw_policy(SEEDS)))
    assert torch.equal(found, image_by_image(THEIRS))


def once(code: int, images: torch.Tensor) -> torch.Tensor:
    return apply_policy(images.clone(), torch.tensor([[code, 0]]).expand(len(images), -1))


@pytest.mark.parametrize("code", sorted({one: at for at, one in enumerate(_ALL) if at}.values()))
def test_every_operation_is_torchvisions_and_near_pillows(code):
    level, name, sign = _ALL[code]
    flat = torch.full_like(IMAGES[:2], 77)  # a channel of one level, and one of two
    flat[1, ::2] = 200
    images = torch.cat([IMAGES[:12], flat])
    found = once(code, images)
    size = THEIRS._AUGMENTATION_SPACE[name][0](10, HEIGHT, WIDTH)
    magnitude = 0.0 if size is None else sign * float(size[level])
    if name in ("Posterize", "Solarize"):
        magnitude = abs(magnitude)

    def change(image):
        return THEIRS._apply_image_or_video_transform(
            image, name, magnitude, v2.InterpolationMode.NEAREST, {}
        )

    wanted = torch.stack([change(i.permute(2, 0, 1)).permute(1, 2, 0) for i in images])
    assert torch.equal(found, wanted)
    pillow = torch.from_numpy(
        np.stack([np.asarray(change(Image.fromarray(image.numpy()))) for image in images])
    )
    if name.startswith(("Shear", "Translate", "Rotate")):
        assert (found != pillow).any(3).float().mean() < 0.03  # the nearest of two equally near
    elif name == "Solarize":  # the level at the threshold is above it only in single precision
        clear = (images.float() - 255 * magnitude).abs() > 1e-3
        assert torch.equal(found[clear], pillow[clear])
    else:
        assert levels_apart(found, pillow) <= APART.get(name, 0)


def test_no_operation_changes_nothing():
    assert torch.equal(once(0, IMAGES), IMAGES)


def test_cutout_is_a_square_cut_off_at_the_border():
    white = torch.full((2, HEIGHT, WIDTH, 3), 255, dtype=torch.uint8)
    found = cut_out(white, torch.tensor([0, 20]), torch.tensor([31, 10]))
    black = found[..., 0] == 0
    assert black[0, :8, 23:].all()
    assert black[0].sum() == 8 * 9
    assert black[1, 12:28, 2:18].all()
    assert black[1].sum() == 16 * 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_device_makes_the_same_pixels():
    codes = torch.from_numpy(draw_policy(SEEDS))
    here, there = apply_policy(MANY.clone(), codes), apply_policy(MANY.cuda(), codes.cuda())
    assert levels_apart(here, there.cpu()) <= 1
    assert (here != there.cpu()).float().mean() < 1e-4
