"""A result belongs to recipe, seed, images, class names and weights; all are compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ltbench import get_recipe, run
from ltbench.cli.app import cli
from ltbench.data.folder import Folder
from ltbench.diagnose.subject import open_subjects
from ltbench.errors import UserError
from ltbench.files import read_sealed, seal
from ltbench.hub.export import export
from ltbench.leaderboard.steps import Case, check_evaluation
from ltbench.records import store
from ltbench.records.record import Record
from ltbench.records.results_table import table_rows
from ltbench.train import grid
from ltbench.train.stage import StageRun

THIN = [
    "data=folder",
    "data.image_size=8",
    "backbone={name: resnet20_cifar, args: {widths: [2, 2, 2]}}",
    "stages.0.epochs=2",
    "stages.0.batch_size=4",
    "stages.0.schedule.warmup=0",
    "run.device=cpu",
    "run.workers=0",
    "run.threads=1",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two classes in folders."""
    home, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 3)):
        for name in ("bee", "cat"):
            folder = home / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return home


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    run(get_recipe("ce", *THIN, f"data.root={images}", f"out={out}"))
    return out


@pytest.fixture
def finished(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def others(images, tmp_path) -> Path:
    return Path(shutil.copytree(images, tmp_path / "others"))


def again(out: Path, root: Path, *words: str, name: str = "ce"):
    given = dict(word.split("=", 1) for word in (*THIN, f"data.root={root}", f"out={out}", *words))
    return run(get_recipe(name, *(f"{key}={value}" for key, value in given.items())))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(out: Path, match: str, *args, **more) -> None:
    """Ask for the run again: one line, and every file as it was."""
    before = files(out)
    with pytest.raises(UserError, match=match) as caught:
        again(out, *args, **more)
    assert len(str(caught.value).splitlines()) == 1
    assert files(out) == before


def test_the_same_images_elsewhere_are_the_same_run(finished, others):
    result = again(finished, others)
    assert not result.fresh
    assert result.record.execution.threads == (1,)


@pytest.mark.parametrize("part", ["train", "test"])
def test_other_images_are_refused(part, finished, others):
    (others / part / "bee" / "0.png").write_bytes((others / part / "cat" / "0.png").read_bytes())
    refused(finished, f"on other {part}(ing)? images", others)


@pytest.mark.parametrize("part", ["train", "test"])
def test_one_more_image_is_refused(part, finished, others):
    shutil.copy(others / part / "bee" / "0.png", others / part / "bee" / "more.png")
    refused(finished, f"on other {part}(ing)? images", others)


def test_other_class_names_are_refused(finished, others):
    for part in ("train", "test"):
        (others / part / "bee").rename(others / part / "ant")
    refused(finished, "on other class names", others)


@pytest.fixture(scope="module")
def renamed(images, tmp_path_factory) -> tuple[Path, Path]:
    """A run, and its images with another name for a class: neither content nor order differs."""
    home = tmp_path_factory.mktemp("renamed")
    root = Path(shutil.copytree(images, home / "images"))
    again(home / "run", root)
    for part in ("train", "test"):
        (root / part / "bee").rename(root / part / "ant")
    return home / "run", root


def evaluated(out: Path, root: Path, _: Path) -> None:
    CliRunner().invoke(cli, ["eval", f"model={out}"], catch_exceptions=False)


def verified(out: Path, root: Path, _: Path) -> None:
    folder = export(out, out.with_name("published"))
    content = json.loads((folder / "record.json").read_bytes())
    data, weights = Folder(root=str(root), image_size=8).load(), folder / "model.safetensors"
    check_evaluation(Case(content, data=data, embedded=folder, weights=weights))


MEETINGS = {
    "eval": evaluated,
    "verify": verified,
    "diagnose": lambda out, *_: open_subjects([str(out)], {}, "cpu"),
    "publish half=true": lambda out, _, new: export(out, new, half=True),
}


@pytest.mark.parametrize("where", MEETINGS)
def test_a_model_meets_no_other_class_names(where, renamed, tmp_path):
    with pytest.raises(UserError, match=r"class 0 of .* is `bee`, that of .* is `ant`"):
        MEETINGS[where](*renamed, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_the_grid_compares_images_too(finished, others):
    (others / "train" / "bee" / "0.png").unlink()
    cells = grid.make_grid(["ce"], [0], [*THIN, f"data.root={others}"])
    cells = [grid.Cell(c.recipe.model_copy(update={"out": str(finished)})) for c in cells]

    def one(recipe):
        result = run(recipe)
        return result.record, result.fresh

    (cell,) = grid.run_grid(cells, one)
    assert cell.outcome == "failed"
    assert "other training images" in cell.problem


def test_without_its_images_a_finished_run_is_shown_with_a_note(trained, images, tmp_path):
    root, out = tmp_path / "here", tmp_path / "run"
    shutil.copytree(images, root)
    again(out, root)
    shutil.rmtree(root)
    with pytest.warns(UserWarning, match="were not compared with its record"):
        assert not again(out, root).fresh
    refused(out, "elsewhere", tmp_path / "elsewhere")


@pytest.mark.parametrize("words", [["seed=5"], ["stages.0.epochs=3"], ["stages.0.optim.lr=0.3"]])
@pytest.mark.parametrize("left", ["record.json", "model.safetensors", "checkpoints"])
def test_the_folder_of_another_recipe_or_seed_is_refused(words, left, finished, images):
    for path in finished.iterdir():
        if path.name not in (left, "recipe.json", ".lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused(finished, "belongs to `ce`", images, *words)


def test_a_record_without_its_recipe_is_no_run(finished, images):
    (finished / "recipe.json").unlink()
    refused(finished, "has no recipe.json", images)


def test_a_begun_folder_with_nothing_in_it_may_be_used(images, tmp_path):
    with pytest.raises(UserError, match="larger than the data set"):
        again(tmp_path / "run", images, "stages.0.batch_size=1000")
    assert again(tmp_path / "run", images).fresh


@pytest.fixture(scope="module")
def sibling(images, tmp_path_factory) -> Path:
    """The same recipe with another seed."""
    out = tmp_path_factory.mktemp("sibling") / "run"
    run(get_recipe("ce", *THIN, f"data.root={images}", f"out={out}", "seed=1"))
    return out


FILES = ("record.json", "model.safetensors", "model.json", "recipe.json")


@pytest.mark.parametrize("swapped", [FILES[:1], FILES[1:2], FILES[2:3], FILES[1:3], FILES[:3]])
def test_swapped_files_are_refused(swapped, finished, sibling, images):
    for name in swapped:
        shutil.copy(sibling / name, finished / name)
    refused(finished, ".", images)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "deep"])
def test_missing_and_damaged_files_are_one_line(name, damage, finished, images):
    path = finished / name
    text = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "cut": text[:-20], "deep": b"[" * 50_000}[damage])
    if (name, damage) == ("record.json", "missing"):
        assert again(finished, images).fresh  # its last checkpoint is there: written again
        return
    refused(finished, ".", images)


