"""Collectives and bytes of a step on many simulated ranks, which compute but do not communicate.

`PYTHONPATH=.:tests python tests/distributed/test_collectives.py` prints tables: of each step the
collectives, the bytes that a rank receives (with ring algorithms; it sends as many) and the largest
tensor of a gather or exchange. Further arguments are names of methods; all by default.
"""

from __future__ import annotations

import sys
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
IMAGES_OF_TABLE = 32
UPDATES = ("plain", "sam", "focal-sam", "imb-sam", "plot-cagrad")
ALL = toys.STAGE1 + toys.STAGE2
# Collectives of a step of `plain`: sums of the loss, gradients, running statistics, recall of the
# epoch, and what a method adds: partners of images and labels, gathered features, labels and keys.
MORE = {"mixup": 6, "gcl": 6, "gcl_stage2": 5, "m2m": 6, "cc_sam": 8, "lade": 7, "rsg": 6}
MORE |= {"reslt": 5, "ride": 5, "plot_stage2": 5, "paco": 11, "bcl": 8, "difficulty_net": 9}
MORE |= {"mdcs": 5, "etf": 7, "dirmixe": 6, "proco": 8}
MORE |= {"balpoe": 6, "gpaco": 6}
MOST = dict.fromkeys(ALL, 4) | MORE
# What an update adds.
SIZES = {"plain": 0, "sam": 2, "focal-sam": 2, "imb-sam": 2, "plot-cagrad": 6}
# What these gather grows with the number of ranks: features and labels of the whole batch, which
# are contrasted with each other (`rsg` and `m2m`: labels only; `proco`: statistics of its
# normalisation).
GROWING = ("cc_sam", "rsg", "paco", "gpaco", "bcl", "m2m", "proco")


# Bytes that a rank receives for each byte of the largest tensor, but for its own share.
TIMES = {"allreduce_": 2, "_allgather_base_": 1, "_reduce_scatter_base_": 1, "alltoall_base_": 1}
TIMES |= {"broadcast_": 1}


class Counted(TorchDispatchMode):
    """Keeps the name of each collective, the bytes that it leaves on this rank, and the most."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, int]] = []
        self.largest: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.startswith("c10d::"):
            tensors = [t for t in tree_leaves(args[0]) if isinstance(t, torch.Tensor)]
            given = [t for t in tree_leaves(args[:2]) if isinstance(t, torch.Tensor)]
            self.calls.append((name[6:], sum(t.nbytes for t in tensors)))
            self.largest.append(max(t.nbytes for t in given))
        return func(*args, **(kwargs or {}))

    def received(self, world: int) -> int:
        """Return the bytes that this rank receives."""
        pairs = zip(self.calls, self.largest, strict=True)
        return sum(TIMES[name] * nbytes * (world - 1) // world for (name, _), nbytes in pairs)

    def gathered(self) -> int:
        """Return the bytes of the largest tensor that is gathered, scattered or exchanged."""
        pairs = zip(self.calls, self.largest, strict=True)
        sums = ("allreduce_", "broadcast_")
        return max((nbytes for (name, _), nbytes in pairs if name not in sums), default=0)


def step(name: str, key: str, world: int) -> list[tuple[str, int]]:
    """Return the collectives of the second step of a toy on rank 0 of so many."""
    return counted(name, key, world, IMAGES).calls


def counted(name: str, key: str, world: int, images: int) -> Counted:
    """Count the second step of a toy on rank 0 of so many, with so many images each."""
    td.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        method, run = ready(name)
        update, stats = make_update(key, method), EpochStats(len(toys.COUNTS), torch.device("cpu"))
        for number in range(2):
            batch = replace(toys.batch(images), sizes=(images,) * world)
            with Counted() as found, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                log = toys.step(update, run, [batch], toys.at(number))
                ranks.all_reduce_mean_(running_statistics(method))
                stats.add(log, [batch])
        return found
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
    for key in UPDATES:
        print(f"{key}, {IMAGES_OF_TABLE} images of a rank: collectives, received, gathered")
        print(" " * 18, *(f"{f'{world} ranks':>22}" for world in WORLDS))
        for one in sys.argv[1:] or ALL:
            row = []
            for world in WORLDS:
                seen = counted(one, key, world, IMAGES_OF_TABLE)
                row.append(f"{len(seen.calls):3} {seen.received(world):9} {seen.gathered():8}")
            print(f"{one:18}", *row, flush=True)
