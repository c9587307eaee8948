"""Runs of a grid as jobs of a cluster."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from filelock import FileLock
from rich.console import Console

from ltbench.cli import app as cli
from ltbench.config.launcher import read_launcher
from ltbench.errors import UserError
from ltbench.records.record import LOCK, RECORD, Record
from ltbench.records.store import sound_records
from ltbench.train import cluster, grid, jobs
from ltbench.train.folder import run_folder

FAST = (
    *("data=digits_lt", "data.image_size=8", "epochs=1", "run.device=cpu", "run.threads=1"),
    "backbone={name: resnet20_cifar, args: {widths: [4, 8, 16]}}",
)


def asked(*words: str) -> Any:
    launcher, _ = read_launcher("local", [f"launcher.{word}" for word in words])
    assert launcher is not None
    return launcher


# Words ---------------------------------------------------------------------------------------


def test_words_of_the_launcher_are_taken_out():
    words = ["launcher.gpus=4", "seed=1", "launcher.nodes=2", "launcher.minutes=90"]
    launcher, others = read_launcher("slurm", [*words, "launcher.options.slurm_nice=7"])
    assert others == ("seed=1",)
    sizes = {"timeout_min": 90, "nodes": 2, "gpus_per_node": 4, "tasks_per_node": 4}
    assert launcher.parameters(launcher.gpus) == {**sizes, "slurm_nice": 7}
    assert read_launcher(None, ["seed=1"]) == (None, ("seed=1",))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["launcher=slurm", "launcher.gpu=4"], r"`launcher\.gpu`: unknown key .*did you mean"),
        (["launcher=slurm", "launcher.gpus=x"], r"`launcher\.gpus`: "),
        (["launcher.gpus=4"], r"`launcher\.gpus` needs an executor: launcher=slurm"),
        (["launcher=local", "jobs=2"], "`jobs` runs on this machine"),
        (["launcher=local", "launcher.wait=false"], "needs a queue"),
        (["launcher=nowhere", *FAST], "`launcher=nowhere`: AutoExecutor doesn't know"),
        (["launcher=local", "launcher.nodes=2", *FAST], "`launcher=local`: .*one node"),
        (["launcher=local", "launcher.options.colour=red", *FAST], "`launcher=local`: .*colour"),
        (["cell=4"], r"`cell`: expected numbers from 0 to 1, .* found 4"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(words, message, tmp_path):
    pytest.importorskip("submitit")
    words = ["recipe=ce", "seed=0,1", f"out={tmp_path}", *words]
    with pytest.raises(UserError, match=message) as caught:
        cli.cli.main(["run", *words], standalone_mode=False)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.rglob("record.json"))


def test_without_submitit_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'ltbench\[slurm\]'"):
        cluster._executor(asked(), tmp_path, [])


def test_ranks_are_not_launched_from_a_rank(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="without torchrun"):
        cli.cli.main(["run", "recipe=ce", "launcher=local"], standalone_mode=False)


# The loop, with jobs that do what a test says --------------------------------------------------


class Job:
    """Job that does its work when somebody asks whether it has ended."""

    def __init__(self, number: int, task: cluster.CellJob, work: Callable[..., object]) -> None:
        self.job_id, self.paths = str(number), SimpleNamespace(stderr=f"{number}.err")
        self.task, self.work = task, work

    def done(self) -> bool:
        return self.work(self.task) is not False


class Executor:
    """Executor whose jobs do one piece of work after the other.

    Args:
        works: of the first job, the second one, ...
    """

    def __init__(self, *works: Callable[..., object]) -> None:
        self.works, self.submitted = list(works), []
        self.batch = nullcontext

    def submit(self, task: cluster.CellJob) -> Job:
        self.submitted.append(task.tree["seed"])
        return Job(len(self.submitted), task, self.works.pop(0))


def finishes(task: cluster.CellJob) -> None:
    folder = Path(task.tree["out"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text("{}")
    Path(task.report).write_text(json.dumps({"outcome": "done", "problem": ""}))


def fails(task: cluster.CellJob) -> None:
    facts = {"outcome": "failed", "problem": "lr too high", "diverged": True}
    Path(task.report).write_text(json.dumps(facts))


def dies(task: cluster.CellJob) -> None:
    """End without a report, as after SIGKILL."""


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Run two cells as jobs that do certain works; return cells, executor and lines printed."""
    record = next(iter(sound_records()))
    monkeypatch.setattr(cluster, "_results", lambda recipe, seen: record)
    monkeypatch.setattr(cluster, "PAUSE", 0.01)
    folder = tmp_path / "launcher"
    folder.mkdir()

    def run(*works: Callable[..., object], words: tuple[str, ...] = ()) -> Any:
        executor = Executor(*works)
        monkeypatch.setattr(cluster, "_executor", lambda *_: executor)
        out = io.StringIO()
        board = jobs.GridProgress(Console(file=out, width=200, highlight=False))
        cells = grid.make_grid(["ce"], [0, 1], [*FAST, f"out={tmp_path}"])
        done = cluster.run_cluster(cells, asked(*words), board, folder)
        return done, executor.submitted, out.getvalue().splitlines()

    return run


