"""Augmentation on a device makes the CPU's pixels and never makes the host wait."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import runtime

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(bool(runtime.missing()), reason=runtime.missing())
KERNELS = {  # at most
    "files, evaluation": 4,
    "files, augmented": 8,
    "files, augmented, colours": 48,
    "encoded, evaluation": 40,
    "encoded, augmented": 40,
    "in memory, standard": 16,
    "in memory, rotate": 46,
    "in memory, strong": 208,
    "in memory, sim": 273,
    "in memory, sim_hue": 213,
}


def test_batches_are_the_cpus_and_nothing_waits():
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.augmentation"],
        cwd=ROOT,
        env=runtime.environment() | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *rows, last = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {row["case"] for row in rows} == set(KERNELS)
    for row in rows:
        assert not row["waits"], row
        assert not row["errors"], row
        assert 0 < row["kernels"] <= KERNELS[row["case"]], row
    assert last == {"equal": [True] * len(rows)}
