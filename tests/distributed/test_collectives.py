"""Collectives and bytes of a step on many simulated ranks, which compute but do not communicate.

`PYTHONPATH=tests python tests/distributed/test_collectives.py` prints the table.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as td
import toys
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toy_stages import make_update, ready

from ltbench.distributed import ranks
from ltbench.models.batchnorm import running_statistics
from ltbench.train.epoch_stats import EpochStats

WORLDS = (8, 64)
IMAGES = 4  # of each rank
UPDATES = ("plain", "sam", "focal-sam", "imb-sam", "plot-cagrad")
ALL = toys.STAGE1 + toys.STAGE2
# Collectives of a step of `plain`: sums of the loss, gradients, running statistics, recall of the
# epoch, and what a method adds: partners of images and labels, gathered features, labels and keys.
MORE = {"mixup": 6, "gcl": 6, "gcl_stage2": 5, "m2m": 6, "cc_sam": 8, "lade": 7, "rsg": 6}
MORE |= {"reslt": 5, "ride": 5, "plot_stage2": 5, "paco": 11, "bcl": 9, "difficulty_net": 9}
MORE |= {"mdcs": 5, "etf": 7, "dirmixe": 6, "proco": 8}
MORE |= {"balpoe": 6, "gpaco": 7}
MOST = dict.fromkeys(ALL, 4) | MORE
# What an update adds.
SIZES = {"plain": 0, "sam": 2, "focal-sam": 2, "imb-sam": 2, "plot-cagrad": 5}
# What these gather grows with the number of ranks: features, logits or labels of the whole batch.
GROWING = ("cc_sam", "lade", "rsg", "paco", "gpaco", "bcl", "m2m", "proco", "dirmixe")


class Counted(TorchDispatchMode):
    """Keeps the name of each collective and the bytes that it leaves on this rank."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.startswith("c10d::"):
            tensors = [t for t in tree_leaves(args[0]) if isinstance(t, torch.Tensor)]
            self.calls.append((name[6:], sum(t.nbytes for t in tensors)))
        return func(*args, **(kwargs or {}))


def step(name: str, key: str, world: int) -> list[tuple[str, int]]:
    """Return the collectives of the second step of a toy on rank 0 of so many."""
    td.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        method, run = ready(name)
        update, stats = make_update(key, method), EpochStats(len(toys.COUNTS), torch.device("cpu"))
        for number in range(2):
            batch = replace(toys.batch(IMAGES), sizes=(IMAGES,) * world)
            with Counted() as counted, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                log = toys.step(update, run, [batch], toys.at(number))
                ranks.all_reduce_mean_(running_statistics(method))
                stats.add(log, [batch])
        return counted.calls
    finally:
        ranks.close()


def size(calls: list[tuple[str, int]]) -> int:
    return sum(nbytes for _, nbytes in calls)


@pytest.mark.parametrize("name", ALL)
def test_a_plain_step_has_few_collectives_and_none_for_sizes(name):
    few, many = (step(name, "plain", world) for world in WORLDS)
    assert len(few) <= MOST[name]
    assert [kind for kind, _ in few] == [kind for kind, _ in many]
    assert (size(few) == size(many)) == (name not in GROWING)


def test_mixup_sends_partners_only():
    image = 3 * 8 * 8 * 4
    found = [nbytes for kind, nbytes in step("mixup", "plain", 64) if kind == "alltoall_base_"]
    assert found == [IMAGES * image, IMAGES * 8]


@pytest.mark.slow
@pytest.mark.parametrize("key", UPDATES[1:])
@pytest.mark.parametrize("name", ALL)
def test_updates_add_a_fixed_number(name, key):
    few, many = (step(name, key, world) for world in WORLDS)
    assert [kind for kind, _ in few] == [kind for kind, _ in many]
    if name not in GROWING:
        assert size(few) == size(many)
    each_pass = ("bbn", "reslt", "ride", "mdcs", "plot_stage2")  # these exchange in each
    if name not in (*GROWING, *each_pass):
        assert len(few) <= MOST[name] + SIZES[key]


if __name__ == "__main__":
    print("collectives and bytes of a step, by update and number of ranks")
    print(" " * 18, *(f"{key[:12]:>7} {world:>5}" for key in UPDATES for world in WORLDS))
    for one in ALL:
        found = [step(one, key, world) for key in UPDATES for world in WORLDS]
        print(f"{one:18}", *(f"{len(calls):3} {size(calls):9}" for calls in found))
