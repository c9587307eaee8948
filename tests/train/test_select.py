"""A choice on validation images: the test images are evaluated once, for the chosen values."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner, Result

from ltbench import get_recipe, run
from ltbench.cli import app as cli
from ltbench.config.selection import Select
from ltbench.errors import UserError
from ltbench.methods.base import Stream
from ltbench.records.record import Record
from ltbench.records.validation import Validation, read_selection
from ltbench.train import run as runner_module
from ltbench.train import trainer
from ltbench.train.feed import Feed, check_unseen, trained_val
from ltbench.train.grid import Cell, make_grid
from ltbench.train.select import _recorded, candidates, check_finished, choose, measure
from tests.train.validations import metrics, runner, validated

TINY = [
    "recipe=quickstart", "epochs=1", "backbone={name: resnet20_cifar, args: {widths: [4, 8, 16]}}",
    "data.image_size=8", "run.max_steps=2", "run.device=cpu", "run.threads=1", "quiet=true",
]  # fmt: skip
VALUES = ["stages.0.optim.lr=0.02,0.1", "data.val_fraction=0.1"]
CHOOSE = [*TINY, *VALUES, "select.metric=overall"]


def cells(rates: str = "0.1,0.2,0.3", seeds: tuple[int, ...] = (0, 1)) -> list[Cell]:
    words = [f"stages.0.optim.lr={rates}", "data.val_fraction=0.1", "run.evaluate=val"]
    return make_grid(["quickstart"], seeds, words)


def rate(cell: Cell) -> float:
    optim = cell.recipe.stages[0].optim
    assert optim is not None
    return optim.lr


def chosen(result, metric="balanced", rates="0.1,0.2,0.3"):
    done = runner(result)(cells(rates))
    return choose(candidates(done, Select(metric=metric)), Select(metric=metric), "grid")


def test_the_best_mean_over_seeds_wins_and_the_record_says_of_how_many():
    right = {(0.1, 0): 4, (0.1, 1): 4, (0.2, 0): 9, (0.2, 1): 1, (0.3, 0): 5, (0.3, 1): 6}
    selection = chosen(lambda c: metrics([right[rate(c), c.recipe.seed], 0, 0], [10, 5, 5]))
    facts = selection.facts
    assert [rate(cell) for cell in selection.final] == [0.3, 0.3]
    assert [cell.recipe.run.evaluate for cell in selection.final] == ["test", "test"]
    assert (facts.chosen, facts.tied, len(facts.candidates)) == (2, 1, 3)
    assert facts.candidates[1].values == {"stages.0.optim.lr": "0.2"}
    assert facts.candidates[1].by_seed == pytest.approx((0.3, 1 / 30))
    assert facts.candidates[2].score == pytest.approx(5.5 / 30)
    assert (facts.seeds, facts.val_images, facts.val_fraction) == ((0, 1), 20, 0.1)
    assert facts.split_sha256 == "a" * 64


def test_of_those_that_tie_the_first_is_taken():
    facts = chosen(lambda c: metrics([8 if rate(c) > 0.1 else 5, 0, 0], [10, 5, 5])).facts
    assert (facts.chosen, facts.tied) == (1, 2)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("overall", 0.1), ("balanced", 0.2), ("few", 0.2), ("many", 0.1), ("ece", 0.3)],
)
def test_measures(metric, expected):
    found = {
        0.1: metrics([10, 0, 0], [10, 2, 2]),
        0.2: metrics([4, 2, 2], [10, 2, 2]),
        0.3: metrics([1, 1, 0], [10, 2, 2], confidence=0.95),
    }
    found[0.3] = metrics([9, 2, 1], [10, 2, 2], confidence=0.95) if metric == "ece" else found[0.3]
    assert rate(chosen(lambda c: found[rate(c)], metric).final[0]) == expected


def test_a_group_without_validation_images_cannot_decide():
    with pytest.raises(UserError, match="few cannot decide"):
        measure(metrics([1, 1, 0], [2, 2, 0]), "few")
    assert measure(metrics([1, 1, 0], [2, 2, 0]), "balanced") == 0.5


def test_values_whose_loss_diverged_are_counted_and_never_chosen():
    selection = chosen(
        lambda c: None if rate(c) == 0.3 and c.recipe.seed else metrics([1, 0, 0], [10, 5, 5])
    )
    assert selection.facts.candidates[2].score is None
    assert selection.facts.candidates[2].by_seed == (pytest.approx(1 / 30), None)
    assert selection.facts.chosen == 0
    with pytest.raises(UserError, match="the loss of all candidates diverged"):
        chosen(lambda c: None)


def test_nothing_is_chosen_while_runs_are_missing_or_of_other_images():
    done = runner(lambda c: metrics([1, 0, 0], [10, 5, 5]))(cells())
    with pytest.raises(UserError, match=r"lr=0\.1, seed 1: disk full\nnothing was selected"):
        check_finished([replace(done[1], outcome="failed", problem="disk full")])
    with pytest.raises(UserError, match="nothing was selected yet: 1 of the runs"):
        check_finished([done[0], replace(done[1], outcome="elsewhere", validation=None)])
    with pytest.raises(UserError, match="nothing was selected yet: 6 of the runs"):
        check_finished(cells())
    other = [done[0], validated(done[1], metrics([1, 0, 0], [10, 5, 5]), split="b" * 64)]
    with pytest.raises(UserError, match="the values change which images are used for validation"):
        choose(candidates(other, Select(metric="overall")), Select(metric="overall"), "grid")


def test_the_final_run_may_train_on_all_images():
    options = Select(metric="overall", refit=True)
    done = runner(lambda c: metrics([1, 0, 0], [10, 5, 5]))(cells())
    found = choose(candidates(done, options), options, "grid")
    final, plain = found.final[0].recipe, get_recipe("quickstart", "stages.0.optim.lr=0.1")
    assert final.data.config.val_fraction == 0  # type: ignore[attr-defined]
    assert final.digest == plain.digest
    assert found.facts.refit


# From the command line ---------------------------------------------------------------------------


def invoke(*words: str) -> Result:
    return CliRunner().invoke(cli.cli, ["run", *words])


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images of the final evaluations."""
    seen: list[int] = []
    original = runner_module.evaluate_split

    def count(module, split, *args, **options):
        seen.append(len(split))
        return original(module, split, *args, **options)

    monkeypatch.setattr(runner_module, "evaluate_split", count)
    return seen


