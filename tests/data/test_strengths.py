"""Augmentation with a strength by class: operations, and every loader that applies them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ltbench.data.files import FileSource
from ltbench.data.images import ImageSplit
from ltbench.data.loader import Loader, check_strengths
from ltbench.data.memory import MemorySplit
from ltbench.data.pipelines import Augment, Decoder
from ltbench.data.prepare import prepare
from ltbench.data.shards.dataset import Shards
from ltbench.data.shards.stream import stream_batches
from ltbench.data.strengths import OPERATIONS, Strengths, operate, operate_on_bytes
from ltbench.errors import UserError
from ltbench.seeding import keyed_bits
from tests.data.photographs import PHOTOS

N, CLASSES = 24, 3
LABELS = np.arange(N) % CLASSES
LEVELS = Strengths(np.array([0, 2, 10]), 0.5)
STATS = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
NAMED = {operation.name: operation for operation in OPERATIONS}


def memory(**options) -> MemorySplit:
    return MemorySplit(PHOTOS[:N], LABELS, **STATS, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number, photo in enumerate(PHOTOS[:N]):
        Image.fromarray(photo).save(root / f"{number}.png")
    return root


def files(folder: Path, augment: Augment = "inat", decode: Decoder = "fast") -> ImageSplit:
    source = FileSource([f"{i}.png" for i in range(N)], folder)
    return ImageSplit(source, LABELS, augment=augment, image_size=24, decode=decode)


def shown(loader: Loader, order: np.ndarray, size: int = 8, **options) -> list[torch.Tensor]:
    steps = loader.batches(order, size, key=5, **options)
    return [torch.cat([micro.views[0] for micro in step]) for step in steps]


def test_arguments_of_the_operations(vector):
    v = vector("cuda_strengths")
    given = [(o["name"], o["low"], o["high"]) for o in v["inputs"]["operations"]]
    assert [(o.name, o.low, o.high) for o in OPERATIONS] == given
    for name, values in v["expected"].items():
        found = [NAMED[name].value(strength) for strength in v["inputs"]["strengths"]]
        np.testing.assert_allclose(found, values, rtol=0, atol=v["tolerance"])


@pytest.mark.parametrize("name", NAMED)
def test_an_operation_keeps_size_and_type(name):
    operation = NAMED[name]
    for size in ((32, 40), (31, 17)):
        image = Image.fromarray(PHOTOS[0]).resize(size)
        for strength in (1, 10, 30):
            for sign in (1, -1) if operation.signed else (1,):
                made = operation.change(image, sign * operation.value(strength))
                assert (made.size, made.mode) == (size, "RGB")


def test_what_some_operations_do():
    image = Image.fromarray(PHOTOS[0])

    def made(name: str, strength: int) -> np.ndarray:
        return np.asarray(NAMED[name].change(image, NAMED[name].value(strength)))

    assert np.array_equal(made("Flip", 3), PHOTOS[0][::-1])  # upside down
    assert np.array_equal(made("Mirror", 3), PHOTOS[0][:, ::-1])
    assert set(np.unique(made("Posterize", 10))) <= {0, 128}  # one bit is left
    assert np.array_equal(made("TranslateXabs", 3)[:, :-10], PHOTOS[0][:, 10:])
    assert (made("TranslateXabs", 3)[:, -10:] == 0).all()
    assert np.array_equal(made("ResizeCrop", 0), PHOTOS[0])
    lighter = Image.fromarray(np.minimum(PHOTOS[0].astype(int) + 11, 255).astype(np.uint8))
    assert np.array_equal(made("SolarizeAdd", 3), np.asarray(ImageOps.solarize(lighter, 128)))


def test_as_many_operations_as_the_strength_all_alike_often(monkeypatch):
    seen: list[tuple[str, float]] = []

    def spy(operation):
        def change(image, value):
            seen.append((operation.name, value))
            return image

        return operation._replace(change=change)

    monkeypatch.setattr("ltbench.data.strengths.OPERATIONS", tuple(map(spy, OPERATIONS)))
    image = Image.fromarray(PHOTOS[0])
    assert operate(image, 0, 7, 0) is image
    for position in range(2000):
        operate(image, 3, 7, position)
    assert len(seen) == 6000
    for name, operation in NAMED.items():
        values = [value for other, value in seen if other == name]
        assert 200 < len(values) < 350  # 273 of 6,000
        assert {abs(value) for value in values} == {operation.value(3)}
        negative = sum(value < 0 for value in values)
        if operation.signed:
            assert 0.35 < negative / len(values) < 0.65
        else:
            assert not negative


def test_numbers_depend_on_key_and_position_only():
    one, other = PHOTOS[:4].copy(), PHOTOS[[2, 1]].copy()
    operate_on_bytes(one, np.array([0, 5, 5, 5]), 3, np.arange(4))
    operate_on_bytes(other, np.array([5, 5]), 3, np.array([2, 1]))
    assert np.array_equal(one[0], PHOTOS[0])
    assert np.array_equal(other, one[[2, 1]])
    again = PHOTOS[1:2].copy()
    operate_on_bytes(again, np.array([5]), 4, np.array([1]))
    assert not np.array_equal(again[0], one[1])


def test_half_of_a_class_has_its_strength():
    labels, positions = np.repeat([0, 1, 2], 1000), np.arange(3000)
    found = LEVELS.of(labels, 5, positions)
    assert (found[:1000] == 0).all()
    for label, level in ((1, 2), (2, 10)):
        own = found[labels == label]
        assert set(own) == {0, level}
        assert 400 < (own == level).sum() < 600
    assert np.array_equal(LEVELS.of(labels[5:7], 5, positions[5:7]), found[5:7])
    assert not np.array_equal(LEVELS.of(labels, 6, positions), found)


@pytest.mark.parametrize("augment", ["standard", "cutout", "strong", "sim"])
def test_images_in_memory(augment):
    order = np.arange(N)
    plain, stronger = (
        torch.cat(shown(Loader(memory(augment=augment)), order, strengths=s))
        for s in (None, LEVELS)
    )
    strengths = LEVELS.of(LABELS, 5, order)
    same = (plain == stronger).flatten(1).all(1).numpy()
    assert same[strengths == 0].all()
    assert (~same[strengths == 10]).all()
    small = shown(Loader(memory(augment=augment)), order, 4, strengths=LEVELS)
    assert torch.equal(torch.cat(small), stronger)
    resident = Loader(memory(augment=augment).resident(torch.device("cpu")))
    assert torch.equal(torch.cat(shown(resident, order, strengths=LEVELS)), stronger)


def test_holes_are_cut_out_last():
    plain = memory(augment="cutout").load_bytes(np.arange(N), key=5, positions=np.arange(N))
    assert ((plain == 0).all(3).sum((1, 2)) >= 64).all()
    strengths = np.full(N, 10)
    made = memory(augment="cutout").load_bytes(
        np.arange(N), key=5, positions=np.arange(N), strengths=strengths
    )
    standard = memory().load_bytes(np.arange(N), key=5, positions=np.arange(N), strengths=strengths)
    hole = (made != standard).any(3)
    assert (made[hole] == 0).all()
    assert ((plain == 0).all(3) | ~hole).all()


@pytest.mark.parametrize("decode", ["fast", "pil"])
@pytest.mark.parametrize("augment", ["imagenet", "inat", "rand", "inat_sim", "clip"])
def test_image_files(folder, augment, decode):
    split, order = files(folder, augment, decode), np.arange(N)
    plain, stronger = (torch.cat(shown(Loader(split), order, strengths=s)) for s in (None, LEVELS))
    strengths = LEVELS.of(LABELS, 5, order)
    same = (plain == stronger).flatten(1).all(1).numpy()
    assert same[strengths == 0].all()
    assert (~same[strengths == 10]).all()
    assert torch.equal(torch.cat(shown(Loader(split), order, 4, strengths=LEVELS)), stronger)


def test_loader_processes_and_ranks_change_no_bit(folder):
    split, order = files(folder), np.arange(N)
    expected = shown(Loader(split), order, strengths=LEVELS)
    loader = Loader(split, workers=2)
    assert all(map(torch.equal, shown(loader, order, strengths=LEVELS), expected))
    plain = shown(loader, order)  # the processes keep nothing from epoch to epoch
    assert all(map(torch.equal, plain, shown(Loader(split), order)))
    assert all(map(torch.equal, shown(loader, order, start=1, strengths=LEVELS), expected[1:]))
    halves = [shown(Loader(split), order, rank=r, world=2, strengths=LEVELS) for r in range(2)]
    for one, two, whole in zip(*halves, expected, strict=True):
        assert torch.equal(torch.cat([one, two]), whole)


def test_batches_of_chosen_images_and_strengths(folder):
    indices, strengths = np.array([3, 3, 7, 0, 5]), np.array([0, 4, 4, 1, 10])
    for split in (memory(), files(folder)):
        found = list(Loader(split).graded_batches(indices, strengths, 2, key=5))
        assert [len(part.labels) for part in found] == [2, 2, 1]
        assert torch.cat([part.index for part in found]).tolist() == indices.tolist()
        where = {"key": 5, "positions": np.arange(5)}
        wanted = split.finish(split.load(indices, strengths=strengths, **where), **where)
        assert torch.equal(torch.cat([part.views[0] for part in found]), wanted[0])
        parts = [
            part
            for rank in range(2)
            for part in Loader(split).graded_batches(
                indices, strengths, 2, key=5, rank=rank, world=2
            )
        ]
        assert torch.equal(torch.cat([part.views[0] for part in parts]), wanted[0])


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for part, counts in (("train", (9, 6, 4)), ("test", (1, 1, 1))):
        for label, count in enumerate(counts):
            (root / part / str(label)).mkdir(parents=True)
            for number in range(count):
                pixels = keyed_bits(100 * label + number, np.arange(40 * 40 * 3)).reshape(40, 40, 3)
                image = Image.fromarray((pixels % 256).astype(np.uint8))
                image.save(root / part / str(label) / f"{number}.png")
    out = tmp_path_factory.mktemp("shards")
    prepare("folder", out, root=str(root))
    return out


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_at_random_and_as_a_stream(shards, workers):
    split = Shards(root=str(shards), image_size=24, augment="inat").load().train
    found = shown(Loader(split, workers=workers), np.arange(19), strengths=LEVELS)
    where = {"key": 5, "positions": np.arange(19)}
    strengths = LEVELS.of(split.labels, 5, np.arange(19))
    wanted = split.finish(split.load(np.arange(19), strengths=strengths, **where), **where)
    assert torch.equal(torch.cat(found), wanted[0])
    options = {"seed": 1, "epoch": 0, "key": 5, "workers": workers}
    steps = list(stream_batches(split, 8, **options, strengths=LEVELS))
    index = torch.cat([part.index for step in steps for part in step]).numpy()
    strengths = LEVELS.of(split.labels[index], 5, np.arange(19))
    assert strengths.any()
    wanted = split.finish(split.load(index, strengths=strengths, **where), **where)
    assert torch.equal(torch.cat([part.views[0] for step in steps for part in step]), wanted[0])


def test_a_split_without_strengths_says_so():
    class Plain:
        labels = LABELS

        def load(self, indices, *, key, positions, views=1):
            raise AssertionError

    check_strengths(memory())
    with pytest.raises(UserError, match=r"`Plain` cannot be augmented .* argument `strengths`"):
        check_strengths(Plain())  # type: ignore[arg-type]
