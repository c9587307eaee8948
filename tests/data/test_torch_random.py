"""Random numbers of many seeds are those of torch's generator, seed by seed."""

from __future__ import annotations

import numpy as np
import torch

from ltbench.data.torch_random import TorchRandom
from tests.data.photographs import SEEDS


def test_numbers_are_those_of_torchs_generator():
    numbers = TorchRandom(SEEDS, 12)
    rows = np.arange(len(SEEDS)) % 2 == 0
    found = [
        numbers.uniform(),
        numbers.below(25),
        numbers.uniform(-0.3, 0.7, rows),
        numbers.permutation(4, rows),
        numbers.below(np.arange(len(SEEDS)) + 1),
    ]
    with torch.random.fork_rng(devices=[]):
        for row, seed in enumerate(SEEDS.tolist()):
            torch.manual_seed(seed)
            assert found[0][row] == float(torch.rand(()))
            assert found[1][row] == int(torch.randint(25, ()))
            if rows[row]:
                assert found[2][row] == float(torch.empty(1).uniform_(-0.3, 0.7))
                assert found[3][row].tolist() == torch.randperm(4).tolist()
            assert found[4][row] == int(torch.randint(row + 1, (1,)))
