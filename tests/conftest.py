from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"

_asked: set[str] = set()  # vectors that the running test has looked up
_covered: set[str] = set()  # and those of tests that passed


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
    if call.when == "call" and report.passed:
        _covered.update(_asked)
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.getoption("--vectors"):
        names = set(_vectors())
        terminalreporter.write_line(f"vectors: {len(names & _covered)}/{len(names)}")
        for name in sorted(names - _covered):
            terminalreporter.write_line(f"missing: {name}")


@functools.cache
def _vectors() -> dict[str, dict[str, Any]]:
    vectors = json.loads((HERE / "vectors.json").read_text())["vectors"]
    return vectors if isinstance(vectors, dict) else {v["name"]: v for v in vectors}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS", "2"))))


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