def test_cells_come_back_with_their_outcomes(play):
    done, submitted, lines = play(finishes, fails)
    assert [cell.outcome for cell in done] == ["done", "failed"]
    assert isinstance(done[0].record, Record)
    assert (done[1].problem, done[1].diverged) == ("lr too high", True)
    assert submitted == [0, 1]
    assert lines[1] == "ce, seed 1: failed: lr too high"
    again, submitted, _ = play(finishes)  # the failed one alone
    assert [cell.outcome for cell in again] == ["was done", "done"]
    assert submitted == [1]


def test_a_lost_job_is_started_again(play):
    done, submitted, lines = play(dies, finishes, finishes)
    assert [cell.outcome for cell in done] == ["done", "done"]
    assert submitted == [0, 0, 1]
    assert "ce, seed 0: job 1 was lost; started again" in lines


def test_a_cell_that_is_lost_too_often_fails(play):
    done, submitted, _ = play(dies, dies, finishes, words=("restarts=1",))
    assert [cell.outcome for cell in done] == ["failed", "done"]
    assert done[0].problem == "its job ended 2 times without results; see 2.err"
    assert submitted == [0, 0, 1]


def test_as_many_run_at_a_time_as_asked_for(play):
    seen, order = [], iter([False, False, True])

    def first(task: cluster.CellJob) -> object:
        seen.append("first")
        return finishes(task) if next(order) else False

    def second(task: cluster.CellJob) -> None:
        seen.append("second")
        finishes(task)

    done, _, _ = play(first, second, words=("array_parallelism=2",))
    assert [cell.outcome for cell in done] == ["done", "done"]
    assert seen == ["first", "second", "first", "first"]
    done, _, _ = play()
    assert [cell.outcome for cell in done] == ["was done", "was done"]


def test_a_cell_of_another_process_is_waited_for(play, tmp_path):
    (cell, _) = grid.make_grid(["ce"], [0, 1], [*FAST, f"out={tmp_path}"])
    folder = run_folder(cell.recipe)
    folder.mkdir(parents=True)
    lock = FileLock(folder / LOCK, thread_local=False)
    lock.acquire()
    assert cluster.in_use(folder)

    def refused(task: cluster.CellJob) -> None:
        Path(task.report).write_text(json.dumps({"outcome": "elsewhere", "problem": "running"}))

    def other() -> None:
        time.sleep(0.2)
        (folder / RECORD).write_text("{}")
        lock.release()

    thread = threading.Thread(target=other)
    thread.start()
    done, submitted, _ = play(refused, finishes)
    thread.join()
    assert [cell.outcome for cell in done] == ["was done", "done"]
    assert submitted == [0, 1]
    assert not cluster.in_use(folder)


def test_preempted_work_goes_back_as_it_is():
    pytest.importorskip("submitit")
    task = cluster.CellJob({"name": "ce"}, "/place", "/report")
    delayed = task.checkpoint()
    assert (delayed.function, delayed.args, delayed.kwargs) == (task, (), {})


# Slurm's commands, imitated --------------------------------------------------------------------

SBATCH = """#!/bin/sh
echo "$@" >> "$FAKE/calls"
cp "$1" "$FAKE/script"
echo Submitted batch job 77
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
echo "77_0|RUNNING|a"
echo "77_1|PENDING|None"
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Return a folder where the commands of a Slurm that only takes jobs leave their traces."""
    pytest.importorskip("submitit")
    fake = tmp_path / "fake"
    fake.mkdir()
    for name, text in {"sbatch": SBATCH, "sacct": SACCT, "srun": "#!/bin/sh\n"}.items():
        (fake / name).write_text(text)
        (fake / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(fake))
    return fake


