"""The reference sees the images of ours, made one by one, and says what it cannot mirror."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ltbench.bench.reference import (
    exact_recipe,
    reference_data,
    reference_optimizer,
    reference_recipe,
    reference_split,
)
from ltbench.config.files import get_recipe
from ltbench.data.base import Data, DatasetInfo
from ltbench.data.loader import Loader
from ltbench.data.memory import MemorySplit
from ltbench.errors import UserError

INFO = DatasetInfo("toy", (10, 10), ("a", "b"), (0.49, 0.48, 0.45), (0.2, 0.21, 0.22))


def split(n: int = 20, **options) -> MemorySplit:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 12, 12, 3), dtype=np.uint8)
    return MemorySplit(images, np.arange(n) % 2, mean=INFO.mean, std=INFO.std, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"flip": False, "pad": 2},
        {"augment": "none"},
        {"augment": "none", "augment_views": ("standard",)},
        {"image_size": 24},
    ],
)
@pytest.mark.parametrize("key", [None, 7])
def test_pillow_makes_the_same_images(options, key):
    ours = split(**options)
    theirs = reference_split(ours, INFO)
    indices, positions = np.array([3, 3, 19, 0, 8, 11]), np.array([5, 0, 1, 2, 40, 9])
    found = [s.load(indices, key=key, positions=positions, views=2) for s in (ours, theirs)]
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape == (6, 3, *ours.images.shape[1:3])
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    if key is not None and options == {}:
        assert not torch.equal(found[1][0], found[1][1])  # two views are two draws
        assert not torch.equal(found[1][0][0], found[1][0][1])  # and so are two positions


def test_loader_processes_make_them_in_the_same_order():
    ours = split()
    theirs = reference_split(ours, INFO)
    loader = Loader(theirs, workers=1)
    assert loader.workers == 1
    assert Loader(ours, workers=1).workers == 0
    order = np.random.default_rng(1).permutation(20)
    steps = zip(loader.batches(order, 8, key=3), Loader(ours).batches(order, 8, key=3), strict=True)
    for (a,), (b,) in steps:
        torch.testing.assert_close(a.views[0], b.views[0], rtol=0, atol=1e-6)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.index, b.index)


@pytest.mark.parametrize("options", [{"augment": "strong"}, {"augment_views": ("sim",)}])
def test_other_augmentations_are_refused_by_name(options):
    with pytest.raises(UserError, match=r"none and standard, found `(strong|sim)`"):
        reference_split(split(**options), INFO)


def test_data_outside_memory_are_refused():
    files = type("Files", (), {"in_memory": False})()
    with pytest.raises(UserError, match="`toy` is read from files; choose pipelines=fast"):
        reference_split(files, INFO)


def test_all_parts_of_a_data_set_are_mirrored():
    data = Data(INFO, split(), split(augment="none"), split(augment="none"), {"source": "x"})
    found = reference_data(data)
    assert not any(part.in_memory for part in (found.train, found.test, found.val))
    assert found.train.fingerprint() == data.train.fingerprint()
    assert reference_data(replace(data, val=None)).val is None


def test_the_recipe_changes_in_what_is_said_and_in_nothing_else():
    recipe = get_recipe("crt_mixup_plot_cifar10", "run.precision=bf16", "stages.0.epochs=60")
    found = reference_recipe(recipe)
    was, now = recipe.tree(), found.tree()
    update = now["stages"][0]["update"]
    assert (update["class_gradients"], update["from_features"]) == ("exact", False)
    assert update["solver"]["name"] == "slsqp"
    assert update["solver"]["c"] == was["stages"][0]["update"]["solver"]["c"]
    assert update["solver"]["rescale"] == was["stages"][0]["update"]["solver"]["rescale"]
    assert (now["run"]["precision"], now["run"]["channels_last"]) == ("fp32", False)
    for tree in (was, now):
        for key in ("class_gradients", "from_features", "solver"):
            del tree["stages"][0]["update"][key]
        for key in ("precision", "channels_last"):
            del tree["run"][key]
    assert was == now
    # Without approximation, but from the features, and in our memory format.
    exact = exact_recipe(recipe)
    assert exact.stages[0].update.config.from_features
    assert exact.stages[0].update.config.solver.name == "slsqp"
    assert exact.run.channels_last


def test_other_solvers_stay():
    recipe = get_recipe("quickstart", "stages.0.update.solver=mgda")
    assert reference_recipe(recipe).stages[0].update.config.solver.name == "mgda"


def test_torch_chooses_how_the_optimizer_is_done():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True)
    reference_optimizer(optimizer)
    assert all(g["fused"] is None and g["foreach"] is None for g in optimizer.param_groups)
    weight.grad = torch.full((3,), 2.0)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), 0.8))