def test_an_edited_description_is_refused(finished, images):
    path = finished / "model.json"
    text = path.read_text()
    path.write_text(text.replace('"bee"', '"ant"'))
    refused(finished, "checksum does not match", images)
    facts = read_sealed(path.parent / "recipe.json", last="tree")  # another file, never sealed
    assert facts["seed"] == 0
    facts = json.loads(text)
    facts.pop("checksum")
    facts["class_counts"][0] += 1
    path.write_bytes(seal(json.dumps(facts)))
    refused(finished, "other numbers of training images", images)


def test_a_description_of_an_older_version_is_taken(finished, images):
    path = finished / "model.json"
    facts = json.loads(path.read_text())
    facts.pop("checksum")
    path.write_text(json.dumps(facts, indent=1))
    assert not again(finished, images).fresh


def test_other_code_is_noted(finished, images, monkeypatch):
    from ltbench.train import claim

    monkeypatch.setattr(claim, "__version__", "99")
    with pytest.warns(UserWarning, match="was finished by ltbench .*, this is 99"):
        assert not again(finished, images).fresh


def test_an_image_that_changes_while_training_ends_in_one_line(others, tmp_path, monkeypatch):
    do_step, steps = StageRun.step, []

    def step(self, *args):
        steps.append(0)
        if len(steps) == 4:  # in the second epoch
            shutil.copy(others / "train/bee/1.png", others / "train/bee/0.png")
        return do_step(self, *args)

    monkeypatch.setattr(StageRun, "step", step)
    with pytest.raises(UserError, match="changed while they were in use") as caught:
        again(tmp_path / "run", others)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run" / "record.json").exists()


# A folder deleted while training ----------------------------------------------------------------


def deleting(monkeypatch, out: Path, at: int, then=lambda: None) -> None:
    """Delete the folder of the run before one of its steps."""
    do_step, steps = StageRun.step, []

    def step(self, *args):
        steps.append(0)
        if len(steps) == at:
            while out.exists():  # a checkpoint may be under way
                shutil.rmtree(out, ignore_errors=True)
            then()
        return do_step(self, *args)

    monkeypatch.setattr(StageRun, "step", step)


