"""The command under torchrun: two processes train what one trains."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from ltbench import get_recipe, run
from ltbench.errors import UserError

WORDS = [
    "recipe=quickstart",
    "backbone={name: resnet20_cifar, args: {widths: [4, 8, 16]}}",
    "data.image_size=8",
    "stages.0.epochs=1",
    "stages.0.update.epochs=1",
    "stages.0.schedule.warmup=0",
    "stages.0.schedule.shift=0",  # otherwise the only epoch has a rate of 0
    "stages.0.optim.lr=0.01",
    "stages.1.epochs=1",
    "stages.1.schedule.shift=0",
    "run.device=cpu",
    "run.threads=1",
]


@pytest.fixture
def launch(command):
    """Train on so many ranks: one in this process, several as torchrun would start them."""

    def start(out, ranks: int, *extra: str) -> dict:
        if ranks == 1:
            return launch_really(out, 1, *extra)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = str(s.getsockname()[1])
        env = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        words = ["run", *WORDS, *extra, f"out={out}"]
        started = [
            command(*words, env={**env, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(ranks)
        ]
        for process in started:
            _, error = process.communicate()
            assert process.returncode == 0, error[-3000:]
        return load_file(out / "model.safetensors")

    return start


def launch_really(out, ranks: int, *extra: str) -> dict:
    """Train by the command under torchrun; with one rank in this process."""
    if ranks == 1:
        run(get_recipe("quickstart", *WORDS[1:], *extra, f"out={out}"))
        return load_file(out / "model.safetensors")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start += [f"--nproc-per-node={ranks}", "-m", "ltbench", "run"]
    done = subprocess.run(
        [*start, *WORDS, *extra, f"out={out}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("overall") == 1  # one rank talks
    return load_file(out / "model.safetensors")


def test_two_processes_train_what_one_trains(tmp_path):
    words = "run.batchnorm=sync"
    one, two = (launch_really(tmp_path / n, i, words) for n, i in (("one", 1), ("two", 2)))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-3, rtol=2e-3, msg=name)
    records = [json.loads((tmp_path / n / "record.json").read_text()) for n in ("one", "two")]
    assert [r["execution"]["ranks"] for r in records] == [[1], [2]]
    assert [sum(r["metrics"]["total"]) for r in records] == [600, 600]
    assert records[0]["recipe"]["digest"] == records[1]["recipe"]["digest"]


PARTS = [
    "stages.0.method=ce",  # mixing draws its partners from all ranks, but from one pass at a time
    "stages.0.batch_size=64",
    "stages.0.micro_batch=16",
    "stages.1.micro_batch=16",
    "run.batchnorm=local",
    "run.max_steps=3",
]


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_may_take_turns_at_the_parts_of_a_batch(ranks, tmp_path, launch):
    """Four passes of one rank are one pass of four: weights and running statistics agree."""
    one, more = launch(tmp_path / "one", 1, *PARTS), launch(tmp_path / "more", ranks, *PARTS)
    assert any(name.endswith("running_var") for name in one)
    for name in one:
        torch.testing.assert_close(one[name], more[name], atol=1e-5, rtol=1e-5, msg=name)


def test_parts_that_do_not_come_out_even_are_refused():
    stage = get_recipe("quickstart", "stages.0.micro_batch=16").stages[0]
    assert [stage.passes(ranks) for ranks in (1, 2, 4)] == [4, 2, 1]
    assert get_recipe("quickstart").stages[0].passes(8) == 1
    for ranks in (3, 8):
        with pytest.raises(UserError, match="does not cut `batch_size` = 64 into parts"):
            stage.passes(ranks)
    with pytest.raises(UserError, match=r"^`stages.1`: `micro_batch` = 48 does not cut"):
        get_recipe("quickstart", "stages.1.micro_batch=48")


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(["run.precision=bf16", "run.max_steps=2"], id="bf16"),
        pytest.param(
            ["stages.0.micro_batch=32", "run.deterministic=true", "run.max_steps=2"],
            id="deterministic",
        ),
        pytest.param(
            ["run.channels_last=false", "stages.0.last_batch=drop", "run.max_steps=2"], id="drop"
        ),
    ],
)
def test_ways_to_execute(extra, tmp_path, request):
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    weights = launch_really(tmp_path / "run", 1, *extra)
    assert all(torch.isfinite(t.float()).all() for t in weights.values())
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert "run.max_steps" in record["shortened"]
    assert not record["complete"]
