from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torchvision.transforms.v2 import functional as F

from ltbench.data import augment
from ltbench.data.augment import Draws, _table, draw, finish, jitter, mirror
from ltbench.data.pipelines import IMAGENET_STATS
from ltbench.seeding import keyed_bits

STEPS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
N, SIDE = 21, 40


def noise(n: int = N, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    pixels = keyed_bits(1, np.arange(n * height * width * 3)).astype(np.uint8)
    return torch.from_numpy(pixels.reshape(n, height, width, 3)).permute(0, 3, 1, 2)


def by_torchvision(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    done = []
    for image, factors, order in zip(images, draws.factors, draws.order, strict=True):
        for step in order.tolist():
            image = STEPS[step](image, float(factors[step]))
        done.append(image)
    return torch.stack(done)


def coloured(draws: Draws) -> torch.Tensor:
    return _table(draws, torch.device("cpu"))[:, 1:]


# Random numbers ------------------------------------------------------------------------------


def test_draws_depend_on_key_and_position_only() -> None:
    positions = np.arange(1000, 1040)
    whole = draw(5, positions)
    for cuts in ([7], [1, 2, 33]):
        parts = [draw(5, part) for part in np.split(positions, cuts)]
        for name in ("mirrored", "factors", "order"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert np.array_equal(joined, getattr(whole, name))
    assert not np.array_equal(whole.factors, draw(6, positions).factors)


def test_draws_are_spread_as_the_literature_has_them() -> None:
    many = draw(1, np.arange(6000))
    assert abs(many.mirrored.mean() - 0.5) < 0.03
    assert many.factors.min() >= 0.6
    assert many.factors.max() <= 1.4
    for column in many.factors.T:
        assert np.histogram(column, bins=8, range=(0.6, 1.4))[0].min() > 650
    orders, counts = np.unique(many.order, axis=0, return_counts=True)
    assert sorted(orders.tolist()) == [
        [a, b, 3 - a - b] for a in range(3) for b in range(3) if a != b
    ]
    assert counts.min() > 850
    together = np.corrcoef(np.column_stack([many.mirrored, many.factors, many.order[:, 0]]).T)
    assert np.abs(together - np.eye(5)).max() < 0.05


# Colours -------------------------------------------------------------------------------------


def test_colours_equal_torchvisions_in_every_order() -> None:
    images, draws = noise(48, 31, 29), draw(3, np.arange(48))
    assert len(np.unique(draws.order, axis=0)) == 6
    found = jitter(images, coloured(draws))
    assert found.dtype == torch.float32
    assert torch.equal(found, by_torchvision(images, draws).float())


def test_colours_of_photographs_equal_torchvisions() -> None:
    photos = np.stack(load_sample_images().images)[:, 100:324, 200:424]
    images = torch.from_numpy(photos).permute(0, 3, 1, 2).repeat(6, 1, 1, 1)
    draws = draw(9, np.arange(len(images)))
    found = jitter(images, coloured(draws))
    assert torch.equal(found, by_torchvision(images, draws).float())


@pytest.mark.slow
def test_colours_equal_torchvisions_for_all_bytes_and_many_factors() -> None:
    grid = torch.cartesian_prod(*[torch.arange(0, 256, 3, dtype=torch.uint8)] * 3)
    image = grid.T.reshape(1, 3, 43, -1)
    for key in range(40):
        draws = draw(key, np.arange(1))
        found = jitter(image, coloured(draws))
        assert torch.equal(found, by_torchvision(image, draws).float())


def test_the_contrast_turns_about_a_mean_that_is_exact() -> None:
    images = torch.full((1, 3, 300, 301), 255, dtype=torch.uint8)
    images[0, :, 0, 0] = 0  # single precision could not add these up
    factors, order = np.array([[1.0, 0.0, 1.0]]), np.array([[0, 1, 2]])
    found = jitter(images, coloured(Draws(np.zeros(1), factors, order)))
    grey = np.floor(np.float32(255 * 0.9999)) * (300 * 301 - 1) / (300 * 301)
    assert (found == np.floor(grey)).all()


def test_factors_of_one_change_nothing() -> None:
    images = noise()
    order = np.tile([2, 0, 1], (N, 1))
    assert torch.equal(
        jitter(images, coloured(Draws(np.zeros(N), np.ones((N, 3)), order))), images.float()
    )
    assert torch.equal(images, noise())  # what was given is untouched


# Whole batches -------------------------------------------------------------------------------


def test_mirroring_is_of_the_chosen_images() -> None:
    images = noise(5, 6, 9)
    chosen = [True, False, False, True, True]
    found = mirror(images, torch.tensor(chosen).float())
    for image, before, yes in zip(found, images, chosen, strict=True):
        assert torch.equal(image, before.flip(2) if yes else before)


def test_finishing_is_mirror_colours_and_exact_normalisation() -> None:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET_STATS)
    images, draws = noise(), draw(4, np.arange(N))
    plain = finish(images, *IMAGENET_STATS)
    assert plain.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, (images.float() / 255 - mean) / std)
    flipped = mirror(images, torch.from_numpy(draws.mirrored).float())
    found = finish(images, *IMAGENET_STATS, draws)
    assert torch.equal(found, (flipped.float() / 255 - mean) / std)
    found = finish(images, *IMAGENET_STATS, draws, colours=True)
    coloured = by_torchvision(flipped, draws)
    assert torch.equal(found, (coloured.float() / 255 - mean) / std)
    assert torch.equal(images, noise())


@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize("size", [(SIDE, SIDE), (17, 13), (224, 224)])
def test_an_image_does_not_depend_on_its_batch(
    colours: bool, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, positions = noise(9, *size), np.arange(50, 59)
    whole = finish(images, *IMAGENET_STATS, draw(8, positions), colours=colours)
    for cuts in ([4], [1, 2, 7], list(range(1, 9))):
        parts = [
            finish(part, *IMAGENET_STATS, draw(8, at), colours=colours)
            for part, at in zip(images.tensor_split(cuts), np.split(positions, cuts), strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole)
    contiguous = images.contiguous()
    assert torch.equal(
        finish(contiguous, *IMAGENET_STATS, draw(8, positions), colours=colours), whole
    )
    monkeypatch.setattr(augment, "_AT_ONCE", {})
    assert torch.equal(finish(images, *IMAGENET_STATS, draw(8, positions), colours=colours), whole)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    again = finish(images, *IMAGENET_STATS, draw(8, positions), colours=colours)
    torch.set_num_threads(threads)
    assert torch.equal(again, whole)


def test_an_empty_batch_stays_empty() -> None:
    none = np.arange(0)
    assert finish(noise(0), *IMAGENET_STATS, draw(1, none), colours=True).shape == (
        0,
        3,
        SIDE,
        SIDE,
    )


def test_constants_are_made_once_and_the_host_looks_at_nothing_of_a_device() -> None:
    """Tensors on the device "meta" have shapes only: whoever asks for a value gets an error."""
    images = noise(5).to("meta")
    made = []
    for key in range(3):
        found = finish(images, *IMAGENET_STATS, draw(key, np.arange(5)), colours=True)
        assert found.device.type == "meta"
        assert found.is_contiguous(memory_format=torch.channels_last)
        made.append(augment._scale.cache_info().misses)
    assert made[0] == made[1] == made[2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_host_does_not_wait_for_a_device() -> None:
    images, draws = noise(9, 64, 64).cuda(), draw(8, np.arange(9))
    finish(images, *IMAGENET_STATS, draws, colours=True)  # makes the constants
    torch.cuda.set_sync_debug_mode("error")
    try:
        finish(images, *IMAGENET_STATS, draws, colours=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_device_does_not_matter() -> None:
    images, draws = noise(9, 224, 224), draw(8, np.arange(9))
    here = finish(images, *IMAGENET_STATS, draws, colours=True)
    there = finish(images.cuda(), *IMAGENET_STATS, draws, colours=True)
    assert torch.equal(here, there.cpu())
