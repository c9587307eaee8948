"""Class gradients where an image has several rows, or several samples in a layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import toys
from gradients_by_hand import CLASSES
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.class_gradients.engine import Engine, Pass

IMAGES = 12


def task(kind: str):
    """A network, its loss rows and their objectives, of images in two views."""
    torch.manual_seed(1)
    views, labels = torch.randn(2, IMAGES, 3, 6, 6).double(), torch.arange(IMAGES) % CLASSES
    others = labels.roll(1)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Conv2d(6, 4, 3), nn.Flatten())
    model = nn.Sequential(net, nn.Linear(16, CLASSES)).double()

    def cost(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y, reduction="none")

    def forward() -> tuple[Tensor, None]:
        if kind == "windows":  # views of an image together
            first, second = (
                model(views.transpose(0, 1).flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
            )
        else:
            first, second = model(views.flatten(0, 1)).chunk(2)
        apart = (first - second).square().sum(1)
        if kind == "apart":
            first, second = model(views[0]), model(views[1])
        if kind in ("one row", "windows"):
            return cost(first, labels) + apart, None
        if kind == "coupled":
            apart = (first - second.roll(1, 0)).square().sum(1)
        rows = cost(first, labels) + apart, cost(second, others if kind == "labels" else labels)
        return torch.cat(rows), None

    place = {"one row": labels, "windows": labels, "labels": torch.cat([labels, others])}
    return model, forward, place.get(kind, labels.repeat(2))


def products_of(model: nn.Module, forward, place: Tensor, images: int, size: int):
    weight = torch.rand(len(place), generator=torch.Generator().manual_seed(2)).to(torch.double)
    engine = Engine(model, [p for p in model.parameters() if p.requires_grad], columns=None)
    one = Pass(forward, place, weight, weight, images=images)
    assert engine.supports_fast(one), engine.problem
    return engine.fast([one], size, [], additive=True)[1][:size, :size], engine.exact([one], size)


@pytest.mark.parametrize("kind", ["one row", "windows", "apart", "two rows", "labels"])
def test_rows_and_samples_find_their_image(kind):
    model, forward, place = task(kind)
    found, exact = products_of(model, forward, place, IMAGES, CLASSES)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)


def test_alike_layers_are_not_taken_together_if_their_samples_are_ordered_differently():
    torch.manual_seed(1)
    first, second = nn.Conv2d(3, 3, 1).double(), nn.Conv2d(3, 3, 1).double()
    model, labels = nn.Sequential(first, second), torch.arange(IMAGES) % CLASSES
    views = torch.randn(2, IMAGES, 3, 4, 4).double()

    def forward() -> tuple[Tensor, None]:
        stacked = torch.tanh(first(views.flatten(0, 1))).unflatten(0, (2, -1))
        together = second(stacked.transpose(0, 1).flatten(0, 1)).unflatten(0, (-1, 2))
        return together.square().flatten(1).sum(1), None

    engine, weight = Engine(model, model.parameters(), None), torch.ones(IMAGES).double()
    engine.grouped = True
    one = Pass(forward, labels, weight, weight)
    assert engine.supports_fast(one), engine.problem
    found = engine.fast([one], CLASSES, [], additive=True)[1][:CLASSES, :CLASSES]
    torch.testing.assert_close(found, engine.exact([one], CLASSES), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "images", "expected"),
    [
        ("coupled", IMAGES, "depend on each other's samples"),
        ("two rows", IMAGES + 1, "24 rows for 13 images"),
        ("two rows", None, "depend on each other's samples"),
    ],
)
def test_images_that_are_not_independent_are_refused(kind, images, expected):
    model, forward, place = task(kind)
    weight = torch.ones(len(place)).double()
    engine = Engine(model, model.parameters())
    assert not engine.supports_fast(Pass(forward, place, weight, weight, images=images))
    assert expected in str(engine.problem)


@pytest.mark.parametrize("name", ["glmc", "mdcs", "ncl", "nclpp", "bbn"])
def test_methods_with_several_views_or_rows_have_fast_class_gradients(name):
    """Also where the rows of an image have labels of their own, as in BBN."""
    method = toys.method(name, norm=False).double()
    batch = toys.dressed(toys.batch(), method)
    doubles = {"views": tuple(v.double() for v in batch.views)}
    streams = {
        key: replace(s, views=tuple(v.double() for v in s.views), labels=s.labels.roll(3))
        for key, s in batch.streams.items()
    }
    batch = method.prepare(replace(batch, **doubles, streams=streams), toys.at())
    out = method.loss(batch, toys.at())
    for name_, p in method.named_parameters():
        p.requires_grad_("layer2" in name_)
    found, exact = products_of(
        method, lambda: (method.loss(batch, toys.at()).rows, None), out.labels, out.images, 4
    )
    assert float(exact.diagonal().min()) > 0
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", ["paco", "gpaco", "bcl"])
def test_contrastive_methods_couple_images(name):
    method = toys.method(name)
    batch = method.prepare(toys.dressed(toys.batch(), method), toys.at())
    out = method.loss(batch, toys.at())
    weight = torch.ones_like(out.rows.detach())
    engine = Engine(method, method.backbone.net.layer2.parameters())
    one = Pass(
        lambda: (method.loss(batch, toys.at()).rows, None),
        out.labels,
        weight,
        weight,
        images=out.images,
    )
    assert not engine.supports_fast(one)
    assert "depend on each other" in str(engine.problem)
