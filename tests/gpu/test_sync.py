"""On a GPU synchronised batch normalisation takes the fused kernels, and the host does not wait."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from emulated_norm import OPERATIONS

from tests.gpu import runtime

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(bool(runtime.missing()), reason=runtime.missing())


def test_kernels_are_fused_except_in_forward_mode():
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.sync"],
        cwd=ROOT,
        env=runtime.environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    step, forward = [json.loads(line) for line in done.stdout.splitlines() if line[0] == "{"]
    assert set(OPERATIONS) <= set(step["kernels"])
    assert sum(step["kernels"].values()) <= 16
    assert len(step["collectives"]) == 2
    assert not set(OPERATIONS) & set(forward["kernels"])
    for found in (step, forward):
        assert not found["waits"]
        assert not found["errors"]
