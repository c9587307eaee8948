"""A step keeps the GPU busy: the host waits for it nowhere but where the numbers say.

The device is pretended (`pretend.py`), so this runs where there is none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import toys

from tests.gpu import runtime

ROOT = Path(__file__).parents[2]
READ = 1  # the Gram matrix
# Methods whose loss couples the samples of a batch: PLOT takes exact class gradients, for which
# the classes of the batch are read first.
COUPLED = ("paco", "bcl")
# What a method needs to read in each pass or step: sizes of groups of images, draws by label.
OWN = {
    "rsg": {"plain": 1, "sam": 2, "fast": 2, "exact": 2, "official": 2, "certified": 3},
    "m2m": dict.fromkeys(("plain", "sam", "fast", "exact", "official", "certified"), 1),
}
# Of a step of ResNet-32 with cross-entropy; two passes of SAM alone take 535.
KERNELS = {"plain": 300, "sam": 595, "fast": 600, "exact": 1060, "certified": 1040}
QUICK = ("ce", "mixup")
SAMS = ("sam", "focal_sam", "imb_sam")
pytestmark = pytest.mark.skipif(bool(runtime.missing()), reason=runtime.missing())


def rows(methods, updates, *more):
    words = [sys.executable, "-m", "tests.gpu", "--json"]
    words += ["--methods", ",".join(methods), "--updates", ",".join(updates), *more]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(methods) * len(updates)
    return found


def allowed(method, update):
    """Return the number of times the host may wait in a step."""
    reads = {**dict.fromkeys(SAMS, 0), "plain": 0, "fast": READ}.get(update, READ + 1)
    if update == "fast" and method in COUPLED:
        reads = READ + 1
    same = "sam" if update in SAMS else update
    return reads + OWN.get(method, {}).get(same, 0)


def problems(found):
    """Return a line for each step that waits too often, or that would fail on a GPU."""
    lines = []
    for row in found:
        if "refused" in row:  # the stage trains no backbone, and the part is one of its stages
            assert row["method"] in toys.STAGE2, row
            assert row["update"] not in ("plain", *SAMS), row
            continue
        name = f"{row['method']} under {row['update']}"
        lines += [f"{name}: {what} at {where}" for _, what, where in row["errors"]]
        if sum(n for n, *_ in row["waits"]) > allowed(row["method"], row["update"]):
            lines += [f"{name} waits {n} x {what} at {where}" for n, what, where in row["waits"]]
    return lines


def test_steps_of_some_methods_do_not_wait():
    found = rows(QUICK, ("plain", *SAMS, "fast"))
    assert not problems(found), "\n".join(problems(found))
    reads = [row["waits"] for row in found if row["update"] == "fast"]
    for ((n, what, where),) in reads:  # the only one, so waits are seen, with their lines
        assert (n, what) == (READ, "device to host")
        assert where.startswith("updates/pareto.py:")


@pytest.mark.slow
@pytest.mark.parametrize("update", ["plain", *SAMS, "fast", "exact", "certified"])
def test_steps_of_no_method_wait(update):
    found = rows([*toys.STAGE1, *toys.STAGE2], (update,))
    assert not problems(found), "\n".join(problems(found))


@pytest.mark.slow
def test_steps_of_resnet32_take_few_kernels():
    found = rows(("ce",), tuple(KERNELS), "--backbone", "resnet32_cifar")
    for row in found:
        assert row["kernels"] <= KERNELS[row["update"]], row
