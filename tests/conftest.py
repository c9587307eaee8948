from __future__ import annotations

import functools
import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: each worker of xdist has one core

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Forked, Ranks, run_command
from xdist.scheduler import LoadScopeScheduling

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"

# Folders and files whose tests share something costly: a trained model, ranks that wait. Groups
# begin before single tests, so files with a long test are groups too: none is left for the end.
GROUPS = {
    "diagnose": ("diagnose",),
    "hub": ("hub",),
    "leaderboard": ("leaderboard",),
    "bench": ("bench",),
    "ranks": (
        *("test_distributed.py", "test_unused_parameters.py", "test_batchnorm.py"),
        *("test_rows.py", "test_overlap.py", "test_groups.py"),
    ),
    "shards": ("shards", "test_stream_recipes.py"),
    "cifar": ("test_cifar.py",),
    "prepare": ("test_prepare.py",),
    "resume": ("test_resume.py",),
    "checkpoint": ("test_checkpoint.py",),
    "grids": ("test_grid.py", "test_grid_jobs.py"),
    "logs": ("logs",),
    "elastic": ("test_elastic.py",),
    "torchrun": ("test_torchrun.py",),
    "cli": ("cli",),
    "import": ("test_import.py",),
    "packaging": ("test_packaging.py",),
}

_asked: set[str] = set()  # vectors that the running test has looked up


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--vectors", action="store_true", help="show which test vectors no passed test asked for"
    )


class Groups(LoadScopeScheduling):
    """Gives all tests of a group to one worker, and other tests to whoever is free.

    ``--dist loadgroup`` does not do it: pytest 9.2 ignores the names that xdist 3.8 gives tests.
    """

    def _split_scope(self, nodeid: str) -> str:
        parts = nodeid.partition("::")[0].split("/")
        found = (group for group, names in GROUPS.items() if set(names) & set(parts))
        return next(found, nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    return Groups(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _asked.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call":  # what a report carries comes back from the worker that made it
        report.user_properties.extend(("vector", name) for name in sorted(_asked))
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.getoption("--vectors"):
        passed = terminalreporter.getreports("passed")
        covered = {v for r in passed for key, v in r.user_properties if key == "vector"}
        names = set(_vectors())
        terminalreporter.write_line(f"vectors: {len(names & covered)}/{len(names)}")
        for name in sorted(names - covered):
            terminalreporter.write_line(f"missing: {name}")


@functools.cache
def _vectors() -> dict[str, dict[str, Any]]:
    files = (HERE / "vectors.json", HERE / "vectors_2.json")
    return {v["name"]: v for f in files for v in json.loads(f.read_text())["vectors"]}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch  # not above: the process that only hands tests to workers does without

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no curves, which would take as long as a short training."""
    monkeypatch.setattr("ltbench.train.curves._picture", lambda *_: b"")


@pytest.fixture(scope="session")
def vector() -> Callable[[str], dict[str, Any]]:
    """Look up a numeric test vector (values computed with the authors' code) by name."""

    def look_up(name: str) -> dict[str, Any]:
        _asked.add(name)
        return _vectors()[name]

    return look_up


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images that some tests need; absent in a plain checkout."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the image archives in {folder}")
    return folder


@pytest.fixture
def fork() -> Iterator[Callable[..., Forked]]:
    """Start a function in a process of its own, which ends with the test at the latest."""
    started: list[Forked] = []

    def start(function: Callable[..., object], *args: Any, **more: Any) -> Forked:
        started.append(Forked(function, *args, **more))
        return started[-1]

    yield start
    for process in started:
        process.end()


@pytest.fixture
def command(fork: Callable[..., Forked]) -> Callable[..., Forked]:
    """Start `ltbench` with some words: ``command("run", "recipe=ce", env={"RANK": "0"})``."""

    def start(*words: str, **more: Any) -> Forked:
        return fork(run_command, words, **more)

    return start


@pytest.fixture(scope="session")
def two_processes() -> Iterator[Ranks]:
    """Two ranks, for all tests of this worker."""
    ranks = Ranks(2)
    yield ranks
    ranks.end()
