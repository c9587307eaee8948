"""`class_gram`, as anybody would call it."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ltbench
from ltbench import UserError, class_gradients


def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5))
    x, y = torch.randn(20, 4), torch.randint(5, (20,))
    y[y == 2] = 3  # a class that is absent
    return model, x, y


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("first", [True, False])
def test_it_equals_one_backward_pass_per_class(mode, first):
    model, x, y = setting()
    part = model[0] if first else list(model.parameters())
    parameters = list(model[0].parameters()) if first else part

    def rows():
        return F.cross_entropy(model(x), y, reduction="none")

    gram, classes = ltbench.class_gram(part, rows, y, model=model, mode=mode)
    assert classes.tolist() == [0, 1, 3, 4]
    table = []
    for k in classes:
        found = torch.autograd.grad(rows()[y == k].sum() / len(y), parameters)
        table.append(torch.cat([g.flatten() for g in found]))
    expected = torch.stack(table) @ torch.stack(table).T
    np.testing.assert_allclose(gram, expected.numpy(), rtol=1e-4, atol=1e-7)
    assert all(p.grad is None for p in model.parameters())


def test_mistakes_are_told():
    model, x, y = setting()
    with pytest.raises(UserError, match="must return unreduced losses"):
        ltbench.class_gram(model, lambda: F.cross_entropy(model(x), y), y)

    def coupled():
        rows = F.cross_entropy(model(x), y, reduction="none")
        return rows * rows.mean()

    with pytest.raises(UserError, match="cannot be used: rows of the loss depend"):
        ltbench.class_gram(model, coupled, y, mode="fast")


def test_its_example():
    result = doctest.testmod(class_gradients)
    assert result.failed == 0
    assert result.attempted >= 5
