"""Two processes give what one gives on the same global batch."""

from __future__ import annotations

import multiprocessing
import socket

import pytest
import torch
import toys
from test_contract import UPDATES, make_update, ready

from ltbench import dist
from ltbench.backbones.batchnorm import convert_sync_batchnorm
from ltbench.methods.base import Batch

CASES = [
    ("ce", "plain"),
    ("ce", "sam"),
    ("ce", "plot-cagrad"),
    ("ce", "plot-mgda"),
    ("ce", "plot-official"),
    ("ce", "plot-sampled"),
    ("mixup", "plain"),
    ("mixup", "plot-cagrad"),
    ("mixup", "plot-official"),
    ("ldam_drw", "plain"),
    ("ldam_drw", "sam"),
    ("ldam_drw", "plot-cagrad"),
    ("balanced_softmax", "plot-epo"),
    ("logit_adjustment", "plain"),
    ("crt", "plain"),
    ("lws", "plain"),
    ("mislas", "plot-cagrad"),
    ("plot_stage2", "plain"),
]


def train(name: str, key: str, norm: str, steps: int = 3) -> list[torch.Tensor]:
    method, run = ready(name, norm=norm != "none")
    method.double()  # in double precision nothing but an error is left to differ
    if norm == "sync":
        convert_sync_batchnorm(method)
    update = make_update(key, method)
    # Sorted by class, so that ranks see different classes and one rank lacks some altogether.
    x, y = toys.images(22)
    order = y.argsort(stable=True)
    x, y = x[order].double(), y[order]
    for step in range(steps):
        rows = torch.tensor_split(torch.arange(22), dist.world())[dist.rank()]
        batch = method.prepare(Batch((x[rows],), y[rows], rows), toys.at(step))
        update.step(run, [batch], toys.at(step))
        dist.average_(method.buffers())
    return [p.detach().clone() for p in method.parameters()]


def worker(rank: int, world: int, port: int, out: str, norm: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    found = {f"{n}/{k}": train(n, k, norm) for n, k in CASES}
    if rank == 0:
        torch.save(found, out)
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.parametrize("norm", ["none", "sync"])
def test_two_ranks_equal_one(norm, tmp_path):
    context = multiprocessing.get_context("spawn")
    port, out = free_port(), tmp_path / "two.pt"
    ranks = [context.Process(target=worker, args=(r, 2, port, str(out), norm)) for r in range(2)]
    for p in ranks:
        p.start()
    for p in ranks:
        p.join(timeout=240)
        assert p.exitcode == 0
    two = torch.load(out, weights_only=True)
    for name, key in CASES:
        for a, b in zip(train(name, key, norm), two[f"{name}/{key}"], strict=True):
            torch.testing.assert_close(
                a, b, atol=1e-9, rtol=1e-7, msg=lambda m, n=name, k=key: f"{n} with {k}: {m}"
            )


def test_every_update_is_covered():
    assert {key for _, key in CASES} >= set(UPDATES) - {"plot-pcgrad"}
