from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision import transforms
from torchvision.transforms.v2 import functional as F

from ltbench.data.memory import MemorySplit, upsample
from ltbench.errors import UserError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
RNG = np.random.RandomState(0)
IMAGES = RNG.randint(1, 256, (40, 32, 32, 3)).astype(np.uint8)  # no black pixel
LABELS = RNG.randint(0, 10, 40)


def split(**options):
    return MemorySplit(IMAGES, LABELS, mean=MEAN, std=STD, **options)


def reference(images):
    """The evaluation transform of torchvision."""
    chain = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    return torch.stack([chain(image) for image in images])


@pytest.mark.parametrize("augment", ["none", "standard", "strong"])
def test_evaluation_equals_torchvision(augment):
    indices = np.array([3, 0, 3, 39])
    (found,) = split(augment=augment).load(indices, key=None, positions=np.arange(4))
    assert found.shape == (4, 3, 32, 32)
    assert torch.equal(found, reference(IMAGES[indices]))


def test_standard_views_are_padded_crops_and_flips():
    positions = np.arange(400)
    indices = positions % 40
    data = split()
    found = data.load_bytes(indices, key=11, positions=positions)
    seen = set()
    padded = F.pad(torch.from_numpy(IMAGES).permute(0, 3, 1, 2), [4])
    for view, i in zip(found, indices, strict=True):
        candidates = {
            (y, x, mirrored): F.horizontal_flip(c) if mirrored else c
            for y in range(9)
            for x in range(9)
            for c in [F.crop(padded[i], y, x, 32, 32)]
            for mirrored in (False, True)
        }
        wanted = torch.from_numpy(view).permute(2, 0, 1)
        match = [where for where, c in candidates.items() if torch.equal(c, wanted)]
        assert len(match) == 1
        seen.add(match[0])
    for axis, values in ((0, 9), (1, 9), (2, 2)):
        assert len({where[axis] for where in seen}) == values
    floats = data.load(indices[:40], key=None, positions=positions[:40])
    (floats,) = data.finish(floats, key=None, positions=positions[:40])
    assert torch.equal(floats, reference(IMAGES))


@pytest.mark.parametrize("augment", ["standard", "autoaugment", "strong"])
def test_pixels_do_not_depend_on_the_batches(augment):
    data = split(augment=augment)
    indices, positions = np.arange(40)[::-1].copy(), np.arange(100, 140)
    whole = data.load(indices, key=5, positions=positions, views=2)
    assert len(whole) == 2
    assert not torch.equal(whole[0], whole[1])
    for cuts in ([7], [1, 2, 33], list(range(1, 40))):
        parts = [
            data.load(i, key=5, positions=p, views=2)
            for i, p in zip(np.split(indices, cuts), np.split(positions, cuts), strict=True)
        ]
        for v in range(2):
            assert torch.equal(whole[v], torch.cat([part[v] for part in parts]))
    (alone,) = data.load(indices, key=5, positions=positions)
    assert torch.equal(alone, whole[0])
    assert not torch.equal(alone, data.load(indices, key=6, positions=positions)[0])
    assert not torch.equal(alone, data.load(indices, key=5, positions=positions + 1)[0])


def test_strong_changes_colours_cuts_a_hole_and_leaves_the_generator_alone():
    before = torch.random.get_rng_state()
    positions = np.arange(40)
    strong = split(augment="strong", pad=0, flip=False)
    found = strong.load_bytes(positions, key=2, positions=positions)
    assert torch.equal(before, torch.random.get_rng_state())
    black = (found == 0).all(axis=3)
    assert (black.sum(axis=(1, 2)) >= 64).all()  # at a corner a quarter of the square remains
    same = (found == IMAGES).all(axis=3) | black
    assert not same.all()
    assert np.array_equal(strong.images, IMAGES)  # the store is untouched


def test_strong_is_autoaugment_with_a_hole():
    positions = np.arange(40)
    plain, strong = (
        split(augment=a).load_bytes(positions, key=2, positions=positions)
        for a in ("autoaugment", "strong")
    )
    hole = (strong == 0).all(axis=3)
    assert np.array_equal(plain[~hole], strong[~hole])
    added = hole.sum(axis=(1, 2)) - (plain == 0).all(axis=3).sum(axis=(1, 2))
    assert (added >= 0).all()
    assert np.mean(added > 0) > 0.9  # some operations leave black borders already
    standard = split().load_bytes(positions, key=2, positions=positions)
    assert np.mean([(a != b).any() for a, b in zip(plain, standard, strict=True)]) > 0.5


def test_cutout_covers_the_square_around_its_centre():
    data = MemorySplit(
        np.full((300, 32, 32, 3), 255, np.uint8), [0] * 300, mean=MEAN, std=STD, augment="strong"
    )
    positions = np.arange(300)
    found = data.load_bytes(positions, key=1, positions=positions)
    # White images without crop borders or geometry keep one full-size hole now and then.
    areas = (found == 0).all(axis=3).sum(axis=(1, 2))
    assert (areas >= 64).all()
    assert (areas == 256).any()


def test_flip_can_be_switched_off():
    data = split(flip=False, pad=0)
    positions = np.arange(40)
    assert np.array_equal(data.load_bytes(positions, key=3, positions=positions), IMAGES)


def test_fingerprint_sees_pixels_and_labels():
    print_ = split().fingerprint()
    assert print_ == split(augment="none").fingerprint() == split(pad=2).fingerprint()
    changed = IMAGES.copy()
    changed[17, 31, 31, 2] ^= 1
    assert MemorySplit(changed, LABELS, mean=MEAN, std=STD).fingerprint() != print_
    other = LABELS.copy()
    other[0] += 1
    assert MemorySplit(IMAGES, other, mean=MEAN, std=STD).fingerprint() != print_


@pytest.mark.parametrize("size", [32, 33, 48, 64])
def test_upsampling_equals_torch(size):
    found = upsample(IMAGES, size)
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(IMAGES).permute(0, 3, 1, 2).double(), size=size, mode="bilinear"
    )
    assert (torch.from_numpy(found).permute(0, 3, 1, 2) - exact).abs().max() <= 0.5 + 1e-9
    (floats,) = split(image_size=size).load(np.array([1]), key=0, positions=np.array([9]))
    assert floats.shape == (1, 3, size, size)


def test_wrong_images_are_named():
    with pytest.raises(UserError, match=r"uint8 \[N, H, W, 3\], found float32"):
        MemorySplit(IMAGES.astype(np.float32), LABELS, mean=MEAN, std=STD)
    with pytest.raises(UserError, match="40 images and labels of shape"):
        MemorySplit(IMAGES, LABELS[:3], mean=MEAN, std=STD)
    with pytest.raises(UserError, match="image_size=8 must be at least"):
        split(image_size=8)
