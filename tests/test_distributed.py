"""Several processes give what one gives on the same global batch."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path

import pytest
import torch
import toys
from test_contract import UPDATES, make_update, ready

from ltbench import dist
from ltbench.backbones.batchnorm import convert_sync_batchnorm, running_statistics
from ltbench.methods.base import Batch

TRAINED = toys.STAGE1 + toys.STAGE2
CASES = [
    *((name, key) for name in TRAINED for key in ("plain", "sam", "plot-cagrad")),
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
    *("m2m", "difficulty_net", "reslt", "ride"),
}
ON_FOUR = [(name, key) for name, key in CASES if key not in ("plain", "sam")]
LOCAL = [(name, key) for name, key in CASES if name not in COUPLED]


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
    for step in range(steps):
        own = torch.tensor_split(torch.arange(22), dist.world())[dist.rank()]
        parts = [Batch((x[rows],), y[rows], rows) for rows in torch.tensor_split(own, micro)]
        toys.step(update, run, parts, toys.at(step))
        dist.average_(running_statistics(method))
    return [p.detach().clone() for p in method.parameters()]


def worker(rank: int, world: int, port: int, out: str, norms: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    found = {f"{norm}/{n}/{k}": train(n, k, norm) for norm in norms for n, k in cases(world, norm)}
    found |= {f"lonely/{key}": on_the_first_rank(key) for key in LONELY}
    if rank == 0:
        torch.save(found, out)
    torch.distributed.destroy_process_group()


def of_ranks(world: int, *norms: str, folder: Path) -> dict[str, list[torch.Tensor]]:
    """What so many processes compute together."""
    context = multiprocessing.get_context("spawn")
    port, out = free_port(), folder / "found.pt"
    ranks = [
        context.Process(target=worker, args=(r, world, port, str(out), norms)) for r in range(world)
    ]
    for p in ranks:
        p.start()
    for p in ranks:
        p.join(timeout=400)
        assert p.exitcode == 0
    return torch.load(out, weights_only=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> dict[str, list[torch.Tensor]]:
    return of_ranks(2, "sync", "local", folder=tmp_path_factory.mktemp("two"))


def cases(world: int, norm: str) -> list[tuple[str, str]]:
    return LOCAL if norm == "local" else ON_FOUR if world == 4 else CASES


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.parametrize(
    ("world", "norm"),
    [
        (2, "sync"),
        (2, "local"),
        pytest.param(2, "none", marks=pytest.mark.slow),
        pytest.param(4, "sync", marks=pytest.mark.slow),
    ],
)
def test_ranks_equal_one_process(world, norm, request, tmp_path):
    """With local statistics one process does the same with a micro-batch for each rank."""
    usual = world == 2 and norm != "none"
    found = request.getfixturevalue("two") if usual else of_ranks(world, norm, folder=tmp_path)
    for name, key in cases(world, norm):
        one = train(name, key, norm, micro=world if norm == "local" else 1)
        for a, b in zip(one, found[f"{norm}/{name}/{key}"], strict=True):
            torch.testing.assert_close(
                a, b, atol=1e-9, rtol=1e-7, msg=lambda m, n=name, k=key: f"{n} with {k}: {m}"
            )


def test_every_update_is_covered():
    assert {key for _, key in CASES} >= set(UPDATES) - {"plot-pcgrad"}


LONELY = ("plain", "sam", "plot-cagrad", "plot-exact")


def on_the_first_rank(key: str) -> list[torch.Tensor]:
    method, run = ready("ce", norm=False)
    method.double()
    x, y = toys.images(10)
    rows = torch.arange(10) if dist.rank() == 0 else torch.arange(0)
    for step in range(2):
        part = Batch((x[rows].double(),), y[rows], rows)
        toys.step(make_update(key, method), run, [part], toys.at(step))
    return [p.detach().clone() for p in method.parameters()]


def test_a_rank_without_images_changes_nothing(two):
    for key in LONELY:
        for a, b in zip(on_the_first_rank(key), two[f"lonely/{key}"], strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)
