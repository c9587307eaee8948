"""The scripts in `tools/bench` run; their figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ltbench.bench.steps import Case
from ltbench.data.samplers import Instance
from ltbench.errors import UserError
from ltbench.moo.cagrad import CAGrad

SCRIPTS = Path(__file__).parents[2] / "tools" / "bench"
sys.path.append(str(SCRIPTS))  # they import each other by name

import corpus  # noqa: E402
import data  # noqa: E402
import loading  # noqa: E402
import shards  # noqa: E402
import solvers  # noqa: E402
import watch  # noqa: E402
import workers  # noqa: E402
from rounds import OURS  # noqa: E402

GOALS = {"T1", "T2", "T3", "T4", "T5", "T6", "T7"}


@pytest.mark.slow
def test_every_goal_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_samplers", lambda: {"instance": Instance()})
    rows = [
        *loading.loading(tmp_path, images=4, rounds=1),
        *shards.reading(tmp_path, images=8, small=16, rounds=1),
        *loading.memory(images=32, rounds=1),
        *shards.packing(tmp_path, images=4, small=8, rounds=1),
        *shards.index(tmp_path, rounds=1),
    ]
    assert {row["goal"] for row in rows} == GOALS
    for row in rows:
        measured = [row[k] for k in ("images_per_second", "seconds", "ratio") if row.get(k)]
        assert measured
        assert all(value > 0 for value in measured)
    ours = [row for row in rows if row["pipeline"] == OURS and row["goal"] in ("T1", "T2")]
    assert all(row["ratio"] == 1 for row in ours)
    assert {row["pipeline"] for row in rows if row["goal"] == "T1"} > {OURS}
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_photographs_have_the_size_of_their_kind():
    for case in corpus.CASES.values():
        made = corpus.photographs(case, 4)
        mean = sum(map(len, made)) / len(made)
        assert abs(mean - case.size) < 0.25 * case.size, case


@pytest.mark.slow
def test_memory_of_a_loader_process(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "SIZES", (50, 120))
    monkeypatch.setattr(workers, "IMAGES", 20)
    first, second = workers.workers(tmp_path, steps=1)
    assert (first["case"], second["case"]) == ("50 images", "120 images")
    assert 1 < first["mib"] < 4000
    assert first["ratio"] == 1


@pytest.mark.slow
def test_the_script_prints_and_writes(tmp_path):
    words = ["what=memory", "rounds=1", f"out={tmp_path / 'figures.json'}"]
    command = [sys.executable, str(SCRIPTS / "data.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "T5" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {row["goal"] for row in figures["memory"]} == {"T5"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["what=lodaing"], "did you mean `loading`"),
        (["rounds=0"], "`rounds`"),
        (["how=fast"], "`how`: unknown key"),
    ],
)
def test_mistakes_are_one_line(words, said):
    with pytest.raises(UserError) as caught:
        data.report(words, None)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_verdicts():
    row = {"goal": "T1", "case": "c", "pipeline": "p"}
    assert data._values({**row, "ratio": 2.5, "least": 2.0})[-1] == "met"
    assert data._values({**row, "ratio": 1.5, "least": 2.0})[-1] == "missed"
    assert data._values({**row, "images_per_second": 5.0, "least": 9.0})[-1] == "missed"
    assert data._values({**row, "seconds": 0.1, "most": 0.5})[-1] == "met"
    assert data._values({**row, "ratio": 0.03, "most": 0.02})[-1] == "missed"
    assert data._values({**row, "ratio": 2.5})[-1] == ""


@pytest.mark.slow
def test_captured_matrices_are_those_of_real_gradients():
    ten, many = solvers.captured_gram(10), solvers.captured_gram(120)
    for gram in (ten, many):
        assert np.linalg.eigvalsh(gram).min() > -1e-6 * gram.diagonal().max()
        assert (gram < 0).any()  # there are conflicts to resolve
    # Groups of images of a digit add up to it, and all of them to the same average gradient.
    assert many.sum() == pytest.approx(ten.sum(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 50])
def test_solvers_are_timed_and_judged_from_outside(size):
    found = {s.solver: s for s in solvers.measure((size,), budget=0.05)}
    assert found["cagrad"].gap < 1e-7
    assert found["mgda"].gap < 1e-7
    assert found["cagrad by cvxpy"].gap < 1e-2
    assert np.isnan(found["epo"].gap)


@pytest.mark.parametrize(
    "size", [100, *(pytest.param(k, marks=pytest.mark.slow) for k in (10, 50, 365, 1000))]
)
def test_cagrad_is_no_worse_than_cvxpy_on_captured_matrices(size):
    gram = solvers.captured_gram(size)
    gram /= gram.diagonal().mean()
    slope = solvers.C * gram.mean() ** 0.5

    def value(w):
        return w @ gram.mean(axis=1) + slope * np.sqrt(max(w @ gram @ w, 0.0))

    ours = CAGrad(CAGrad.Config(c=solvers.C)).solve(gram)
    assert ours.gap < 1e-10
    assert value(ours.weights) <= value(solvers._by_cvxpy(gram).weights) + 1e-9


@pytest.mark.slow
def test_what_a_look_costs_is_measured_in_steps():
    found = watch.measure(2, Case("resnet20_cifar", classes=4, batch=8, pixels=8), rounds=1)
    assert found.every == 2
    assert found.spread[0] <= found.ratio <= found.spread[1]
    assert found.look == pytest.approx(2 * (found.ratio - 1))
