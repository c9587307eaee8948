"""The measurements run, say what they measured, and refuse what they do not know."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ltbench import cli
from ltbench.bench import resources, solvers, steps
from ltbench.class_gradients.engine import HELD, Engine
from ltbench.errors import UserError

SMALL = steps.Case("resnet20_cifar", classes=4, batch=16, pixels=16)


def test_every_pipeline_takes_a_step_and_plain_is_the_unit():
    times = steps.measure(SMALL, rounds=1)
    assert [t.pipeline for t in times] == list(steps.PIPELINES)
    assert times[0].ratio == 1.0
    assert all(t.milliseconds > 0 and t.spread[0] <= t.ratio <= t.spread[1] for t in times)


@pytest.mark.parametrize("pipeline", ["fast", "certified", "exact", "torchjd"])
def test_pipelines_do_the_same_work(pipeline):
    """A pipeline that skipped something would be quick and wrong: their updates must agree."""
    bench = steps.Steps(SMALL)
    found = {}
    for name in ("exact", pipeline):
        run, update = bench.make(name)
        update.config = update.config.model_copy(update={"collapse_weight": 0.0})
        bench.step(run, update)
        found[name] = np.concatenate([p.grad.flatten().numpy() for p in run.parameters])
    a, b = found["exact"], found[pipeline]
    assert a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b)


@pytest.mark.parametrize("pipeline", ["fast", "certified", "exact"])
def test_half_precision_forward_passes_give_nearly_the_same_update(pipeline):
    found = []
    for precision in ("fp32", "bf16"):
        bench = steps.Steps(SMALL, precision=precision)
        run, update = bench.make(pipeline)
        bench.step(run, update)
        found.append(np.concatenate([p.grad.flatten().numpy() for p in run.parameters]))
        assert all(p.grad.dtype == p.dtype for p in run.parameters)
    a, b = found
    assert a @ b > 0.97 * np.linalg.norm(a) * np.linalg.norm(b)


def test_captured_matrices_are_those_of_real_gradients():
    ten, many = solvers.captured_gram(10), solvers.captured_gram(120)
    for gram in (ten, many):
        assert np.linalg.eigvalsh(gram).min() > -1e-6 * gram.diagonal().max()
        assert (gram < 0).any()  # there are conflicts to resolve
    # Groups of images of a digit add up to it, and all of them to the same average gradient.
    assert many.sum() == pytest.approx(ten.sum(), rel=1e-3)


@pytest.mark.parametrize("size", [10, 50])
def test_solvers_are_timed_and_judged_from_outside(size):
    found = {s.solver: s for s in solvers.measure((size,), budget=0.05)}
    assert found["cagrad"].gap < 1e-7
    assert found["mgda"].gap < 1e-7
    assert found["cagrad by cvxpy"].gap < 1e-2
    assert np.isnan(found["epo"].gap)


@pytest.mark.parametrize("size", [10, 50, 100, 365, pytest.param(1000, marks=pytest.mark.slow)])
def test_cagrad_is_no_worse_than_cvxpy_on_captured_matrices(size):
    from ltbench.moo.cagrad import CAGrad

    gram = solvers.captured_gram(size)
    gram /= gram.diagonal().mean()
    slope = solvers.C * gram.mean() ** 0.5

    def value(w):
        return w @ gram.mean(axis=1) + slope * np.sqrt(max(w @ gram @ w, 0.0))

    ours = CAGrad(CAGrad.Config(c=solvers.C)).solve(gram)
    assert ours.gap < 1e-10
    assert value(ours.weights) <= value(solvers._by_cvxpy(gram).weights) + 1e-9


def test_traffic_counts_what_the_engine_holds():
    small, large = resources.traffic("resnet32_cifar", "last", (10, 1000))
    assert small.parameters == 351_488
    assert small.exact == 4 * 11 * small.parameters
    assert small.plain < small.fast < small.exact / 4
    assert large.fast < HELD
    rows = 9 * 64 * 64 + 64 * 32 + 20 * 64 + 0  # nine 64-channel weights, one of 32, the vectors
    from ltbench.backbones.base import create_backbone

    net = create_backbone("resnet32_cifar")
    assert Engine(net, net.parameters_of("last")).entries(12) == rows


def test_command_line(tmp_path):
    out = tmp_path / "figures.json"
    words = "what=steps backbone=resnet20_cifar batch=8 pixels=16 rounds=1 pipelines=plain,fast"
    result = CliRunner().invoke(cli.cli, ["bench", "plot", *words.split(), "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "fast" in result.output
    assert [row["pipeline"] for row in json.loads(out.read_text())["steps"]] == ["plain", "fast"]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("what=stepz", "did you mean `steps`"),
        ("clases=10", "did you mean `classes`"),
        ("rounds=0", "whole number from 1"),
        ("pipelines=plain,fastest", "found `fastest`"),
        ("what=agreement", "needs `model="),
    ],
)
def test_wrong_words_are_told(word, told):
    result = CliRunner().invoke(cli.cli, ["bench", "plot", word])
    assert isinstance(result.exception, UserError)
    assert told in str(result.exception)
