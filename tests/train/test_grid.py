"""Grids of recipes and seeds, and shortened schedules."""

from __future__ import annotations

import signal
import time

import pytest
from click.testing import CliRunner

from ltbench import get_recipe
from ltbench.cli import app as cli
from ltbench.errors import UserError
from ltbench.train import grid

THIN = "backbone={name: resnet20_cifar, args: {widths: [4, 8, 16]}}"
FAST = ["epochs=1", THIN, "data.image_size=8", "run.max_steps=2", "run.device=cpu"]


def test_a_budget_scales_all_that_counts_epochs():
    full = get_recipe("ldam_drw_plot_cifar10")
    short = get_recipe("ldam_drw_plot_cifar10", "epochs=20")
    stage, before = short.stages[0], full.stages[0]
    assert (before.epochs, stage.epochs) == (200, 20)
    assert before.schedule.milestones == (160, 180)
    assert stage.schedule.milestones == (16, 18)
    assert (before.method.config.reweight_from, stage.method.config.reweight_from) == (160, 16)
    assert (before.update.config.epochs, stage.update.config.epochs) == (50, 5)
    assert stage.schedule.warmup == 1  # never rounded away
    assert stage.optim == before.optim
    assert short.digest != full.digest
    assert get_recipe("ldam_drw_plot_cifar10", "epochs=200").digest == full.digest


def test_what_is_said_beside_a_budget_stands():
    given = ["stages.1.epochs=30", "stages.0.update.epochs=7", "stages.0.schedule.milestones=[9]"]
    recipe = get_recipe("crt_mixup_plot_cifar100", "epochs=20", *given)
    mixup, crt = recipe.stages
    assert (mixup.epochs, mixup.update.config.epochs, mixup.schedule.milestones) == (20, 7, (9,))
    assert mixup.schedule.warmup == 1  # was not said
    assert crt.epochs == 30
    assert get_recipe("crt_mixup_plot_cifar100", "epochs=20").stages[1].epochs == 3
    for words in (["stages.0.epochs=400"], ["stages.1.epochs=300"]):
        with pytest.raises(UserError, match="both say how long the longest stage is"):
            get_recipe("crt_mixup_cifar100", "epochs=20", *words)
    with pytest.raises(UserError, match="both say how long"):
        get_recipe("ce_cifar10", "epochs=20", stages__0__epochs=10)


def test_no_stage_is_so_short_that_its_rate_is_zero_throughout():
    short = get_recipe("lws_cifar10", "epochs=12")  # the last epoch of its stage 2 is at rate 0
    assert short.stages[1].epochs == 2
    with pytest.warns(UserWarning, match="learns nothing.* give it at least 2"):
        get_recipe("lws_cifar10", "stages.1.epochs=1")


@pytest.mark.parametrize("word", ["epochs=0", "epochs=x", "epochs=1.5", "epochs=true"])
def test_a_wrong_budget_is_one_line(word):
    with pytest.raises(UserError, match="`epochs`: expected a whole number") as caught:
        get_recipe("ce_cifar10", word)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.usefixtures("no_picture")
def test_a_grid_runs_skips_and_averages(tmp_path):
    words = ["recipe=quickstart,ce", "seed=0,1", "data=digits_lt", *FAST, f"out={tmp_path}"]
    first = CliRunner().invoke(cli.cli, ["run", *words])
    assert first.exit_code == 0, first.output
    assert "4 done" in first.output
    records = sorted(tmp_path.glob("*/seed*/record.json"))
    assert len(records) == 4
    stamps = [p.stat().st_mtime_ns for p in records]
    again = CliRunner().invoke(cli.cli, ["run", *words])
    assert "4 were done before" in again.output
    assert [p.stat().st_mtime_ns for p in records] == stamps
    assert again.output.count("±") >= 2  # mean and standard deviation of each recipe's two seeds


def test_mistakes_are_found_before_anything_runs(tmp_path):
    with pytest.raises(UserError) as caught:
        grid.make_grid(["quickstart", "quikstart", "ce"], [0], ["stages.0.epoch=3"])
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["quickstart", "quikstart", "ce"]
    assert all("\n" not in line for line in lines)


def test_a_failing_run_does_not_stop_the_others(tmp_path):
    from ltbench.records.record import Record

    cells = grid.make_grid(["ce", "mislas"], [0, 1], ["data=digits_lt"])

    def run(recipe):
        if recipe.name == "ce":
            raise UserError("another process is running in x" if recipe.seed else "lr too high")
        return Record.model_construct(), True

    done = grid.run_grid(cells, run)
    assert [c.outcome for c in done] == ["failed", "elsewhere", "done", "done"]
    assert done[0].problem == "lr too high"


def test_grid_files(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text("recipes: [ce, mislas]\nseeds: [0, 3]\nset: {epochs: 4, data: digits_lt}\n")
    recipes, seeds, shared = grid.read_grid(file)
    cells = grid.make_grid(recipes, seeds, shared=shared)
    assert [(c.recipe.name, c.recipe.seed) for c in cells] == [
        *(("ce", 0), ("ce", 3)),
        *(("mislas", 0), ("mislas", 3)),
    ]
    assert {c.recipe.stages[0].epochs for c in cells} == {4}
    for content in ("recipes: []", "recipe: [ce]", "recipes: [ce]\nseed: [1]", "a: ["):
        file.write_text(content)
        with pytest.raises(UserError, match=r"grid\.yaml"):
            grid.read_grid(file)
    with pytest.raises(UserError, match="`seed`: expected whole numbers"):
        grid.read_seeds(["0", "x"])


@pytest.mark.usefixtures("no_picture")
def test_a_killed_grid_goes_on(tmp_path, command):
    words = ["recipe=quickstart", "seed=0,1", *FAST, f"out={tmp_path}"]
    process = command("run", *words)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/seed0/record.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    done = CliRunner().invoke(cli.cli, ["run", *words])
    assert done.exit_code == 0, done.output
    assert "done before" in done.output
    assert len(list(tmp_path.glob("*/seed*/record.json"))) == 2