@pytest.mark.usefixtures("no_picture")
def test_the_test_images_are_evaluated_once_for_the_chosen_values(tmp_path: Path, evaluated):
    done = invoke(*CHOOSE, f"out={tmp_path}")
    assert done.exit_code == 0, done.output
    assert evaluated == [39, 39, 600]
    (record,) = tmp_path.glob("*/seed0/record.json")
    assert len(list(tmp_path.glob("*/seed0/validation.json"))) == 2
    facts = Record.load(record).selected
    assert facts is not None
    assert facts == read_selection(record.parent)
    digests = [candidate.digest for candidate in facts.candidates]
    assert record.parent.parent.name.endswith(digests[facts.chosen][:8])
    manifest = Record.load(record).dataset.manifest
    assert facts.split_sha256 == manifest["val_index_sha256"]
    for candidate in facts.candidates:
        (folder,) = tmp_path.glob(f"*-{candidate.digest[:8]}/seed0")
        found = Validation.load(folder / "validation.json")
        assert candidate.by_seed == (found.metrics.top1,)
        head = (folder / "curves.csv").read_text().splitlines()[0]
        assert "val_top1" in head
        assert "test" not in head
    assert "lr=0.02" in done.output
    assert "the test images were evaluated for it alone" in done.output

    again = invoke(*CHOOSE, f"out={tmp_path}")  # all of it is read
    assert evaluated == [39, 39, 600]
    assert "1 was done before" in again.output

    found = Record.load(record)  # chosen again, by something else: only the record is rewritten
    recipe = get_recipe("quickstart", *TINY[1:-1], f"out={record.parent}")
    other = facts.model_copy(update={"metric": "balanced"})
    _recorded(Cell(recipe, "was done", found, selected=other), write=True)
    assert Record.load(record).selected == other
    assert Record.load(record).metrics == found.metrics


