"""Mistakes with the library step and the solvers are one line, not an error from inside torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import ltbench
from ltbench import moo
from ltbench.errors import UserError

IMAGES = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(12) % 3
COUNTS = (90, 9, 1)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def loss(net: nn.Module) -> torch.Tensor:
    return cross_entropy(net(IMAGES), LABELS, reduction="none")


def step(rows=loss, labels=LABELS, counts=COUNTS, part=None, trained=None, epoch=0) -> nn.Module:
    net = model()
    optimizer = torch.optim.SGD((net if trained is None else trained(net)).parameters(), lr=0.1)
    chosen = None if part is None else part(net)
    update = ltbench.PlotStep(net, optimizer, class_counts=counts, part=chosen)
    update(lambda: rows(net), labels, epoch=epoch)
    return net


WRONG = {
    "a mean": {"rows": lambda net: loss(net).mean()},
    "no tensor": {"rows": lambda net: loss(net).tolist()},
    "two columns": {"rows": lambda net: loss(net)[:, None].expand(12, 2)},
    "no graph": {"rows": lambda net: loss(net).detach()},
    "one-hot labels": {"labels": torch.eye(3)[LABELS]},
    "labels that are no tensor": {"labels": LABELS.tolist()},
    "labels that are no integers": {"labels": LABELS.double()},
    "truth values": {"labels": LABELS > 0},
    "no labels": {"labels": LABELS[:0]},
    "too few labels": {"labels": LABELS[:6]},
    "a negative label": {"labels": LABELS - 1},
    "a large label": {"labels": LABELS + 5},
    "too few counts": {"counts": (90, 9)},
    "no counts": {"counts": ()},
    "counts by class": {"counts": {0: 90, 1: 9, 2: 1}},
    "counts that are no integers": {"counts": (0.9, 0.1, 0.0)},
    "counts below zero": {"counts": (5, -1, 5)},
    "a frozen part": {"part": lambda net: [p.requires_grad_(False) for p in net[0].parameters()]},
    "an empty part": {"part": lambda net: []},
    "a part without parameters": {"part": lambda net: nn.Sequential(net[1], net[1])},
    "a part as text": {"part": lambda net: "layer4"},
    "tensors": {"part": lambda net: [net[0].weight.detach()]},
    "a part of another model": {"part": lambda net: nn.Linear(2, 2)},
    "a part that is not trained": {"part": lambda net: net[0], "trained": lambda net: net[2]},
    "an epoch that is no number": {"epoch": "1"},
    "an epoch below zero": {"epoch": -1},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_with_the_library_step_is_one_line(name):
    with pytest.raises(UserError) as caught:
        step(**WRONG[name])
    assert len(str(caught.value).splitlines()) == 1


def test_counts_and_labels_of_other_integer_types_are_taken():
    wanted = step()[0].weight
    for counts in (np.array(COUNTS), torch.tensor(COUNTS), [np.int64(n) for n in COUNTS]):
        assert torch.equal(step(counts=counts)[0].weight, wanted)


def test_a_part_with_some_frozen_parameters_is_the_rest_of_it():
    def part(net):
        net[0].bias.requires_grad_(False)
        return net[0]

    moved = step(part=part)
    assert torch.equal(moved[0].bias, model()[0].bias)
    assert not torch.equal(moved[0].weight, model()[0].weight)


SOLVERS = (moo.cagrad, moo.mgda, moo.pcgrad, moo.similarity)


@pytest.mark.parametrize("solve", SOLVERS, ids=lambda f: f.__name__)
def test_solvers_take_tensors_as_arrays(solve):
    gradients = torch.randn(3, 9, generator=torch.Generator().manual_seed(1))
    gram = (gradients @ gradients.T).bfloat16()
    wanted = solve(gram.double().numpy())
    for given in (gram, gram.float().requires_grad_(), gram.double().tolist()):
        found = solve(given)
        for name in ("coefficients", "cosine"):
            if hasattr(wanted, name):
                np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))


@pytest.mark.parametrize("gram", ["text", None, {"a": 1}, [[1.0, 2.0], [3.0]], [["a"]], object()])
def test_what_is_no_matrix_is_one_line(gram):
    for solve in SOLVERS:
        with pytest.raises(UserError, match="`gram` must be") as caught:
            solve(gram)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match="`losses` must be"):
        moo.epo(np.eye(2), losses=["a", "b"])
