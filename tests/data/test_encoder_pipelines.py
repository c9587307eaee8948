"""Pipelines of pretrained encoders: statistics, interpolation, minimalist crops, five crops."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ltbench.config.validation import build_options
from ltbench.data.decode import crop_draws, five_crops, least_area, square_box
from ltbench.data.images import PixelSplit
from ltbench.data.loader import Loader, eval_batches
from ltbench.data.memory import MemorySplit
from ltbench.data.pipelines import CLIP_STATS, HALF_STATS, statistics
from ltbench.data.preprocessing import preprocessing_of
from ltbench.errors import UserError
from ltbench.seeding import EpochKey, derive, epoch_of
from tests.data.photographs import PHOTOS

LABELS = np.arange(len(PHOTOS)) % 4
PLACES = np.arange(len(PHOTOS))


def split(augment="clip", **options) -> PixelSplit:
    return PixelSplit(PHOTOS, LABELS, augment=augment, image_size=24, **options)


def views(one: PixelSplit, key):
    loaded = one.load(PLACES, key=key, positions=PLACES)
    return one.finish(loaded, key=key, positions=PLACES)[0]


def test_least_area(vector):
    v = vector("lift_plus_min_scale")
    for name, expected in v["expected"].items():
        shape, epochs = name.rsplit("_", 1)
        found = [least_area(e, int(epochs), shape) for e in range(int(epochs))]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    assert least_area(0, 1) == 1.0


def test_five_crops(vector):
    v = vector("lift_five_crops")
    found = five_crops(torch.tensor(v["inputs"]["image"]), v["params"]["side"])
    assert torch.equal(found, torch.tensor(v["expected"]))
    image = torch.randn(3, 248, 301)
    expected = torch.stack(v2.functional.five_crop(image, [224, 224]))
    assert torch.equal(five_crops(image, 224), expected)


def test_square_boxes_are_squares_inside_the_image_between_the_bounds():
    draws = crop_draws(7, np.arange(3000))
    for height, width, least in ((40, 32, 0.08), (60, 300, 0.39), (33, 33, 1.0)):
        boxes = np.array([square_box(row, height, width, least) for row in draws])
        top, left, tall, wide = boxes.T
        assert (tall == wide).all()
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (top + tall <= height).all()
        assert (left + wide <= width).all()
        largest = min(1.0, min(height, width) ** 2 / (height * width))
        share = tall * wide / (height * width)
        low = min(least, largest)
        assert share.mean() == pytest.approx((low + largest) / 2, rel=0.02)
        assert share.max() == pytest.approx(largest, rel=0.05)


def test_a_key_says_its_epoch_wherever_it_goes():
    key = EpochKey(derive(3, "augment", 0, 2), 2, 5)
    plain = int(key)
    again = pickle.loads(pickle.dumps(key))
    assert epoch_of(again) == (2, 5)
    assert again == plain
    assert derive(again, "view", 1) == derive(plain, "view", 1)
    assert epoch_of(plain) == (0, 2)


def test_statistics_are_those_of_the_encoders():
    assert statistics("clip") == statistics("clip_minimalist") == CLIP_STATS
    assert statistics("half") == statistics("half_minimalist") == HALF_STATS
    clip, half = views(split("clip"), 5), views(split("half"), 5)
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in CLIP_STATS)
    torch.testing.assert_close(clip * std + mean, half * 0.5 + 0.5, atol=1e-6, rtol=0)


def test_minimalist_crops_grow_with_the_epochs_and_do_not_flip():
    one = split("clip_minimalist")
    last, again = (views(one, EpochKey(seed, 4, 5)) for seed in (1, 2))
    first = views(one, EpochKey(1, 0, 5))
    assert not torch.equal(first, last)
    # In the last epoch it is the largest square, at a random place along the long side.
    height, width = PHOTOS.shape[1:3]
    side = min(height, width)
    every = []
    for top in range(height - side + 1):
        pixels = torch.from_numpy(PHOTOS[0, top : top + side, :side]).permute(2, 0, 1)
        small = v2.functional.resize(pixels[None], [24, 24], antialias=True)[0]
        mean, std = (torch.tensor(s).view(3, 1, 1) for s in CLIP_STATS)
        every.append((small / 255 - mean) / std)
    for found in (last[0], again[0]):
        assert min((found - one_of).abs().max() for one_of in every) < 0.02


def test_loader_processes_know_the_epoch_and_a_resumed_epoch_goes_on():
    one = split("half_minimalist")
    order = np.random.default_rng(0).permutation(len(one))

    def run(workers: int, start: int = 0, epoch: int = 2):
        loader = Loader(one, workers=workers)
        key = EpochKey(derive(0, "augment", 0, epoch), epoch, 4)
        return [step[0].views[0] for step in loader.batches(order, 12, key=key, start=start)]

    whole = run(0)
    for other in (run(1), [*whole[:2], *run(1, start=2)]):
        assert all(torch.equal(a, b) for a, b in zip(other, whole, strict=True))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_is_that_of_pillow_to_a_grey_level(interpolation):
    one = split(interpolation=interpolation)
    found = views(one, None)
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in CLIP_STATS)
    mode = v2.InterpolationMode(interpolation)
    for i in range(8):
        image = Image.fromarray(PHOTOS[i])
        small = v2.functional.resize(image, [round(24 * 256 / 224)], interpolation=mode)
        expected = v2.functional.pil_to_tensor(v2.functional.center_crop(small, [24]))
        pixels = ((found[i] * std + mean) * 255).round().int()
        assert (pixels - expected.int()).abs().max() <= (1 if interpolation == "bilinear" else 2)
    by_pil = views(split(interpolation=interpolation, decode="pil"), None)
    assert (by_pil - found).abs().max() < 0.04


def test_five_views_of_an_image():
    one = split()
    (loaded,) = eval_batches(one.five_crops(4), len(one))
    assert len(loaded.views) == 5
    assert all(view.shape == (len(one), 3, 24, 24) for view in loaded.views)
    small = v2.functional.resize(
        torch.from_numpy(PHOTOS[3]).permute(2, 0, 1)[None], [28], antialias=True
    )[0]
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in CLIP_STATS)
    crops = (torch.stack(v2.functional.five_crop(small, [24, 24])) / 255 - mean) / std
    found = torch.stack([view[3] for view in loaded.views])
    assert (found - crops).abs().max() < 0.02
    assert one.five_crops(4).fingerprint() == one.fingerprint()


def test_same_pixels_have_the_same_fingerprint_in_both_kinds_of_pipelines():
    memory = MemorySplit(PHOTOS, LABELS, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert split().fingerprint() == memory.fingerprint()
    assert split().subset(PLACES[:9]).fingerprint() == memory.subset(PLACES[:9]).fingerprint()


def test_options_of_cifar():
    options = {"augment": "clip", "interpolation": "bicubic"}
    large = build_options("DATASETS", "cifar100_lt", options)
    assert large.image_size == 224
    transform = preprocessing_of("cifar100_lt", large, *CLIP_STATS)
    assert (transform.image_size, transform.resize) == (224, 256)
    assert transform.interpolation == "bicubic"
    assert len(large.named_classes()) == 100
    with pytest.raises(UserError, match="image_size and interpolation belong to augment clip"):
        build_options("DATASETS", "cifar100_lt", {"interpolation": "bicubic"})
    with pytest.raises(UserError, match="all of clip, half"):
        build_options("DATASETS", "cifar100_lt", {"augment": "clip", "augment_views": ["standard"]})
    with pytest.raises(UserError, match="`half_minimalist` runs with decode fast only"):
        build_options("DATASETS", "places_lt", {"augment": "half_minimalist", "decode": "pil"})
