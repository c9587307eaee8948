"""Gradients of small problems by one backward pass per class, and the fast ones beside them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from ltbench.class_gradients.engine import Engine, Pass

CLASSES, SAMPLES = 5, 24


def problem(model: nn.Module, size: int = 10, channels: int = 3):
    """A forward pass, its objectives (0 has no sample, some rows have none) and row weights."""
    torch.manual_seed(1)
    model.double()
    x = torch.randn(SAMPLES, channels, size, size, dtype=torch.float64)
    y = torch.randint(1, CLASSES, (SAMPLES,))
    y[:3] = CLASSES

    def forward() -> tuple[torch.Tensor, None]:
        return F.cross_entropy(model(x), y.clamp(max=CLASSES - 1), reduction="none"), None

    weight = torch.rand(SAMPLES, dtype=torch.float64) / SAMPLES
    return forward, y, weight


def by_hand(task, part):
    """Gradients of the objectives, of the rows of none, and of all together [K + 2, P]."""
    (forward, place, weight), table = task, []
    rows, _ = forward()
    for k in range(CLASSES + 1):
        chosen = torch.where(place == k, weight, 0.0)
        found = torch.autograd.grad(rows, part, chosen, retain_graph=True, allow_unused=True)
        zeros = [torch.zeros_like(p) if g is None else g for p, g in zip(part, found, strict=True)]
        table.append(flat(zeros))
    return torch.stack([*table, sum(table)])


def flat(direction):
    return torch.cat([t.flatten() for t in direction])


def fast_products(model, task, part=None, columns=None):
    forward, place, weight = task
    engine = Engine(model, model.parameters() if part is None else part, columns)
    with engine.recording():
        loss = forward()
    one = Pass(forward, place, weight, weight, loss=loss)
    assert engine.supports_fast(one), engine.problem
    ordinary, products = engine.fast([one], CLASSES, engine.part, additive=True)
    return engine, one, ordinary, products
