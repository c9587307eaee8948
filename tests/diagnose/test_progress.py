from __future__ import annotations

import io
import itertools
import re

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from rich.console import Console

from ltbench.cli.diagnose import diagnose
from ltbench.config import schema
from ltbench.diagnose import progress
from ltbench.diagnose.base import Diagnostic
from ltbench.diagnose.conflicts import Conflicts
from ltbench.diagnose.hessian import Hessian
from ltbench.diagnose.landscape import Landscape
from ltbench.diagnose.progress import estimate_line, estimates, watching
from ltbench.diagnose.run import PAGE, run
from ltbench.diagnose.tsne import Tsne, embed
from ltbench.errors import UserError


class Counted(Diagnostic):
    title, shown, computed, see = "Counted", "Shown.", "Computed.", "See."

    def measure(self, subject):
        step = self.stepper(3)
        for _ in range(3):
            step()
        return {"numbers": pd.DataFrame({"value": [1.5]})}

    def describe(self, tables):
        return ["one number was counted."]

    def draw(self, results):
        return {}


class Stopped(Counted):
    title = "Stopped"

    def measure(self, subject):
        raise KeyboardInterrupt


class Hopeless(Counted):
    def estimate(self, subject, forward):
        raise UserError("cannot be measured")


@pytest.mark.parametrize(
    ("cls", "options", "total"),
    [
        (Conflicts, {"batches": 2, "checkpoints": False}, 2),
        (Hessian, {"images": 2, "steps": 2, "top": 1, "vectors": 2, "classes": (0,)}, 4),
        (Landscape, {"images": 2, "points": 3, "line": 3}, 12),
    ],
)
def test_long_measurements_count_their_steps(subject, cls, options, total):
    diagnostic = cls(cls.Options(**options))
    seen: list[tuple[int, int]] = []
    diagnostic.report = lambda done, of: seen.append((done, of))
    diagnostic.measure(subject)
    assert seen == [(i, total) for i in range(total + 1)]


def test_iterations_of_tsne_are_counted_and_nothing_is_printed(capsys):
    seen: list[int] = []
    features = np.random.default_rng(0).normal(size=(20, 4))
    points, _ = embed(features, iterations=300, report=lambda done, total: seen.append(done))
    assert seen[0] == 0
    assert seen[-1] == 300
    assert seen == sorted(seen)
    assert len(seen) > 4
    assert capsys.readouterr().out == ""
    assert np.array_equal(points, embed(features, iterations=300)[0])


def test_the_estimate_scales_with_the_work(subject, monkeypatch):
    monkeypatch.setattr(progress, "timed", lambda work: work() and 3.2)
    few, many = (Landscape(Landscape.Options(images=2, points=n, line=n)) for n in (3, 9))
    found = estimates({"few": few, "many": many, "hopeless": Hopeless(schema.Config())}, [subject])
    assert 0 < found["few"] < found["many"]
    assert found["hopeless"] == 0
    assert Tsne(Tsne.Options()).estimate(subject, 1.0) > 100
    line = estimate_line({"a": 200.0, "b": 0.1, "c": 12.0})
    assert line == (
        "estimated time: 3.5 min and drawing (a 3.3 min, c 12 s, "
        "the others less than a second each)"
    )


def test_a_log_has_a_line_now_and_then_and_a_terminal_a_bar(monkeypatch):
    clock = itertools.count(step=10.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    with watching(Console(file=file, width=80)) as count:
        for done in range(6):
            count("hessian", done, 5)
    lines = file.getvalue().splitlines()
    assert lines == ["hessian: 2 of 5, about 30 s left", "hessian: 4 of 5, about 10 s left"]
    monkeypatch.undo()
    file = io.StringIO()
    with watching(Console(file=file, width=80, force_terminal=True)) as count:
        count("hessian", 0, 5)
        count("hessian", 2, 5)
    assert re.search(r"hessian.*2/5", file.getvalue())


def test_interrupted_what_is_finished_is_kept(subject, tmp_path):
    lines: list[str] = []
    three = {"counted": Counted, "stopped": Stopped, "never": Counted}
    with pytest.raises(KeyboardInterrupt):
        run(
            {name: cls(schema.Config()) for name, cls in three.items()},
            [subject],
            tmp_path,
            lines.append,
        )
    page = (tmp_path / PAGE).read_text()
    assert "One number was counted." in page
    assert "interrupted before: stopped, never" in page
    assert pd.read_csv(tmp_path / "counted" / "ce" / "numbers.csv")["value"].tolist() == [1.5]
    assert "interrupted; finished: counted; left out: what=stopped,never" in lines


def test_the_command_says_how_long_and_quiet_only_where(make_subject, tmp_path):
    folder = make_subject().folder
    words = [f"model={folder}", "what=shift,trajectory", "device=cpu", f"out={tmp_path / 'out'}"]
    loud = CliRunner().invoke(diagnose, words, catch_exceptions=False).output
    assert "estimated time: " in loud
    assert re.search(r"^shift: tiny_ce: ", loud, re.MULTILINE)
    assert re.search(r"trajectory: .* not measured: needs the log .*diagnose\.every=10", loud)
    quiet = CliRunner().invoke(diagnose, [*words, "quiet=true"], catch_exceptions=False).output
    assert quiet == f"{tmp_path / 'out' / PAGE}\n"
