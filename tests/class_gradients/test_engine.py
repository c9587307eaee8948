"""Class gradients of every layer kind against one backward pass per class, in float64."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from gradients_by_hand import CLASSES, SAMPLES, by_hand, fast_products, flat, problem
from torch import nn
from torch.nn import functional as F

from ltbench.class_gradients import engine as module
from ltbench.class_gradients.columns import Columns, outputs
from ltbench.class_gradients.engine import Engine, Pass
from ltbench.models.cifar_resnet import CifarResNet
from ltbench.models.heads import CosineHead, LinearHead


class Block(nn.Module):
    """Strided, grouped and dilated convolutions, an in-place change, a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 16, 3, stride=2, groups=4, bias=False)
        self.c = nn.Conv2d(16, 16, (1, 3), padding=(1, 2), dilation=2)
        self.act = nn.ReLU(inplace=True)
        self.twice = nn.Linear(16, 16)
        self.norm, self.groups = nn.LayerNorm(16), nn.GroupNorm(2, 16)
        self.head = CosineHead(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.c(torch.tanh(self.b(self.act(self.a(x))))))
        tokens = self.norm(self.twice(x.flatten(2).transpose(1, 2)))
        return self.head(self.groups(torch.tanh(self.twice(tokens.mean(1)))))


class Scaled(nn.Module):
    """A layer nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor[:, None, None]


def test_without_batch_norm_all_columns_give_the_exact_products():
    model = Block()
    task = problem(model)
    table = by_hand(task, list(model.parameters()))
    engine, one, ordinary, products = fast_products(model, task)
    torch.testing.assert_close(products, table @ table.T, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(flat(ordinary.wait()), table[-1])
    v = torch.randn(CLASSES).double()
    mixed = flat(engine.gradient([one], lambda p: p.mixture(v)))
    torch.testing.assert_close(mixed, v @ table[:CLASSES] + table[CLASSES])
    alone = flat(engine.gradient([one], lambda p: p.objectives(v)))
    torch.testing.assert_close(alone, v @ table[:CLASSES])
    direction = [torch.randn_like(p) for p in model.parameters()]
    slopes = engine.slopes([one], CLASSES, direction)
    torch.testing.assert_close(slopes, table[:CLASSES] @ flat(direction))


@pytest.mark.parametrize("held", [2**28, 2000])
def test_exact_mode_is_exact_in_one_piece_and_in_many(held, monkeypatch):
    monkeypatch.setattr(module, "HELD", held)
    model = Block()
    task = problem(model)
    table = by_hand(task, list(model.parameters()))[:CLASSES]
    engine = Engine(model, model.parameters())
    gram = engine.exact([Pass(task[0], task[1], task[2], task[2])], CLASSES)
    torch.testing.assert_close(gram, table @ table.T)


def test_layers_before_and_after_one_normalisation_are_exact():
    """The last normalisation couples samples only through itself, which is put right."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=True),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )
    nn.init.uniform_(model[1].weight, -1, 2)
    task = problem(model, size=4)
    table = by_hand(task, list(model.parameters()))
    products = fast_products(model, task)[3]
    torch.testing.assert_close(products, table @ table.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("columns", [None, 4])
def test_alike_layers_taken_together_give_the_products_of_each(columns):
    """What a GPU does, to launch fewer kernels."""
    model = CifarResNet(20, num_classes=CLASSES)
    task, products = problem(model, size=16), []
    for grouped in (False, True):
        engine = Engine(model, [*model.layer2.parameters(), *model.layer3.parameters()], columns)
        engine.grouped = grouped
        with engine.recording():
            loss = task[0]()
        one = Pass(task[0], task[1], task[2], task[2], loss=loss)
        assert engine.supports_fast(one), engine.problem
        products.append(engine.fast([one], CLASSES, [], additive=True)[1])
        groups = engine._together({call: call.x for call in engine._calls()})
        assert (max(map(len, groups)) > 4) == grouped
    torch.testing.assert_close(products[1], products[0], rtol=1e-10, atol=1e-14)


def test_linear_layer_before_a_normalisation_is_exact():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(48, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, CLASSES)
    )
    task = problem(model, size=4)
    table = by_hand(task, list(model.parameters()))
    products = fast_products(model, task)[3]
    torch.testing.assert_close(products, table @ table.T, rtol=1e-9, atol=1e-12)


def test_evaluation_mode_is_exact():
    model = CifarResNet(8, num_classes=CLASSES).eval()
    task = problem(model, size=8)
    table = by_hand(task, list(model.parameters()))
    products = fast_products(model, task)[3]
    torch.testing.assert_close(products, table @ table.T, rtol=1e-9, atol=1e-12)


def test_the_exact_sum_is_exact_where_single_classes_are_not():
    model = CifarResNet(8, num_classes=CLASSES)
    task = problem(model, size=16)
    part = list(model.layer3.parameters())
    table = by_hand(task, part)
    products = fast_products(model, task, part)[3]
    torch.testing.assert_close(products[-1, -1], table[-1] @ table[-1])
    for k in range(1, CLASSES):
        assert not torch.isclose(products[k, k], table[k] @ table[k], rtol=1e-3)


