"""Killed ranks, lost nodes, fewer ranks: the run goes on, or ends at once and says why."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import Forked
from safetensors.torch import load_file

from tests.distributed import elastic_worker

WORKER = Path(__file__).parent / "elastic_worker.py"
SCRIPTS = Path(__file__).parents[2] / "tools" / "launch"
# Two stages of 6 steps an epoch, with mixing, PLOT and a class-aware second stage.
WORDS = [
    "recipe=quickstart",
    "backbone={name: resnet20_cifar, args: {widths: [4, 8, 16]}}",
    "data.image_size=8",
    "stages.0.epochs=2",
    "stages.0.update.epochs=1",
    "stages.0.schedule.warmup=0",
    "stages.0.optim.lr=0.01",
    "stages.1.epochs=1",
    "stages.1.schedule.shift=0",  # otherwise its only epoch has a rate of 0
    "run.device=cpu",
    "run.threads=1",
    "run.save_steps=2",
]


@dataclass
class Job:
    """What became of a run: exit codes of its agents, what its ranks said, what they left."""

    folder: Path
    codes: list[int]
    said: str  # by the ranks; not by torchrun, which always ends with a traceback of its own

    @property
    def weights(self) -> dict:
        return load_file(self.folder / "out" / "model.safetensors")

    @property
    def record(self) -> dict:
        return json.loads((self.folder / "out" / "record.json").read_text())

    @property
    def curves(self) -> list[list[str]]:
        rows = [x.split(",") for x in (self.folder / "out" / "curves.csv").read_text().split()]
        speed = rows[0].index("images_per_second")
        return [row[:speed] + row[speed + 1 :] for row in rows]

    @property
    def steps(self) -> list[dict]:
        """What each rank did in each step."""
        files = (self.folder / "logs").glob("*.jsonl")
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def start(folder: Path, ranks: int, *words: str, mishap: str = "none", restarts: int = 0) -> Job:
    """Do what torchrun does on one node, without its agent: start ranks, and again if one fails."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    own = [str(logs), mishap, "run", *WORDS, *words, f"out={folder / 'out'}"]
    said, code = [], 1
    for count in range(restarts + 1):
        env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        env |= {"WORLD_SIZE": str(ranks), "TORCHELASTIC_RESTART_COUNT": str(count)}
        started = [
            Forked(elastic_worker.main, own, env={**env, "RANK": str(r), "LOCAL_RANK": str(r)})
            for r in range(ranks)
        ]
        try:
            said += ["".join(process.communicate()) for process in started]
        finally:
            for process in started:
                process.end()
        code = int(any(process.returncode for process in started))
        if code == 0:
            break
    return Job(folder, [code], "".join(said))


