"""`ltbench bench train`: both pipelines train the same, and its figures are what they say."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
import toys
from click.testing import CliRunner

from ltbench.bench import pipeline as pipelines
from ltbench.bench import train, train_report
from ltbench.bench.pipeline import FAST, REFERENCE, Pipeline
from ltbench.bench.reference import exact_recipe
from ltbench.bench.train import PHASES, Clock
from ltbench.cli import app as cli
from ltbench.config.files import get_recipe
from ltbench.errors import UserError
from ltbench.train.claim import RunFolder
from ltbench.train.progress import NoProgress
from ltbench.train.trainer import Trainer

CPU = torch.device("cpu")
THIN = "backbone={name: resnet20_cifar, args: {widths: [4, 8, 16]}}"
WORDS = (THIN, "data.image_size=8", "run.workers=1", "run.device=cpu")


def recipe(*words: str):
    return get_recipe("quickstart", *WORDS, *words)


@pytest.fixture(scope="module")
def data():
    return recipe().data.config.load()


def test_fast_is_what_a_run_does_bit_for_bit(data, tmp_path):
    made = recipe("epochs=2", f"out={tmp_path}")  # 2 epochs with PLOT, then a stage on the method
    run = Trainer(made, data, RunFolder(made), CPU, NoProgress()).fit()
    ours = pipelines.trained(FAST, made, data, CPU)
    found, wanted = ours.state_dict(), run.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_blocks_of_steps_are_one_training(data):
    made = recipe("stages.0.update=plain")
    whole, cut = (Pipeline(FAST, made, data, CPU) for _ in range(2))
    steps = whole.run.per_epoch + 2
    assert whole.train(steps) == len(data.train) + 2 * 64
    for _ in range(steps):
        cut.train(1)
    assert (whole.epoch, whole.step) == (cut.epoch, cut.step) == (1, 2)
    for a, b in zip(whole.run.method.parameters(), cut.run.method.parameters(), strict=True):
        assert torch.equal(a, b)


UPDATES = {"plot": (), "sam": ("stages.0.update=sam",), "plain": ("stages.0.update=plain",)}


@pytest.mark.parametrize("update", UPDATES)
def test_first_steps_agree_to_float_tolerance(data, update, monkeypatch):
    """A smooth network: a ReLU at its kink may go either way, and moves gradients by a percent."""
    monkeypatch.setattr("ltbench.methods.build.create_backbone", lambda *a, **k: toys.backbone())
    made = exact_recipe(recipe(*UPDATES[update], "stages.0.schedule.warmup=0"))
    ours, theirs = (Pipeline(name, made, data, CPU) for name in (FAST, REFERENCE))
    apart = pipelines.first_steps(ours, theirs, 3)
    assert apart.loss < 1e-5
    assert apart.weights < 1e-5
    assert 0 < apart.moved < 1e-4
    assert isinstance(theirs.loss, float)


@pytest.mark.parametrize("update", [pytest.param("sam", marks=pytest.mark.slow), "plot", "plain"])
def test_first_steps_of_a_residual_network_agree_in_double_precision(data, update):
    made = exact_recipe(recipe(*UPDATES[update], "stages.0.schedule.warmup=0"))
    ours, theirs = (Pipeline(name, made, data, CPU, double=True) for name in (FAST, REFERENCE))
    assert next(ours.run.method.parameters()).dtype == torch.float64
    apart = pipelines.first_steps(ours, theirs, 3)
    assert apart.loss < 1e-8  # SciPy's SLSQP ends within its tolerance
    assert apart.moved < 1e-6


def test_another_seed_does_not_agree(data):
    """The comparison sees a difference where there is one."""
    plain = recipe("stages.0.update=plain")
    ours = Pipeline(FAST, plain.model_copy(update={"seed": 1}), data, CPU)
    apart = pipelines.first_steps(ours, Pipeline(REFERENCE, plain, data, CPU), 1)
    assert apart.loss > 1e-3
    assert apart.weights > 0.1


def test_phases_add_up_and_each_counts_its_own(data, monkeypatch):
    """Time put into one phase shows there and not in the phase around it."""
    pipeline = Pipeline(FAST, recipe(), data, CPU)
    pipeline.train(1)
    loss, step = pipeline.run.loss, pipeline.run.optimizer.step
    solve = pipeline.run.update.solver.solve
    pause = {"forward": 0.05, "update": 0.2, "solver": 0.4}

    def slow(call, phase):
        return lambda *a, **k: (time.sleep(pause[phase]), call(*a, **k))[1]

    pipeline.run.loss = slow(loss, "forward")
    pipeline.run.optimizer.step = slow(step, "update")
    pipeline.run.update.solver.solve = slow(solve, "solver")
    clock = Clock(CPU)
    begun = time.perf_counter()
    with clock.watching(pipeline):
        pipeline.train(1)
    passed = time.perf_counter() - begun
    assert tuple(clock.seconds) == PHASES
    assert all(seconds > 0 for seconds in clock.seconds.values())
    assert sum(clock.seconds.values()) == pytest.approx(passed, rel=0.1)
    assert clock.seconds["forward"] > 2 * pause["forward"]  # a pass for the climb, and one after
    assert clock.seconds["update"] > pause["update"]
    assert clock.seconds["solver"] > pause["solver"]
    # What was put in the way is out of it again.
    assert "counted" not in {
        f.__name__
        for f in (
            torch.autograd.backward,
            torch.autograd.grad,
            pipeline.run.loss,
            pipeline.run.optimizer.step,
            pipeline.run.update.solver.solve,
        )
    }
    assert "next_batch" not in vars(pipeline)


def test_measured_figures_hold_together(data):
    made = recipe("stages.0.update=plain", "stages.0.batch_size=16")
    pipelines = [Pipeline(name, made, data, CPU) for name in (FAST, REFERENCE)]
    fast, reference = train.measure(pipelines, rounds=2, steps=1)
    for speed in (fast, reference):
        assert speed.images_per_second == pytest.approx(16e3 / speed.milliseconds, rel=0.5)
        assert 0 < speed.busy < 1.5
        assert speed.phases["solver"] == 0
        assert speed.phases["backward"] > 0
    assert fast.spread[0] <= fast.ratio <= fast.spread[1]
    assert reference.spread == (1.0, 1.0)
    # Each round, and warming up, is one step of each; the queue of loader processes is empty.
    assert [p.step for p in pipelines] == [1 + 2 + 2] * 2


def test_steps_stay_in_the_window_of_the_update(data):
    made = recipe("stages.0.update.epochs=1", "stages.0.batch_size=192")
    (pipeline,) = pipelines = [Pipeline(FAST, made, data, CPU)]
    train.measure(pipelines, rounds=1, steps=pipeline.run.per_epoch)
    assert pipeline.epoch == 0


def test_a_later_stage_is_built_on_the_one_before(data):
    pipeline = Pipeline(FAST, recipe(), data, CPU, stage=1)
    names = {
        n.partition(".")[0] for n, p in pipeline.run.method.named_parameters() if p.requires_grad
    }
    assert names == {"head"}
    pipeline.train(1)


def run(*words: str):
    return CliRunner().invoke(cli.cli, ["bench", "train", *words])


@pytest.mark.slow  # a process that has to import everything
def test_peak_memory_is_that_of_the_steps():
    made = recipe("data.image_size=32", "backbone=resnet20_cifar", "stages.0.update=plain")
    # What 64 images leave in 20 layers for the backward pass, two maps of floats a layer.
    maps = 64 * 4 * 2 * (7 * 16 * 32**2 + 6 * 32 * 16**2 + 6 * 64 * 8**2) / 2**20
    assert maps + 100 < train.peak(FAST, made, steps=1) < 4000


def test_speed_on_the_command_line(tmp_path, monkeypatch):
    peaks = {FAST: 10.0, REFERENCE: 20.0}
    monkeypatch.setattr(train_report, "peak", lambda name, *a, **k: peaks[name])
    out, trace = tmp_path / "figures.json", tmp_path / "trace.json"
    words = [*WORDS, "recipe=quickstart", "rounds=1", "steps=1", "threads=1"]
    result = run(*words, "--json", str(out), "--profile", str(trace))
    assert result.exit_code == 0, result.output
    assert "fast / reference: " in result.output
    assert "goal" not in result.output
    figures = json.loads(out.read_text())
    assert [row["pipeline"] for row in figures["speed"]] == [FAST, REFERENCE]
    assert [row["mebibytes"] for row in figures["speed"]] == [10.0, 20.0]
    assert figures["update"] == "plot"
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::conv2d" in names
    assert {p.name for p in tmp_path.iterdir()} == {"figures.json", "trace.json"}


def test_agreement_on_the_command_line(tmp_path):
    out = tmp_path / "figures.json"
    words = [*WORDS, "recipe=quickstart", "run.max_steps=1", "epochs=1", "seeds=2", "steps=1"]
    result = run(*words, "what=agreement", "--json", str(out))
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())["agreement"]
    first = found["first_steps"]
    assert [(r["pipeline"], r["bits"]) for r in first] == [
        *(("fast, exact", 32), ("fast, exact", 64)),
        ("fast", 32),
    ]
    assert all(row["loss"] < 1e-5 for row in first)  # the weights are still the same
    assert first[1]["moved"] < 1e-6
    assert [(r["pipeline"], r["seed"]) for r in found["runs"]] == [
        *((FAST, 0), (REFERENCE, 0)),
        *((FAST, 1), (REFERENCE, 1)),
    ]
    assert all(0 <= r["top1"] <= 1 for r in found["runs"])
    assert "±" in result.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "expected `recipe=...`, found nothing"),
        (["recipe=quickstar"], "did you mean `quickstart`"),
        (["recipe=quickstart", "rouns=3"], "did you mean `rounds`"),
        (["recipe=quickstart", "pipeline=fast"], "did you mean `pipelines`"),
        (["recipe=quickstart", "pipelines=fast,refrence"], "did you mean `reference`"),
        (["recipe=quickstart", "pipelines=fast,fast"], "each once"),
        (["recipe=quickstart", "what=sped"], "did you mean `speed`"),
        (
            ["recipe=quickstart", "rounds=0"],
            "`rounds`: should be greater than or equal to 1, found 0",
        ),
        (["recipe=quickstart", "steps=x"], "`steps`: should be a whole number"),
        (["recipe=quickstart", "steps=1", "steps=2"], "given twice"),
        (["recipe=quickstart", "stage=2"], "that trains (0, 1), found 2"),
        (["recipe=quickstart", "seeds=2"], "`seeds` is for what=agreement"),
        (["recipe=quickstart", "what=agreement"], "epochs=N"),
        (["recipe=quickstart", "run.precison=bf16"], "did you mean `precision`"),
        (["recipe=quickstart", "--profile", "nowhere/t.json"], "no folder nowhere"),
        (["recipe=bcl_cifar10", "data.root=nowhere"], "nowhere"),
    ],
)
def test_wrong_words_are_told_in_one_line(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*words)
    assert isinstance(result.exception, UserError)
    assert told in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not list(Path().iterdir())


def test_help_shows_it():
    assert "train" in CliRunner().invoke(cli.cli, ["bench", "--help"]).output
    assert "recipe=ce_cifar10" in run("--help").output
