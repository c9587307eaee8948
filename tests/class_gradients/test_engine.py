"""Class gradients of every layer kind against one backward pass per class, in float64."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ltbench.backbones.cifar_resnet import CifarResNet
from ltbench.class_gradients import Engine, Pass
from ltbench.heads import CosineHead

CLASSES, SAMPLES = 5, 24


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


def problem(model: nn.Module, size: int = 10):
    torch.manual_seed(1)
    model.double()
    x = torch.randn(SAMPLES, 3, size, size, dtype=torch.float64)
    y = torch.randint(1, CLASSES, (SAMPLES,))  # objective 0 has no sample
    y[:3] = -1  # in no objective

    def forward() -> torch.Tensor:
        return F.cross_entropy(model(x), y.clamp(min=0), reduction="none")

    weight = torch.rand(SAMPLES, dtype=torch.float64) / SAMPLES
    return forward, y, weight


def measured(model, problem, part=None, **options):
    forward, place, weight = problem
    engine = Engine(model, model.parameters() if part is None else part, **options)
    with engine.recording():
        rows = forward()
    one = Pass(forward, place, weight, rows)
    return engine, one, engine.measure([one], CLASSES)


def by_hand(problem, part):
    forward, place, weight = problem
    rows = forward()
    table = []
    for k in range(CLASSES):
        found = torch.autograd.grad(
            rows, part, torch.where(place == k, weight, 0.0), retain_graph=True, allow_unused=True
        )
        table.append(
            torch.cat(
                [
                    torch.zeros(p.numel()).double() if g is None else g.flatten()
                    for p, g in zip(part, found, strict=True)
                ]
            )
        )
    return torch.stack(table)


def flat(direction):
    return torch.cat([t.flatten() for t in direction])


@pytest.mark.parametrize(
    "options",
    [{"mode": "exact"}, {"mode": "exact", "keep": 2000}, {}, {"closure": False}, {"keep": 0}],
)
def test_without_batch_norm_every_mode_is_exact(options):
    model = Block()
    task = problem(model)
    part = list(model.parameters())
    table = by_hand(task, part)
    engine, one, found = measured(model, task, **options)
    assert engine.mode == options.get("mode", "fast")
    torch.testing.assert_close(found.gram, table @ table.T, rtol=1e-9, atol=1e-12)
    v = torch.randn(CLASSES).double()
    torch.testing.assert_close(flat(found.combine(v)), v @ table)
    direction = [torch.randn_like(p) for p in part]
    expected = table @ flat(direction)
    torch.testing.assert_close(found.products(direction), expected)
    torch.testing.assert_close(engine.slopes([one], CLASSES, direction), expected)


@pytest.mark.parametrize("wide", [False, True])
def test_first_layers_before_and_after_one_normalisation_are_exact(wide):
    """The last normalisation couples samples only through itself, which is put right."""
    width = 96 if wide else 8  # wide: inner products of positions instead of rows by class
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, groups=1),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, CLASSES),
    )
    nn.init.uniform_(model[1].weight, -1, 2)
    task = problem(model, size=4)
    table = by_hand(task, list(model.parameters()))
    _, _, found = measured(model, task, closure=False)
    torch.testing.assert_close(found.gram, table @ table.T, rtol=1e-9, atol=1e-12)
    direction = [torch.randn_like(p) for p in model.parameters()]
    torch.testing.assert_close(found.products(direction), table @ flat(direction))


def test_closure_makes_the_sum_exact_where_single_classes_are_not():
    model = CifarResNet(8, num_classes=CLASSES)
    task = problem(model, size=16)
    part = list(model.layer3.parameters())
    table = by_hand(task, part)
    gram = table @ table.T
    _, _, open_ = measured(model, task, part, closure=False)
    _, _, closed = measured(model, task, part)
    assert not torch.isclose(open_.gram.sum(), gram.sum(), rtol=1e-3)
    torch.testing.assert_close(closed.gram.sum(), gram.sum())
    total = table.sum(0)
    pieces = list(torch.split(total, [p.numel() for p in part]))
    direction = [t.view_as(p) for t, p in zip(pieces, part, strict=True)]
    torch.testing.assert_close(closed.products(direction).sum(), total @ total)


def test_evaluation_mode_is_exact():
    model = CifarResNet(8, num_classes=CLASSES).eval()
    task = problem(model, size=8)
    table = by_hand(task, list(model.parameters()))
    engine, _, found = measured(model, task)
    assert engine.mode == "fast"
    torch.testing.assert_close(found.gram, table @ table.T, rtol=1e-9, atol=1e-12)


def test_micro_batches_add_up():
    model = Block()
    forward, place, weight = problem(model)
    engine = Engine(model, model.parameters())
    half = SAMPLES // 2
    rows = slice(0, half), slice(half, SAMPLES)
    passes = [Pass(lambda r=r: forward()[r], place[r], weight[r]) for r in rows]
    exact = Engine(model, model.parameters(), mode="exact")
    expected = exact.measure([Pass(forward, place, weight)], CLASSES).gram
    torch.testing.assert_close(exact.measure(passes, CLASSES).gram, expected)
    assert engine.measure(passes, CLASSES).gram.shape == expected.shape


class Scaled(nn.Module):
    """A layer nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor[:, None, None]


@pytest.mark.parametrize("kind", ["unknown layer", "coupled rows"])
def test_what_it_does_not_know_is_done_exactly_and_said(kind, caplog):
    unknown = kind == "unknown layer"
    first = [Scaled()] if unknown else []
    model = nn.Sequential(*first, nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 16, CLASSES))
    forward, place, weight = problem(model, size=6)
    if not unknown:
        plain = forward

        def forward() -> torch.Tensor:
            rows = plain()
            return rows * rows.mean()

    task = (forward, place, weight)
    table = by_hand(task, list(model.parameters()))
    with caplog.at_level(logging.WARNING):
        engine, _, found = measured(model, task)
    assert engine.mode == "exact"
    assert ("Scaled" if unknown else "depend on each other") in caplog.text
    torch.testing.assert_close(found.gram, table @ table.T)
