"""Settings of torch for a run."""

from __future__ import annotations

import pytest
import torch

from ltbench import get_recipe
from ltbench.train.run import set_up_torch


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize(
    ("recipe", "words", "times"),
    [
        ("ce_cifar10", (), True),
        ("ce_cifar10", ("run.deterministic=true",), False),
        ("rsg_cifar10", (), False),
        ("m2m_cifar10", (), False),  # its second stage moves
    ],
)
def test_cudnn_times_its_algorithms_where_sizes_stay(recipe, words, times):
    set_up_torch(get_recipe(recipe, *words))
    assert torch.backends.cudnn.benchmark is times
    assert torch.are_deterministic_algorithms_enabled() is bool(words)