def launch(
    folder: Path, ranks: int, *words: str, mishap: str = "none", restarts: int = 0, nodes: int = 1
) -> Job:
    """Run torchrun: one for all ranks, or one each for so many nodes that meet on loopback."""
    logs, said = folder / "logs", folder / f"said-{ranks}"
    logs.mkdir(parents=True, exist_ok=True)
    where = ["--standalone"]
    if nodes > 1:
        where = [f"--nnodes={nodes}", "--rdzv-backend=c10d", "--rdzv-id=test"]
        where += [f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    where += [f"--nproc-per-node={ranks // nodes}", f"--max-restarts={restarts}", "--redirects=3"]
    start = [sys.executable, "-m", "torch.distributed.run", *where]
    own = [str(WORKER), str(logs), mishap, "run", *WORDS, *words, f"out={folder / 'out'}"]
    agents = [
        subprocess.Popen(
            [*start, f"--log-dir={said / str(node)}", *own],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
        for node in range(nodes)
    ]
    try:
        codes = [agent.wait(timeout=200) for agent in agents]
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGTERM)
    return Job(folder, codes, "".join(p.read_text() for p in sorted(said.glob("**/std*.log"))))


def environment(**more: str) -> dict[str, str]:
    here = str(Path(sys.executable).parent)
    path = f"{here}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, **more}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def differing(a: dict, b: dict) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not bool((a[name] == b[name]).all())]


def visited(steps: list[dict], stage: int, epoch: int) -> dict[int, list[int]]:
    """The images of each step of an epoch."""
    found: dict[int, list[int]] = {}
    for s in steps:
        if s["place"][:2] == [stage, epoch]:
            found.setdefault(s["place"][2], []).extend(s["index"])
    return {step: sorted(index) for step, index in sorted(found.items())}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Job:
    job = start(tmp_path_factory.mktemp("unbroken"), 2)
    assert job.codes == [0], job.said
    return job


@pytest.mark.parametrize(
    ("rank", "how"),
    [(1, start), *(pytest.param(rank, launch, marks=pytest.mark.slow) for rank in (0, 1))],
)
def test_a_killed_rank_is_brought_back_and_nothing_differs(rank, how, unbroken, tmp_path):
    job = how(tmp_path, 2, mishap=f"kill:{rank}:0.1.3", restarts=2)
    assert job.codes == [0], job.said
    assert {s["try"] for s in job.steps} == {"0", "1"}
    assert [0, 0, 0] not in [s["place"] for s in job.steps if s["try"] == "1"]
    assert differing(job.weights, unbroken.weights) == []
    assert job.record["metrics"] == unbroken.record["metrics"]
    assert job.record["execution"]["ranks"] == [2]
    assert job.curves == unbroken.curves
    assert "Traceback" not in job.said


@pytest.mark.slow
def test_two_nodes_are_two_ranks(unbroken, tmp_path):
    """The script of tools/launch, both nodes on this machine."""
    done = subprocess.run(
        [SCRIPTS / "two_nodes.sh", "loopback", *WORDS, f"out={tmp_path / 'out'}"],
        env=environment(PORT=str(free_port())),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert differing(Job(tmp_path, [], "").weights, unbroken.weights) == []


@pytest.mark.slow
def test_one_node_by_its_script(unbroken, tmp_path):
    done = subprocess.run(
        [SCRIPTS / "one_node.sh", *WORDS, f"out={tmp_path / 'out'}"],
        env=environment(RANKS="2"),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert differing(Job(tmp_path, [], "").weights, unbroken.weights) == []


@pytest.mark.parametrize("name", ["one_node.sh", "two_nodes.sh", "slurm.sbatch", "grid.sbatch"])
def test_launch_scripts_are_bash(name):
    done = subprocess.run(["bash", "-n", SCRIPTS / name], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
def test_a_rank_killed_on_one_node_brings_both_back(unbroken, tmp_path):
    job = launch(tmp_path, 2, mishap="kill:1:0.1.3", restarts=2, nodes=2)
    assert job.codes == [0, 0], job.said
    assert len({s["pid"] for s in job.steps}) == 4
    assert differing(job.weights, unbroken.weights) == []
    assert "Traceback" not in job.said


@pytest.mark.parametrize(("first", "then"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_another_number_of_ranks_goes_on_with_the_next_image(first, then, unbroken, tmp_path):
    broken = start(tmp_path, first, mishap=f"kill:{first - 1}:0.1.3")
    assert broken.codes != [0]
    before = visited(broken.steps, 0, 1)
    job = start(tmp_path, then)
    assert job.codes == [0], job.said
    after = visited([s for s in job.steps if s["world"] == then], 0, 1)
    assert (list(before), list(after)) == ([0, 1, 2], [2, 3, 4, 5])  # the checkpoint has two steps
    whole = {**before, **after}
    assert whole == visited(unbroken.steps, 0, 1)
    images = [i for step in whole.values() for i in step]
    assert sorted(images) == list(range(len(images)))  # each one once
    assert job.record["execution"]["ranks"] == [first, then]
    assert job.record["execution"]["ranks_from"] == [
        "stage 0, epoch 0, step 0",
        "stage 0, epoch 1, step 2",
    ]
    assert f"goes on at stage 0, epoch 1, step 2 with {then} rank(s) instead of {first}" in job.said


@pytest.mark.parametrize("how", [start, pytest.param(launch, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["mistake", "kill", "bug"])
def test_a_rank_that_fails_ends_the_run_with_its_own_message(kind, how, tmp_path):
    """Nobody waits: without that the others would run into the test's time limit."""
    job = how(tmp_path, 2, mishap=f"{kind}:1:0.0.3")  # after a checkpoint
    assert job.codes == [1]
    lines = [line for line in job.said.splitlines() if "error:" in line]
    theirs = [line for line in lines if line.startswith("[rank 0] error: another rank failed")]
    assert len(theirs) <= 1  # none if torchrun was faster
    own = [line for line in lines if line not in theirs]
    wanted = ["[rank 1] error: image `7.jpg` cannot be read: repair it"]
    assert own == (wanted if kind == "mistake" else [])
    assert job.said.count("Traceback") == (kind == "bug")
    assert ("ValueError: a bug" in job.said) == (kind == "bug")
    assert not list((tmp_path / "out").glob("**/.partial-*"))


@pytest.mark.slow
def test_a_failure_in_a_grid_over_ranks_ends_the_grid(tmp_path):
    job = launch(tmp_path, 2, "seed=0,1", mishap="mistake:1:0.1.3")
    assert job.codes == [1]
    assert job.said.count("image `7.jpg` cannot be read: repair it") == 2  # of both seeds
    assert "seed 1: this job has lost its process group" in job.said
    assert "Traceback" not in job.said
