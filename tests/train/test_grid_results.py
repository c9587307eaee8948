"""Results of a grid on disk, also when runs failed or another process ran them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from ltbench.cli import app
from ltbench.config.recipe import Recipe
from ltbench.errors import UserError
from ltbench.records.record import Record
from ltbench.train import grid
from ltbench.train.run import Result
from tests.records.made import made

WORDS = ["recipe=ce,mislas", "seed=0,1", "data=digits_lt"]


def record_for(recipe: Recipe) -> Record:
    tree = json.loads(json.dumps(recipe.tree(digest_only=True)))
    return made(recipe.name, recipe.seed, (90, 50 + recipe.seed, 10), tree=tree)


@pytest.fixture
def some_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs end at once: seed 1 of `mislas` fails."""

    def run(recipe: Recipe, **_: Any) -> Result:
        if (recipe.name, recipe.seed) == ("mislas", 1):
            raise UserError("the loss is NaN")
        return Result(Path(str(recipe.out)), record_for(recipe))

    monkeypatch.setattr("ltbench.train.run.run", run)
    monkeypatch.setattr("ltbench.records.store.sound_records", list)


@pytest.mark.usefixtures("some_fail")
def test_results_are_written_although_a_run_failed(tmp_path: Path) -> None:
    done = CliRunner().invoke(app.cli, ["run", *WORDS, f"out={tmp_path}", "quiet=true"])
    assert isinstance(done.exception, UserError)
    assert "mislas, seed 1: the loss is NaN" in str(done.exception)
    assert "mislas: no result of seed 1 (failed)" in done.output
    table = pd.read_csv(tmp_path / "results.csv", dtype={"missing_seeds": str})
    assert table[["recipe", "n"]].to_numpy().tolist() == [["ce", 2], ["mislas", 1]]
    assert table["missing_seeds"].fillna("").tolist() == ["", "1"]
    assert table["medium"].tolist() == pytest.approx([50.5, 50.0])
    assert "mislas: no result of seed 1 (failed)" in (tmp_path / "results.md").read_text()
    assert "% mislas: no result of seed 1 (failed)" in (tmp_path / "results.tex").read_text()


@pytest.mark.usefixtures("some_fail")
def test_without_out_a_grid_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app.cli, ["run", *WORDS, "quiet=true"])
    (folder,) = Path("runs").glob("grid-*")
    assert sorted(path.name for path in folder.iterdir()) == [
        f"results.{ending}" for ending in ("csv", "json", "md", "tex")
    ]
    assert f"table  {folder}/results.csv, .md, .tex, .json" in done.output
    assert f"ltbench compare {folder} baseline=ce" in done.output


def test_the_folder_depends_on_the_runs_and_not_on_their_order(tmp_path: Path) -> None:
    cells = grid.make_grid(["ce", "mislas"], [0, 1], ["data=digits_lt"])
    again = grid.make_grid(["mislas", "ce"], [1, 0], ["data=digits_lt"])
    more = grid.make_grid(["ce", "mislas"], [0, 1, 2], ["data=digits_lt"])
    names = [grid.results_folder(some) for some in (cells, again, more)]
    assert names[0] == names[1] != names[2]
    inside = grid.make_grid(["ce"], [0, 1], ["data=digits_lt", f"out={tmp_path}/x"])
    assert grid.results_folder(inside) == tmp_path / "x"


def test_a_cell_that_another_process_finished_counts(tmp_path: Path) -> None:
    (cell,) = grid.make_grid(["ce"], [3], ["data=digits_lt", f"out={tmp_path}"])
    away = dataclasses.replace(cell, outcome="elsewhere")
    (entry,) = grid.entries([away])
    assert (entry.record, entry.reason) == (None, "runs in another process")
    folder = Path(str(cell.recipe.out))
    folder.mkdir(parents=True)
    made("ce", 3, (90, 50, 10)).save(folder / "record.json")
    assert grid.entries([away])[0].record is None  # of another recipe
    record_for(cell.recipe).save(folder / "record.json")
    assert grid.entries([away])[0].record == record_for(cell.recipe)
