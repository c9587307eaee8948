"""The measurements run, say what they measured, and refuse what they do not know."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ltbench.bench import resources, steps
from ltbench.class_gradients.engine import HELD, Engine
from ltbench.cli import app as cli
from ltbench.errors import UserError

SMALL = steps.Case("resnet20_cifar", classes=4, batch=16, pixels=16)
TINY = steps.Case("resnet20_cifar", classes=4, batch=4, pixels=8)


def test_every_pipeline_takes_a_step_and_plain_is_the_unit():
    times = steps.measure(TINY, rounds=1)
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


@pytest.mark.parametrize(
    "pipeline", ["fast", *(pytest.param(p, marks=pytest.mark.slow) for p in ("certified", "exact"))]
)
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


def test_traffic_counts_what_the_engine_holds():
    small, large = resources.traffic("resnet32_cifar", "last", (10, 1000))
    assert small.parameters == 351_488
    assert small.exact == 4 * 11 * small.parameters
    assert small.plain < small.fast < small.exact / 4
    assert large.fast < HELD
    rows = 9 * 64 * 64 + 64 * 32 + 20 * 64 + 0  # nine 64-channel weights, one of 32, the vectors
    from ltbench.models.backbone import create_backbone

    net = create_backbone("resnet32_cifar")
    assert Engine(net, net.parameters_of("last")).entries(12) == rows


def test_command_line(tmp_path):
    out = tmp_path / "figures.json"
    words = ["what=steps", "backbone=resnet20_cifar", "batch=4", "pixels=8"]
    words += ["rounds=1", "threads=1", "pipelines=plain,fast"]
    result = CliRunner().invoke(cli.cli, ["bench", "plot", *words, "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert "fast" in result.output
    assert [row["pipeline"] for row in json.loads(out.read_text())["steps"]] == ["plain", "fast"]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("what=stepz", "did you mean `steps`"),
        ("clases=10", "did you mean `classes`"),
        ("rounds=0", "`rounds`: should be greater than or equal to 1"),
        ("pipelines=plain,fastest", "did you mean"),
        ("what=agreement", "needs `model="),
        ("present=20", "`present`: expected at most classes=10, found 20"),
        ("device=gpu", "did you mean `cuda`"),
    ],
)
def test_wrong_words_are_told(word, told):
    result = CliRunner().invoke(cli.cli, ["bench", "plot", word])
    assert isinstance(result.exception, UserError)
    assert told in str(result.exception)


def test_a_network_of_another_image_size_is_one_line():
    case = steps.Case("vit_tiny_patch16_224", classes=4, batch=2, pixels=32)
    with pytest.raises(UserError, match="does not take images of 32 x 32 pixels"):
        steps.Steps(case).make("plain")
