from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from ltbench.data.cifar import CIFAR10LT
from ltbench.data.images import ImageSplit
from ltbench.data.lists import ImageList
from ltbench.data.memory import MemorySplit
from ltbench.data.official_sets import INat18
from ltbench.data.pipelines import INAT_STATS
from ltbench.data.transforms import GaussianBlur, eval_transform, train_transform
from ltbench.seeding import keyed_bits

STATS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
IMAGES = keyed_bits(0, np.arange(40 * 32 * 32 * 3)).reshape(40, 32, 32, 3).astype(np.uint8)
SMOOTH = np.linspace(0, 255, 40 * 32 * 32 * 3).reshape(40, 32, 32, 3).astype(np.uint8)
AT = np.arange(40)


def memory(augment="standard", views=(), images=IMAGES, **options):
    labels = np.zeros(len(images))
    return MemorySplit(images, labels, **STATS, augment=augment, augment_views=views, **options)


def picture(seed: int) -> Image.Image:
    pixels = keyed_bits(seed, np.arange(40 * 48 * 3)).reshape(40, 48, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def on_disk(folder: Path, augment, views=()) -> ImageSplit:
    for i in range(3):
        picture(i).save(folder / f"{i}.png")
    options = ImageList(image_size=16, augment=augment, augment_views=views)
    return options.files([f"{i}.png" for i in range(3)], np.zeros(3), folder)


# In memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "augment", ["none", "standard", "rotate", "autoaugment", "strong", "sim", "sim_hue"]
)
def test_each_view_has_its_pipeline_and_the_first_is_as_without_others(augment):
    plain = memory(augment).load(AT, key=5, positions=AT, views=4)
    mixed = memory(augment, ("sim", "strong")).load(AT, key=5, positions=AT, views=4)
    assert torch.equal(mixed[0], plain[0])
    for view, like in ((1, "sim"), (2, "strong"), (3, "strong")):  # the last one goes on
        assert torch.equal(mixed[view], memory(like).load(AT, key=5, positions=AT, views=4)[view])
    assert not torch.equal(mixed[2], mixed[3])
    same = memory(augment).load(AT, key=None, positions=AT, views=2)
    assert all(map(torch.equal, same, memory("none", ()).load(AT, key=None, positions=AT, views=2)))


def test_sim_depends_on_key_position_and_view_only():
    data = memory("sim")
    before = torch.random.get_rng_state()
    whole = data.load(AT, key=5, positions=AT + 100, views=2)
    assert torch.equal(before, torch.random.get_rng_state())
    for cuts in ([7], [1, 2, 33]):
        parts = [
            data.load(i, key=5, positions=p, views=2)
            for i, p in zip(np.split(AT, cuts), np.split(AT + 100, cuts), strict=True)
        ]
        for v in range(2):
            assert torch.equal(whole[v], torch.cat([part[v] for part in parts]))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[0], data.load(AT, key=6, positions=AT + 100)[0])
    assert not torch.equal(whole[0], data.load(AT, key=5, positions=AT)[0])


def test_sim_crops_colours_and_greys_at_the_stated_rates():
    row = np.linspace(0, 255, 32)
    ramp = np.stack(np.broadcast_arrays(row[:, None], row[None], 128.0), axis=-1).astype(np.uint8)
    n = 400
    many = memory("sim", images=np.broadcast_to(ramp, (n, 32, 32, 3)), flip=False)
    found = many.load_bytes(np.arange(n), key=1, positions=np.arange(n)).astype(int)
    grey = (found[..., 0] == found[..., 1]).all((1, 2)) & (found[..., 1] == found[..., 2]).all(
        (1, 2)
    )
    assert 0.12 < grey.mean() < 0.28
    # The blue channel is constant: without a jitter it keeps its value, whatever the crop.
    kept = (np.abs(found[~grey][..., 2] - 128) <= 1).all((1, 2))
    assert 0.12 < kept.mean() < 0.28
    steps = np.diff(found[~grey][kept][..., 0].mean(2), axis=1).mean(1)  # grey levels a row
    assert (steps > 0).all()  # never upside down
    whole = 255 / 31
    assert steps.max() < whole * 1.2
    assert steps.min() < whole * 0.75  # an enlarged crop rises more slowly


def test_half_of_sim_is_blurred_and_nothing_else_sets_it_apart_from_sim_hue():
    at = np.arange(400)
    sharp, found = (
        memory(augment).load_bytes(at % 40, key=4, positions=at).astype(float)
        for augment in ("sim_hue", "sim")
    )
    same = (sharp == found).all((1, 2, 3))  # a small radius changes nothing either
    assert 0.42 < same.mean() < 0.68
    rough, smooth = (np.abs(np.diff(x[~same], axis=1)).mean((1, 2, 3)) for x in (sharp, found))
    assert (smooth < rough).all()


