"""Killed ranks, lost nodes, fewer ranks: the run goes on, or ends at once and says why."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

WORKER = Path(__file__).parent / "elastic_worker.py"
# Two stages of 6 steps an epoch, with mixing, PLOT and a class-aware second stage.
WORDS = [
    "recipe=quickstart",
    "backbone=resnet20_cifar",
    "stages.0.epochs=2",
    "stages.0.update.epochs=1",
    "stages.0.schedule.warmup=0",
    "stages.0.optim.lr=0.01",
    "stages.1.epochs=1",
    "run.device=cpu",
    "run.threads=1",
    "run.save_steps=2",
]


@dataclass
class Job:
    """What torchrun did with a run: its exit codes, what its ranks said, what they wrote."""

    folder: Path
    codes: list[int]
    said: str  # by the ranks, not by torchrun
    seconds: float

    @property
    def weights(self) -> dict:
        return load_file(self.folder / "out" / "model.safetensors")

    @property
    def record(self) -> dict:
        return json.loads((self.folder / "out" / "record.json").read_text())

    def steps(self) -> list[dict]:
        """The log of all ranks, in order of time."""
        files = sorted((self.folder / "logs").glob("*.jsonl"), key=lambda p: p.stat().st_mtime)
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def launch(
    folder: Path, ranks: int, *words: str, mishap: str = "none", restarts: int = 0, agents: int = 1
) -> Job:
    """Run torchrun, one for all ranks or one for each as on so many nodes."""
    logs, said = folder / "logs", folder / f"said{time.monotonic_ns()}"
    logs.mkdir(parents=True, exist_ok=True)
    where = ["--standalone"]
    if agents > 1:
        endpoint = f"127.0.0.1:{free_port()}"
        where = [f"--nnodes={agents}", "--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]
        where += [f"--rdzv-id={folder.name}"]
    command = [sys.executable, "-m", "torch.distributed.run", *where]
    command += [f"--nproc-per-node={ranks // agents}", f"--max-restarts={restarts}"]
    own = [str(WORKER), str(logs), mishap, "run", *WORDS, *words, f"out={folder / 'out'}"]
    start = time.monotonic()
    started = [
        subprocess.Popen(
            [*command, f"--log-dir={said / str(node)}", "--redirects=3", *own],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        for node in range(agents)
    ]
    try:
        codes = [process.wait(timeout=200) for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
    texts = [p.read_text() for p in sorted(said.glob("**/std*.log"))]
    return Job(folder, codes, "".join(texts), time.monotonic() - start)


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def differing(a: dict, b: dict) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not bool((a[name] == b[name]).all())]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Job:
    job = launch(tmp_path_factory.mktemp("unbroken"), 2)
    assert job.codes == [0], job.said
    return job


def test_a_killed_rank_is_brought_back_and_nothing_differs(unbroken, tmp_path):
    job = launch(tmp_path, 2, mishap="kill:1:0.1.3", restarts=2)
    assert job.codes == [0], job.said
    assert [s["try"] for s in job.steps()] != [s["try"] for s in unbroken.steps()]
    assert differing(job.weights, unbroken.weights) == []
    assert job.record["metrics"] == unbroken.record["metrics"]
    assert job.record["execution"]["ranks"] == [2]
    assert "Traceback" not in job.said
