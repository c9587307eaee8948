"""Several runs of a grid at once."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from filelock import FileLock
from rich.console import Console

from ltbench.cli import app as cli
from ltbench.errors import UserError
from ltbench.records.record import LOCK
from ltbench.train import grid, jobs

FAST = (
    *("data=digits_lt", "data.image_size=8", "epochs=1", "run.max_steps=2", "run.device=cpu"),
    "backbone={name: resnet20_cifar, args: {widths: [4, 8, 16]}}",
)


def plain_board() -> tuple[jobs.GridProgress, io.StringIO]:
    out = io.StringIO()
    return jobs.GridProgress(Console(file=out, width=120, highlight=False)), out


@pytest.mark.slow
@pytest.mark.usefixtures("no_picture")
def test_two_at_once_give_the_table_of_one_after_the_other(tmp_path):
    words = ["run", "recipe=quickstart,ce", "seed=0,1", *FAST, f"out={tmp_path}"]
    (blocked,) = (
        Path(cell.recipe.out)
        for cell in grid.make_grid(["quickstart"], [0], [*FAST, f"out={tmp_path}"])
    )
    blocked.mkdir(parents=True)
    (blocked / "notes.txt").write_text("not a run")

    first = CliRunner().invoke(cli.cli, [*words, "jobs=2"])
    assert isinstance(first.exception, UserError)  # `main` makes it exit code 2
    (problem,) = str(first.exception).splitlines()
    assert problem.startswith("quickstart, seed 0: the output folder")
    assert "3 done" in first.output
    assert "1 failed" in first.output
    lines = first.output.splitlines()
    for run in ("quickstart, seed 1", "ce, seed 0", "ce, seed 1"):
        (line,) = (line for line in lines if line.startswith(f"{run}: done, "))
        assert "% overall" in line
    (line,) = (line for line in lines if line.startswith("quickstart, seed 0: "))
    assert "failed: the output folder" in line

    again = CliRunner().invoke(cli.cli, words)
    assert "3 were done before" in again.output
    assert "1 failed" in again.output
    assert table(again.output) == table(first.output)
    third = CliRunner().invoke(cli.cli, [*words, "jobs=1"])
    assert table(third.output) == table(first.output)


def table(output: str) -> list[str]:
    """The lines of the final table, which begins with the names of its columns."""
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if "overall" in line and "many" in line)
    return [line for line in lines[start:] if "±" in line or "─" in line]


def test_a_process_that_dies_takes_only_its_cell_along(tmp_path, monkeypatch):
    before = set(multiprocessing.active_children())

    class Deadly(jobs.GridProgress):
        def begin(self, number, cell):
            super().begin(number, cell)
            if number == 0:
                ours = set(multiprocessing.active_children()) - before
                os.kill(min(process.pid for process in ours), signal.SIGKILL)

    # Spawned they are in the test above; forked from a server they start at once.
    server = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(jobs.multiprocessing, "get_context", lambda how: server)
    out = io.StringIO()
    cells = grid.make_grid(["ce"], [0, 1], [*FAST, f"out={tmp_path}"])
    done = jobs.run_jobs(cells, 2, Deadly(Console(file=out, width=200)))
    assert [c.outcome for c in done] == ["failed", "done"]
    assert "ended with exit code -9" in done[0].problem
    assert "ce, seed 0: failed: its process ended with exit code -9" in out.getvalue()
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_runs_end_with_the_command(tmp_path, how):
    words = ["recipe=ce", "seed=0,1", *FAST[:2], *FAST[4:], "epochs=2000", f"out={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ltbench", "run", *words, "jobs=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # then the number of its group is its own
        # Whoever runs the tests in the background may have made us ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: len({f.parent for f in tmp_path.glob("*/seed*/checkpoints/*")}) == 2)
    locks = [folder / LOCK for folder in tmp_path.glob("*/seed*")]
    assert len(locks) == 2
    os.kill(process.pid, how)  # to the command alone
    output, errors = process.communicate(timeout=240)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert errors.strip() == "interrupted; the same command goes on where it stopped"
        assert "Traceback" not in output
    wait_for(lambda: not alive(process.pid))
    for lock in locks:
        with FileLock(lock, timeout=0):
            pass


def wait_for(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def alive(group: int) -> bool:
    """Whether a process of a group is left that has not ended yet."""
    found = subprocess.run(
        ["ps", "-e", "-o", "pgid=,stat="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in found.stdout.splitlines()]
    return any(int(number) == group and not state.startswith("Z") for number, state in rows)


@pytest.mark.parametrize("value", ["0", "x", "-1", "1.5", ""])
def test_wrong_numbers_are_one_line(value):
    with pytest.raises(UserError, match=r"`jobs`: (should|expected)") as caught:
        cli.cli.main(["run", "recipe=ce,mislas", f"jobs={value}"], standalone_mode=False)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("words", [["recipe=ce"], ["recipe=ce", "seed=1"]])
def test_one_run_has_no_jobs(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", *words, "jobs=2"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: `jobs` needs several runs")


def test_one_job_of_one_run_is_that_run(capsys):
    cli.main(["run", "recipe=quickstart", "jobs=1", "dry_run=true"])
    assert "dry run" in capsys.readouterr().out


def test_not_under_torchrun(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="without torchrun") as caught:
        cli.cli.main(["run", "recipe=ce,mislas", "jobs=2"], standalone_mode=False)
    assert len(str(caught.value).splitlines()) == 1


def test_processes_divide_the_threads(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    for count, share in ((3, "2"), (20, "1")):
        with jobs.limited_threads(count):
            assert os.environ["OMP_NUM_THREADS"] == share
            assert os.environ["LTBENCH_JOBS"] == str(count)
        assert not {"OMP_NUM_THREADS", "LTBENCH_JOBS"} & set(os.environ)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with jobs.limited_threads(4):
        assert os.environ["OMP_NUM_THREADS"] == "5"
        assert os.environ["LTBENCH_JOBS"] == "4"
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_lines_tell_runs_apart():
    board, out = plain_board()
    first, second = grid.make_grid(["ce"], [0, 1], ["data=digits_lt"])
    with board.progress:
        board.begin(0, first)
        board.begin(1, second)
        board.place(0, first, jobs.StageProgress("stage 0: ce", 3, 10))
        board.note(second, "note: one thing\nand [another]")
        board.end(0, replace(first, outcome="failed", problem="lr too high"))
        board.end(1, replace(second, outcome="elsewhere"))
    assert out.getvalue().splitlines() == [
        "ce, seed 1: note: one thing",
        "ce, seed 1: and [another]",
        "ce, seed 0: failed: lr too high",
        "ce, seed 1: elsewhere",
    ]


def test_a_terminal_has_one_bar_for_each_run_at_work():
    out = io.StringIO()
    board = jobs.GridProgress(Console(file=out, width=120, force_terminal=True))
    first, second = grid.make_grid(["ce"], [0, 1], ["data=digits_lt"])
    with board.progress:
        board.begin(0, first)
        board.begin(1, second)
        board.place(0, first, jobs.StageProgress("stage 0: ce", 3, 10))
        shown = [(task.description, task.completed, task.total) for task in board.progress.tasks]
        assert shown == [("ce, seed 0: stage 0: ce", 3, 10), ("ce, seed 1", 0, None)]
        board.end(0, replace(first, outcome="elsewhere"))
        assert [task.description for task in board.progress.tasks] == ["ce, seed 1"]


def test_data_are_fetched_once_before_the_runs():
    fetched = []

    class Config:
        def __init__(self, root, download):
            self.root, self.download = root, download

        def __eq__(self, other):
            return (self.root, self.download) == (other.root, other.download)

        def load(self):
            fetched.append(self.root)
            raise UserError("no network")

    def cell(root, download):
        data = SimpleNamespace(config=Config(root, download))
        return SimpleNamespace(recipe=SimpleNamespace(data=data))

    jobs.download_data([cell("a", True), cell("b", False), cell("a", True), cell("c", True)])
    assert fetched == ["a", "c"]
