"""Steps in CUDA graphs, on a pretended GPU: torch's own captures begin, end and are replayed.

The runtime's graphs are empty (`stub/cudart.c`): streams, the order of calls and the checks before
a capture are real, numbers are not (those are in `tests/train/test_graphs.py`).
"""

from __future__ import annotations

import pytest
import toys

from tests.gpu import runtime
from tests.gpu.test_waits import rows

MOVES = "moves values between cpu and cuda"
EAGER = {  # part of the reason why steps are not captured, by method and update
    "rsg": {"plain": MOVES, "sam": MOVES, "fast": MOVES},
    "gpaco": dict.fromkeys(("plain", "sam", "fast"), "the loss changes `_keys`"),
    "paco": {"fast": "depend on each other's samples"},
    "bcl": {"fast": "depend on each other's samples"},
}
PHASES = {
    "plain": ["plain"],
    "sam": ["SAM, radius 0.05"],
    "fast": ["PLOT, class gradients", "PLOT, direction"],
}
LAUNCHES = 25  # of the host in a replayed step of ResNet-32: batch, optimizer, statistics
pytestmark = pytest.mark.skipif(bool(runtime.missing()), reason=runtime.missing())


def check(found):
    for row in found:
        if "refused" in row:  # the stage trains no backbone, and the part is one of its stages
            assert row["update"] == "fast", row
            continue
        assert not row["errors"], row
        reason = EAGER.get(row["method"], {}).get(row["update"], "")
        assert row["captured"] == ([] if reason else PHASES[row["update"]]), row
        assert reason in row["uncaptured"], row
        assert bool(reason) == bool(row["uncaptured"]), row


def test_steps_of_some_methods_are_captured():
    found = rows(("ce", "mixup", "gpaco"), tuple(PHASES), "--graphs")
    check(found)
    waits = [sum(n for n, *_ in row["waits"]) for row in found if row["method"] != "gpaco"]
    assert waits == [0, 0, 1, 0, 0, 1]  # as without graphs


@pytest.mark.slow
def test_steps_of_all_other_methods_are_captured():
    check(rows([*toys.STAGE1, *toys.STAGE2], tuple(PHASES), "--graphs"))


@pytest.mark.slow
def test_the_host_launches_little_but_the_graph():
    for row in rows(("ce",), tuple(PHASES), "--graphs", "--backbone", "resnet32_cifar"):
        assert 0 < row["kernels"] <= LAUNCHES, row
