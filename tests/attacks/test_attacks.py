"""A sample of the attacks, and all of them where there is time; `python -m tests.attacks`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Forked

from ltbench.errors import UserError
from tests.attacks.engine import CAUGHT, HUNG, RIGHT, SILENT, TRACEBACK, Row, run_row, table

USES = ("right", "caught", "other", "raises", "exits", "sleeps", "eats", "dies")


def honest(root: Path) -> None:
    (root / "use").write_text("right")


def damage(root: Path, rng: random.Random, number: int) -> None:
    (root / "use").write_text(USES[number])


def use(root: Path) -> str:
    kind = (root / "use").read_text()
    if kind == "caught":
        raise UserError("needed is this, found that; do so")
    if kind == "raises":
        raise KeyError("x")
    if kind == "exits":
        raise SystemExit(1)
    if kind == "sleeps":
        time.sleep(60)
    if kind == "eats":
        return str(len(bytearray(2**34)))
    if kind == "dies":
        import os

        os.kill(os.getpid(), 9)
    return "wrong" if kind == "other" else "right"


def test_outcomes_are_told_apart(tmp_path: Path) -> None:
    count = run_row(Row("r", 8, honest, damage, use, seconds=0.2), len(USES), 0, tmp_path)
    found = {RIGHT: 1, CAUGHT: 1, SILENT: 1, TRACEBACK: 3, HUNG: 2}
    assert (dict(count.outcomes), count.tried, count.bad) == (found, len(USES), 6)
    assert "| r | 8 | 1 | 1 | 1 | 3 | 2 |" in table([count])


def sample(folder: str) -> None:
    from tests.attacks.__main__ import all_rows

    for number, row in enumerate(row for row in all_rows() if row.sample):
        count = run_row(row, row.sample, 1, Path(folder) / str(number))
        assert count.tried == row.sample
        print(*count.examples, sep="\n", end="")


def test_a_sample_of_attacks(tmp_path: Path, fork: Callable[..., Forked]) -> None:
    """Nothing is silently wrong, no traceback, no hang; in a process that has trained nothing."""
    process = fork(sample, str(tmp_path))
    found, errors = process.communicate()
    assert process.returncode == 0, errors
    assert not found


@pytest.mark.slow
def test_all_attacks(capsys: pytest.CaptureFixture[str]) -> None:
    from tests.attacks.__main__ import all_rows, main

    assert sum(row.tries for row in all_rows()) >= 2000
    code = main([])
    assert code == 0, capsys.readouterr().out
