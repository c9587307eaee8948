from __future__ import annotations

import functools
import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: each worker of xdist has one core

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"

_asked: set[str] = set()  # vectors that the running test has looked up


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--vectors", action="store_true", help="show which test vectors no passed test asked for"
    )


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
    vectors = json.loads((HERE / "vectors.json").read_text())["vectors"]
    return vectors if isinstance(vectors, dict) else {v["name"]: v for v in vectors}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


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