def test_rotation_turns_the_cropped_image_by_up_to_fifteen_degrees():
    at = np.arange(40)
    plain, found = (
        memory(augment).load_bytes(at, key=4, positions=at) for augment in ("standard", "rotate")
    )
    for before, after in zip(plain, found, strict=True):
        image = Image.fromarray(before)
        degrees = np.arange(-15, 15.01, 0.05)
        distance = [np.mean(np.asarray(image.rotate(a)) != after) for a in degrees]
        assert min(distance) < 0.05
    assert len({image.tobytes() for image in found}) == 40


def test_flip_of_sim_can_be_switched_off():
    shown = memory("sim", images=SMOOTH[:1], flip=False)
    one = np.zeros(200, dtype=np.int64)
    found = shown.load_bytes(one, key=3, positions=np.arange(200)).astype(int)
    flipped = memory("sim", images=SMOOTH[:1]).load_bytes(one, key=3, positions=np.arange(200))
    assert not np.array_equal(found, flipped)


def test_the_border_does_not_show_where_only_other_views_need_it():
    data = memory("none", ("standard",))
    first, second = data.load(AT, key=1, positions=AT, views=2)
    assert torch.equal(first, memory("none").load(AT, key=None, positions=AT)[0])
    assert not torch.equal(second, first)
    assert data.fingerprint() == memory().fingerprint()


def test_cifar_passes_the_views_on():
    assert CIFAR10LT(augment="strong", augment_views=["sim"]).augment_views == ("sim",)
    with pytest.raises(ValueError, match="augment_views"):
        CIFAR10LT(augment_views=["rand"])


# Files ---------------------------------------------------------------------------------------


def test_views_of_files_have_their_pipelines(tmp_path):
    where = {"key": 3, "positions": np.array([4, 5, 6])}
    index = np.arange(3)
    plain = on_disk(tmp_path, "imagenet").load(index, **where, views=4)
    mixed = on_disk(tmp_path, "imagenet", ("rand", "sim")).load(index, **where, views=4)
    assert torch.equal(mixed[0], plain[0])
    for view, like in ((1, "rand"), (2, "sim"), (3, "sim")):
        assert torch.equal(mixed[view], on_disk(tmp_path, like).load(index, **where, views=4)[view])
    (alone,) = on_disk(tmp_path, "sim").load(index[1:2], key=3, positions=np.array([5]))
    assert torch.equal(alone[0], on_disk(tmp_path, "sim").load(index, **where)[0][1])


def test_every_view_is_normalised_as_the_first(tmp_path):
    options = INat18(image_size=8, augment_views=("sim", "rand", "imagenet"))
    assert options.statistics == INAT_STATS
    Image.new("RGB", (32, 32), (0, 0, 0)).save(tmp_path / "black.png")
    split = options.files(["black.png"], np.zeros(1), tmp_path)
    mean, std = (torch.tensor(s) for s in INAT_STATS)
    where = {"key": 1, "positions": np.array([0])}
    views = split.finish(split.load(np.array([0]), **where, views=4), **where)
    for view in (views[0], views[1], views[3]):  # black stays black under jitter, grey and blur
        torch.testing.assert_close(view[0, :, 4, 4], -mean / std)


@pytest.mark.parametrize(
    "augment", ["rand", "inat_rand", "sim", "sim_hue", "sim_rand", "sim_hue_rand"]
)
def test_new_pipelines_draw_from_torch_only_and_end_as_evaluation_does(augment):
    image = picture(9)
    pipeline = train_transform(augment, 16)
    results = []
    for noise in (0, 1):
        np.random.seed(noise)  # which must not matter
        random.seed(noise)
        before = random.getstate(), np.random.get_state()[1].tolist()
        torch.manual_seed(7)
        results.append(torch.stack([pipeline(image) for _ in range(20)]))
        assert before == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(*results)
    assert results[0].shape == (20, 3, 16, 16)
    assert len({float(x.sum()) for x in results[0]}) == 20
    black = Image.new("RGB", (32, 32))
    assert torch.equal(
        eval_transform(augment, 16)(black),
        eval_transform("inat" if augment == "inat_rand" else "imagenet", 16)(black),
    )


def test_blur_is_pillows_with_a_radius_between_the_ends():
    image = picture(1)
    blur = GaussianBlur(0.1, 2.0)
    roughness = [float(np.abs(np.diff(np.asarray(blur(image), float), axis=1)).mean()) for _ in AT]
    ends = [
        float(np.abs(np.diff(np.asarray(image.filter(by), float), axis=1)).mean())
        for by in (ImageFilter.GaussianBlur(2.0), ImageFilter.GaussianBlur(0.1))
    ]
    assert ends[0] <= min(roughness) < 0.3 * ends[1]
    assert 0.7 * ends[1] < max(roughness) <= ends[1]
    assert len(set(roughness)) > 30
