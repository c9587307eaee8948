"""Ranks whose processors round differently do what rank 0 decides, and hold the same weights."""

from __future__ import annotations

from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch
from torch import nn

from ltbench.class_gradients import certified
from ltbench.distributed import ranks
from ltbench.moo.cagrad import CAGrad
from ltbench.updates import sam
from tests.distributed.test_distributed import train

OFF = 1e-9  # far more than a rounding error
KEYS = ("plot-cagrad", "plot-official", "plot-sampled", "plot-certified", "climb")


def trained(key: str, off: float, shared: bool = True) -> torch.Tensor:
    """Train with a solver, and with lengths of gradients, that are off on rank 1."""
    solve, dot, norm, more = CAGrad.solve, certified.dot, sam.gradient_norm, off * ranks.rank()

    def other(self, gram, **rest):
        found = solve(self, gram, **rest)
        found.coefficients[-1] += more  # of a class whose images are on rank 1
        found.weights[-1] += more
        return found

    changes = [
        patch.object(CAGrad, "solve", other),
        patch.object(certified, "dot", lambda a, b: dot(a, b) * (1 + more)),
    ]
    if key == "climb":
        changes = [patch.object(sam, "gradient_norm", lambda gs: norm(gs) * (1 + more))]
    if not shared:
        changes.append(patch.object(ranks, "from_main_", lambda tensor: tensor))
    with ExitStack() as changed:
        for change in changes:
            changed.enter_context(change)
        if key == "climb":
            weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
            weight.grad = torch.arange(3.0, dtype=torch.float64)
            with sam.perturbed([weight], rho=0.5, keep=0.5):
                pass
            return weight.detach()
        return torch.cat([p.flatten() for p in train("ce", key, "sync", steps=3)])


@pytest.mark.parametrize("key", KEYS)
def test_weights_are_those_of_rank_0_bit_for_bit(key, two_processes):
    right, same = two_processes.call(trained, key, 0.0)
    assert torch.equal(right, same)
    for found in two_processes.call(trained, key, OFF):
        assert torch.equal(found, right)
    own = two_processes.call(trained, key, OFF, False)  # each rank on its own
    assert not all(torch.equal(found, right) for found in own)