def test_slurm_gets_one_array_and_keeps_it(slurm, tmp_path):
    words = ["run", "recipe=ce", "seed=0,1", *FAST, f"out={tmp_path / 'out'}", "launcher=slurm"]
    words += ["launcher.gpus=4", "launcher.nodes=2", "launcher.partition=big", "launcher.cpus=8"]
    words += ["launcher.minutes=90", "launcher.array_parallelism=1", "launcher.wait=false"]
    first = CliRunner().invoke(cli.cli, words)
    assert first.exit_code == 0, first.output
    assert "2 run in other processes" in first.output
    script = (slurm / "script").read_text()
    for line in (
        *("--array=0-1%1", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=90"),
        *("--partition=big", "--cpus-per-task=8", "--signal=USR2@90"),
    ):
        assert f"#SBATCH {line}\n" in script
    kept = json.loads((tmp_path / "out" / "launcher" / "jobs.json").read_text())
    assert [job["job"] for job in kept.values()] == ["77_0", "77_1"]
    again = CliRunner().invoke(cli.cli, words)
    assert "2 run in other processes" in again.output
    assert len((slurm / "calls").read_text().splitlines()) == 1  # still queued: not again


# submitit's local executor ---------------------------------------------------------------------

SMALL = (*FAST[:2], "epochs=2", *FAST[3:], "run.save_steps=2", "stages.0.batch_size=16")


def results(folder: Path) -> dict[str, Any]:
    """Return what two runs of the same cells must have in common."""
    found = {}
    for file in sorted(folder.glob("*/seed*/record.json")):
        record = Record.load(file)
        assert record.checkpoint is not None
        name = str(file.parent.relative_to(folder))
        found[name] = record.metrics, record.checkpoint.sha256
    return found


def children(number: str) -> list[int]:
    found = subprocess.run(
        ["ps", "--ppid", number, "-o", "pid="], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_killed_and_preempted_cells_give_the_same_table(tmp_path):
    pytest.importorskip("submitit")
    words = ["run", "recipe=ce", "seed=0,1", *SMALL]
    plain = CliRunner().invoke(cli.cli, [*words, f"out={tmp_path / 'plain'}"])
    assert plain.exit_code == 0, plain.output
    out, sent = tmp_path / "out", []

    def interfere() -> None:
        todo = {"seed0": signal.SIGKILL, "seed1": signal.SIGUSR2}
        while todo:
            time.sleep(0.02)
            for seed, number in list(todo.items()):
                (folder,) = [*out.glob(f"*/{seed}"), None][:1]
                if folder is None or not any(folder.glob("checkpoints/[!.]*/state.json")):
                    continue
                kept = json.loads((out / "launcher" / "jobs.json").read_text())
                (job,) = (job["job"] for name, job in kept.items() if seed in name)
                os.kill(children(job)[0], number)
                sent.append((number, (folder / "record.json").exists()))
                del todo[seed]

    thread = threading.Thread(target=interfere, daemon=True)
    thread.start()
    done = CliRunner().invoke(
        cli.cli,
        [*words, f"out={out}", "launcher=local", "launcher.array_parallelism=2"],
    )
    assert done.exit_code == 0, done.output
    thread.join(5)
    assert sorted(sent) == sorted([(signal.SIGKILL, False), (signal.SIGUSR2, False)])
    assert "ce, seed 0: job" in done.output  # was lost
    assert "2 done" in done.output
    logs = "".join(file.read_text() for file in (out / "launcher").glob("*_log.out"))
    assert "this job is preempted" in logs
    assert "Requeued job" in logs
    assert logs.count("of them done") == 2  # both went on from a checkpoint
    assert results(out) == results(tmp_path / "plain")
    assert len(results(out)) == 2
    tables = [(folder / "results.csv").read_text() for folder in (out, tmp_path / "plain")]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_killed_command_is_given_again(tmp_path):
    pytest.importorskip("submitit")
    words = ["recipe=ce", "seed=0", *SMALL, "epochs=20", f"out={tmp_path}/run", "launcher=local"]
    words.remove("epochs=2")
    command = [sys.executable, "-m", "ltbench", "run", *words]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not list(tmp_path.glob("run/checkpoints/[!.]*/state.json")):
        assert time.monotonic() < end
        time.sleep(0.1)
    first.kill()
    first.wait()
    assert cluster.in_use(tmp_path / "run")  # its job goes on
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert again.returncode == 0, again.stderr
    ran = [f for f in (tmp_path / "launcher").glob("*_log.out") if "epoch 20" in f.read_text()]
    assert len(ran) == 1  # once, by the first job
    assert (tmp_path / "run" / "record.json").is_file()


@pytest.mark.slow
def test_a_job_has_its_own_ranks(tmp_path):
    pytest.importorskip("submitit")
    words = ["recipe=ce", *FAST, "run.max_steps=2", f"out={tmp_path}/run", "launcher=local"]
    done = CliRunner().invoke(cli.cli, ["run", *words, "launcher.ranks=2"])
    assert done.exit_code == 0, done.output
    record = Record.load(tmp_path / "run" / "record.json")
    assert record.execution.ranks == (2,)


@pytest.mark.slow
def test_an_array_without_submitit_takes_one_run_a_task(tmp_path, monkeypatch):
    scripts = {"scontrol": "echo 127.0.0.1", "srun": 'shift; exec "$@"'}  # hostnames; the task
    for name, line in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    facts = {"JOB_NODELIST": "here", "JOB_ID": "812", "NNODES": "1", "GPUS_ON_NODE": "1"}
    for name, value in {**facts, "ARRAY_JOB_ID": "812", "ARRAY_TASK_ID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    script = Path(__file__).parents[2] / "tools" / "launch" / "grid.sbatch"
    words = ["recipe=ce", "seed=0,1", *FAST, "run.max_steps=2", f"out={tmp_path / 'out'}"]
    done = subprocess.run(
        ["bash", script, *words], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert [f.parent.name for f in tmp_path.glob("out/*/seed*/record.json")] == ["seed1"]
    assert not (tmp_path / "out" / "results.csv").exists()  # the whole grid's