@pytest.mark.parametrize("at", [2, 4, 6])
def test_a_folder_deleted_while_training_ends_in_one_line_and_goes_on(
    at, trained, images, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as inside:
        deleting(inside, out, at)
        with pytest.raises(UserError, match="was deleted or replaced during training") as caught:
            again(out, images)
    assert len(str(caught.value).splitlines()) == 1
    assert (out / "recipe.json").is_file()
    again(out, images)
    assert (out / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_nothing_is_written_to_the_folder_of_a_later_run(trained, images, tmp_path, monkeypatch):
    out = tmp_path / "run"
    deleting(monkeypatch, out, 2, lambda: shutil.copytree(trained, out))
    with pytest.raises(UserError, match="holds another run; nothing was written"):
        again(out, images)
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == {
        p.name: p.read_bytes() for p in trained.iterdir() if p.is_file()
    }


# Cells answered by committed records ------------------------------------------------------------


@pytest.fixture
def cell(images) -> grid.Cell:
    return grid.make_grid(["ce"], [0], [*THIN, f"data.root={images}"])[0]


def committed(monkeypatch, *records: Record) -> None:
    monkeypatch.setattr(store, "sound_records", lambda: list(records))


def changed(record: Record, **dataset: str) -> Record:
    return record.model_copy(update={"dataset": record.dataset.model_copy(update=dataset)})


def test_a_cell_is_answered_by_a_committed_record_of_its_images(cell, trained, monkeypatch):
    record = Record.load(trained / "record.json")
    better = record.model_copy(update={"status": "reproduced", "date": "2020-01-01"})
    committed(monkeypatch, better, record)
    (found,) = grid.known([cell])
    assert (found.outcome, found.record.status) == ("committed", "reproduced")


def test_a_cell_is_not_answered_by_other_records(cell, trained, monkeypatch):
    record = Record.load(trained / "record.json")
    committed(
        monkeypatch,
        record.model_copy(update={"status": "withdrawn"}),
        record.model_copy(update={"seed": 1}),
        changed(record, train_sha256="content:" + "0" * 64),
        changed(record, test_sha256="content:" + "0" * 64),
    )
    assert grid.known([cell]) == [cell]


def test_no_two_rows_of_a_grid_have_one_name(cell, trained):
    record = Record.load(trained / "record.json")
    moved = changed(record, train_sha256="content:" + "0" * 64)
    renamed = record.model_copy(
        update={"seed": 1, "recipe": record.recipe.model_copy(update={"name": "x"})}
    )
    cells = [
        grid.Cell(cell.recipe, "done", record),
        grid.Cell(cell.recipe.model_copy(update={"seed": 1}), "committed", renamed),
    ]
    assert [(row["recipe"], row["n"]) for row in table_rows(grid.entries(cells))] == [("ce", 2)]
    cells.append(grid.Cell(cell.recipe.model_copy(update={"seed": 2}), "done", moved))
    names = [row["recipe"] for row in table_rows(grid.entries(cells))]
    assert sorted(names) == ["ce (1)", "ce (2)"]


# Bounds and threads -----------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["seed=9223372036854775808", "run.workers=100000"])
def test_numbers_without_bound_are_refused_before_training(word, tmp_path):
    with pytest.raises(UserError, match=r"`(seed|run.workers)`") as caught:
        again(tmp_path / "run", tmp_path, word)
    assert len(str(caught.value).splitlines()) == 1


def test_a_resume_with_other_threads_is_recorded(images, tmp_path, monkeypatch, caplog):
    out = tmp_path / "run"
    do_step, steps = StageRun.step, []

    def step(self, *args):
        steps.append(0)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return do_step(self, *args)

    with monkeypatch.context() as inside:
        inside.setattr(StageRun, "step", step)
        with pytest.raises(KeyboardInterrupt):
            again(out, images)
    before = torch.get_num_threads()
    try:
        record = again(out, images, "run.threads=2").record
    finally:
        torch.set_num_threads(before)
    assert record.execution.threads == (1, 2)
    assert "with 2 CPU thread(s) instead of 1" in caplog.text


@pytest.mark.parametrize("words", [("data.root=nowhere",), ("stages.0.update=plot",)])
def test_a_refused_run_leaves_no_folder(images, tmp_path, words):
    """Neither missing images nor a network without parts leave anything where a run would be."""
    given = dict(word.split("=", 1) for word in (*THIN, f"data.root={images}", *words))
    given["backbone"] = "vit_tiny_patch16_224"
    recipe = get_recipe("ce", *(f"{k}={v}" for k, v in given.items()), f"out={tmp_path / 'a/b'}")
    with pytest.raises(UserError):
        run(recipe)
    assert not list(tmp_path.iterdir())


def test_a_refused_run_keeps_a_folder_that_was_there(images, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        again(tmp_path, images, "data.root=nowhere")
    assert tmp_path.is_dir()
