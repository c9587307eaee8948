"""Several processes give what one gives on the same global batch."""

from __future__ import annotations

import pytest
import torch
import toys
from processes import Ranks
from toy_stages import KINDS, make_update, ready

from ltbench.distributed import ranks
from ltbench.methods.base import Batch
from ltbench.models.batchnorm import convert_sync_batchnorm, running_statistics

TRAINED = toys.STAGE1 + toys.STAGE2
# SAM's two passes are those of plain: methods that differ by what they keep from pass to pass.
CLIMBING = ("ce", "mixup", "bcl", "m2m", "difficulty_net", "crt")
SAM = [(name, key) for name in TRAINED for key in ("sam", "focal-sam", "imb-sam")]
CASES = [
    *((name, key) for name in TRAINED for key in ("plain", "plot-cagrad")),
    *((name, "sam") for name in CLIMBING),
    *((name, key) for name in ("ce", "mixup", "lade") for key in ("focal-sam", "imb-sam")),
    ("ce", "plot-mgda"),
    ("ce", "plot-official"),
    ("ce", "plot-sampled"),
    ("ce", "plot-exact"),
    ("ce", "plot-certified"),
    ("mixup", "plot-official"),
    ("balanced_softmax", "plot-epo"),
]


# These go over the images of all ranks, but over one micro-batch at a time.
COUPLED = {
    *("mixup", "plot_stage2", "gcl", "gcl_stage2", "cc_sam", "lade", "paco", "bcl", "rsg"),
    *("m2m", "difficulty_net", "reslt", "ride", "mdcs", "etf", "dirmixe", "proco"),
    *("balpoe", "gpaco", "h2t"),
}
LOCAL = [(name, key) for name, key in [*CASES, *SAM] if name not in COUPLED]
FEW = ("plain", "plot-cagrad")  # enough of local statistics by default: the rest is slow
# By default a method goes through one of both: those that are not coupled through local ones.
SYNC = [p for p in CASES if p[1] != "plain" and (p[1] != "plot-cagrad" or p[0] in COUPLED)]
# What is compared: the number of ranks, the batch statistics, the pairs.
GROUPS = {
    "sync": (2, "sync", SYNC),
    "local": (2, "local", [(name, key) for name, key in LOCAL if key in FEW]),
    "sync-rest": (
        2,
        "sync",
        [pair for pair in [*CASES, *SAM] if pair not in SYNC],
    ),
    "local-rest": (2, "local", [(name, key) for name, key in LOCAL if key not in FEW]),
    "none": (2, "none", [*CASES, *SAM]),
    "four": (4, "sync", [(name, key) for name, key in CASES if key not in ("plain", "sam")]),
}


def train(name: str, key: str, norm: str, micro: int = 1, steps: int = 2) -> list[torch.Tensor]:
    method, run = ready(name, norm=norm != "none")
    method.double()  # in double precision nothing but an error is left to differ
    if norm != "local":  # heads of some methods normalise over the batch too
        convert_sync_batchnorm(method)
    update = make_update(key, method)
    # Sorted by class, so that ranks see different classes and one rank lacks some altogether.
    x, y = toys.images(22)
    order = y.argsort(stable=True)
    x, y = x[order].double(), y[order]
    shares = torch.tensor_split(torch.arange(22), ranks.world())
    for step in range(steps):
        cut = [torch.tensor_split(own, micro) for own in shares]
        parts = [
            Batch((x[rows],), y[rows], rows, sizes=tuple(len(other[i]) for other in cut))
            for i, rows in enumerate(cut[ranks.rank()])
        ]
        toys.step(update, run, parts, toys.at(step))
        ranks.all_reduce_mean_(running_statistics(method))
    return [p.detach().clone() for p in method.parameters()]


def train_all(norm: str, pairs: list[tuple[str, str]]) -> list[list[torch.Tensor]]:
    return [train(name, key, norm) for name, key in pairs]


@pytest.mark.parametrize(
    "group",
    ["sync", "local", *(pytest.param(g, marks=pytest.mark.slow) for g in list(GROUPS)[2:])],
)
def test_ranks_equal_one_process(group, two_processes):
    """With local statistics one process does the same with a micro-batch for each rank."""
    world, norm, pairs = GROUPS[group]
    several = two_processes if world == 2 else Ranks(world)
    found = several.call(train_all, norm, pairs)[0]
    if several is not two_processes:
        several.end()
    for (name, key), theirs in zip(pairs, found, strict=True):
        one = train(name, key, norm, micro=world if norm == "local" else 1)
        for a, b in zip(one, theirs, strict=True):
            torch.testing.assert_close(
                a, b, atol=1e-9, rtol=1e-7, msg=lambda m, n=name, k=key: f"{n} with {k}: {m}"
            )


def test_every_update_is_covered():
    assert {key for _, key in CASES} >= set(KINDS) - {"plot-pcgrad"}


LONELY = ("plain", "sam", "focal-sam", "imb-sam", "plot-cagrad", "plot-exact")


def on_the_first_rank(key: str, name: str = "ce") -> list[torch.Tensor]:
    method, run = ready(name, norm=False)
    method.double()
    x, y = toys.images(10)
    rows = torch.arange(10) if ranks.rank() == 0 else torch.arange(0)
    for step in range(2):
        part = Batch((x[rows].double(),), y[rows], rows)
        toys.step(make_update(key, method), run, [part], toys.at(step))
    return [p.detach().clone() for p in method.parameters()]


@pytest.mark.parametrize(
    ("key", "name"),
    [*((key, "ce") for key in LONELY), *(("plot-cagrad", name) for name in ("glmc", "nclpp"))],
)
def test_a_rank_without_images_changes_nothing(key, name, two_processes):
    """Also where an image has several rows, which the other rank cannot know of."""
    found = two_processes.call(on_the_first_rank, key, name)[0]
    for a, b in zip(on_the_first_rank(key, name), found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)