@pytest.mark.usefixtures("no_picture")
def test_a_killed_selection_goes_on(tmp_path: Path, evaluated):
    class KilledError(Exception):
        pass

    def kill(*_, **__):
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        original = runner_module.make_validation
        calls = iter([original, kill])
        patch.setattr(runner_module, "make_validation", lambda *a: next(calls)(*a))
        assert isinstance(invoke(*CHOOSE, f"out={tmp_path}").exception, KilledError)
    assert not list(tmp_path.glob("*/seed0/record.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "make_record", kill)
        assert isinstance(invoke(*CHOOSE, f"out={tmp_path}").exception, KilledError)
    assert evaluated == [39, 39, 39, 600]  # the second was trained, and is evaluated again
    assert not list(tmp_path.glob("*/seed0/record.json"))
    done = invoke(*CHOOSE, f"out={tmp_path}")
    assert done.exit_code == 0, done.output
    assert evaluated == [39, 39, 39, 600, 600]
    (record,) = tmp_path.glob("*/seed0/record.json")
    assert Record.load(record).selected is not None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (VALUES[:1], "hold some of the training images out with data.val_fraction=0.1"),
        ([*VALUES, "run.curves=test"], "must not see; leave it out"),
        ([*VALUES, "run.evaluate=test"], "the chosen ones on test images; leave it out"),
        ([*VALUES, "select.metrics=few"], "did you mean `metric`?"),
        (["select.refit=true"], "which needs data.val_fraction"),
    ],
)
def test_what_cannot_be_chosen_is_one_line_and_leaves_nothing(tmp_path, words, text):
    done = invoke(*TINY, "select.metric=overall", *words, f"out={tmp_path / 'out'}")
    assert isinstance(done.exception, UserError)
    assert text in str(done.exception)
    assert "\n" not in str(done.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_picture")
def test_a_run_on_validation_images_has_no_record(tmp_path: Path):
    recipe = get_recipe(
        "quickstart", *TINY[1:-1], "data.val_fraction=0.1", "run.evaluate=val", f"out={tmp_path}"
    )
    result = runner_module.run(recipe, quiet=True)
    assert result.split == "val"
    assert "val, %" in repr(result)
    with pytest.raises(UserError, match="evaluated on validation images only"):
        _ = result.record
    assert json.loads((tmp_path / "validation.json").read_text())["images"] == 39
    assert not (tmp_path / "record.json").exists()
    assert not runner_module.run(recipe, quiet=True).fresh
    with pytest.warns(UserWarning, match="must not decide that choice"):
        CliRunner().invoke(cli.cli, ["eval", f"model={tmp_path}"], catch_exceptions=False)
    (tmp_path / "validation.json").write_text("{}")
    with pytest.raises(UserError, match="does not hold validation results"):
        runner_module.run(recipe, quiet=True)


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(
    ("words", "images", "prefix"),
    [
        ([], [], "train"),
        (["run.curves=test"], [600, 600], "test"),
        (["data.val_fraction=0.1"], [39, 39], "val"),
    ],
)
def test_curves_show_test_images_only_if_asked(tmp_path, monkeypatch, words, images, prefix):
    seen: list[int] = []
    original = trainer.evaluate_split

    def count(module, split, *args, **options):
        seen.append(len(split))
        return original(module, split, *args, **options)

    monkeypatch.setattr(trainer, "evaluate_split", count)
    run(get_recipe("quickstart", *TINY[1:-1], *words, f"out={tmp_path}"), quiet=True)
    assert seen == images
    names = (tmp_path / "curves.csv").read_text().splitlines()[0].split(",")
    assert {n.partition("_")[0] for n in names if n.endswith("_top1")} == {"train", prefix}


def test_a_grid_file_may_choose(tmp_path: Path):
    file = tmp_path / "grid.yaml"
    file.write_text(
        "recipes: [quickstart, ce]\nseeds: [0, 1]\nselect: {metric: few}\n"
        "set: {data: {name: digits_lt, val_fraction: 0.2}, stages.0.optim.lr: [0.05, 0.1]}\n"
    )
    done = invoke(f"grid={file}", "dry_run=true", f"out={tmp_path / 'out'}")
    assert done.exit_code == 0, done.output
    for label in ("quickstart lr=0.05, seed 0", "quickstart lr=0.1, seed 1", "ce lr=0.1, seed 1"):
        assert f"{label}, digest" in done.output
    assert done.output.count("curves on 76 validation images") == 8
    wrong = invoke(f"grid={file}", "select.metric=fewest", "dry_run=true")
    assert "`select.metric`: should be" in str(wrong.exception)


def test_no_method_trains_on_images_that_are_to_judge_it(tmp_path: Path):
    words = ["data.imbalance_ratio=2", "epochs=1", "run.device=cpu"]
    recipe = get_recipe("difficulty_net_cifar10", "data=digits_lt", *words)
    held = get_recipe("difficulty_net_cifar10", "data=digits_lt", "data.val_fraction=0.3", *words)
    plain, data = (r.data.config.load() for r in (recipe, held))  # type: ignore[attr-defined]
    own = replace(plain, val=data.val)  # validation images of the data set's own
    assert trained_val(own) is data.val
    assert trained_val(data) is None
    assert data.val is not None
    for recipe_, of, seen in ((held, data, True), (recipe, own, False)):
        streams = {"meta": Stream("class_aware", split="val")}
        method = SimpleNamespace(
            views=1, config=None, strengths=lambda: None, streams_for=lambda _, s=streams: s
        )
        steps = Feed(recipe_, of, torch.device("cpu")).batches(method, 0, 0)  # type: ignore[arg-type]
        meta = torch.cat([batch.streams["meta"].index for step in steps for batch in step])
        assert bool(meta.max() >= len(data.val)) is seen  # more images than are held out
    check_unseen(held, data)
    check_unseen(get_recipe("ce_cifar10"), own)
    with pytest.raises(UserError, match=r"difficulty_net trains on the validation images"):
        check_unseen(recipe, own)