@pytest.mark.parametrize(
    ("layer", "step"),
    [
        (nn.Conv2d(12, 8, 3, padding=1, bias=False), 3),
        (nn.Conv2d(12, 8, 3, stride=2, padding=1, bias=False), 3),
        (nn.Conv2d(12, 8, 1, stride=2, bias=False), 3),
        (nn.Conv2d(12, 8, 2, stride=2, bias=False), 3),
        (nn.Conv2d(12, 8, (3, 1), padding=(0, 2), dilation=2, groups=2, bias=False), 2),
        (nn.Conv2d(12, 12, 5, padding=2, groups=12, bias=False), 1),
        (nn.Conv2d(12, 8, 2, padding=3, bias=False), 3),
    ],
)
def test_columns_of_a_convolution_are_those_of_its_weight_gradient(layer, step):
    layer = layer.double()
    x = torch.randn(6, 12, 7, 8, dtype=torch.float64)
    z = torch.randn_like(layer(x))
    place = torch.tensor([0, 1, 1, 0, 1, 0])
    columns = Columns.choose(layer, 4)
    assert columns.step == step
    row, column = ((n - 1) // 2 for n in layer.kernel_size)
    expected = []
    for k in range(2):
        chosen = z * (place == k)[:, None, None, None]
        weight = torch.autograd.grad(layer(x), layer.weight, chosen)[0]
        expected.append(weight[:, ::step, row, column])
    seen = columns.inputs(layer, x, z.shape)
    products = torch.einsum("bpgc,bpgd->bgcd", outputs(layer, z), seen).flatten(1, 2)
    found = torch.zeros_like(torch.stack(expected)).index_add_(0, place, products)
    torch.testing.assert_close(found, torch.stack(expected))
    assert columns.scale * found[0].numel() == layer.weight.numel()


@pytest.mark.parametrize(
    "name",
    ["resnext50_32x4d", "vit_tiny_patch16_224", "mobilenetv3_small_050", "edgenext_xx_small"],
)
def test_networks_of_timm_are_measured_or_refused_with_a_reason(name):
    """Grouped convolutions and transformer blocks; a scale that no layer owns is not known."""
    torch.manual_seed(0)
    # A block of a kind is enough: ResNeXt has no other in its stages.
    options = {"vit": {"img_size": 32}, "res": {"layers": (1, 1, 1, 1)}}.get(name[:3], {})
    model = timm.create_model(name, num_classes=CLASSES, **options).train()
    last = {"vit": "blocks.11", "edg": "stages.3", "mob": "blocks.5"}.get(name[:3], "layer4")
    part = list(model.get_submodule(last).parameters())
    forward, place, weight = problem(model, size=32)
    engine = Engine(model, part)
    with engine.recording():
        loss = forward()
    one = Pass(forward, place, weight, weight, loss=loss)
    if name.startswith("edgenext"):
        assert not engine.supports_fast(one)
        assert "ConvBlock" in str(engine.problem)
        return
    assert engine.supports_fast(one), engine.problem
    products = engine.fast([one], CLASSES, [], additive=True)[1]
    table = by_hand((forward, place, weight), part)
    exact = table @ table.T
    cosines = (products / exact).diagonal()[1:]
    if name.startswith("vit"):  # no batch normalisation: all that is left is which columns
        assert ((cosines - 1).abs() < 0.35).all()
    assert torch.isfinite(cosines).all()


def test_a_normalisation_of_its_own_kind_behind_the_part_is_refused():
    """Its constant-statistics backward pass is not known, even where it owns nothing wanted."""

    class Odd(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Odd(4), nn.Flatten(), nn.Linear(64, CLASSES))
    forward, place, weight = problem(model, size=6)
    engine = Engine(model, model[0].parameters())
    assert not engine.supports_fast(Pass(forward, place, weight, weight))
    assert "Odd" in str(engine.problem)


def test_micro_batches_add_up():
    model = Block()
    forward, place, weight = problem(model)
    halves = slice(0, SAMPLES // 2), slice(SAMPLES // 2, SAMPLES)
    passes = [
        Pass(lambda r=r: (forward()[0][r], None), place[r], weight[r], weight[r]) for r in halves
    ]
    table = by_hand((forward, place, weight), list(model.parameters()))
    engine = Engine(model, model.parameters(), None)
    torch.testing.assert_close(engine.exact(passes, CLASSES), table[:CLASSES] @ table[:CLASSES].T)


@pytest.mark.parametrize("kind", ["unknown layer", "coupled rows", "mixed pairs"])
def test_what_it_does_not_know_is_refused_and_said(kind, caplog):
    first = [Scaled()] if kind == "unknown layer" else []
    model = nn.Sequential(*first, nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 16, CLASSES))
    plain, place, weight = problem(model, size=6)

    def forward():
        rows, _ = plain()
        if kind == "coupled rows":
            rows = rows * rows.mean()
        return (rows + rows.roll(1), None) if kind == "mixed pairs" else (rows, None)

    engine = Engine(model, model.parameters())
    with caplog.at_level(logging.WARNING):
        assert not engine.supports_fast(Pass(forward, place, weight, weight))
        assert not engine.supports_fast(Pass(forward, place, weight, weight))  # told once
    assert ("Scaled" if kind == "unknown layer" else "depend on each other") in caplog.text
    assert len(caplog.records) == 1


def test_bf16_autocast_is_near_full_precision():
    torch.manual_seed(0)
    model = nn.Sequential(CifarResNet(8, num_classes=0), LinearHead(64, CLASSES))
    x, y = torch.randn(32, 3, 16, 16), torch.arange(32) % CLASSES
    weight = torch.full((32,), 1 / 32)
    part = list(model[0].layer3.parameters())
    found = {}
    for half in (False, True):

        def forward(half=half):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                return F.cross_entropy(model(x).float(), y, reduction="none"), None

        engine = Engine(model, part)
        with engine.recording():
            loss = forward()
        one = Pass(forward, y, weight, weight, loss=loss)
        assert engine.supports_fast(one)
        found[half] = engine.fast([one], CLASSES, [], additive=True)[1]
    torch.testing.assert_close(found[True], found[False], rtol=0.05, atol=0.02 * found[False].max())
