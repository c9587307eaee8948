"""Search of values with Optuna: seeded, resumable, of ordinary runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ltbench.config.selection import Select
from ltbench.config.words import parse_words
from ltbench.errors import UserError
from ltbench.train.grid import Cell
from ltbench.train.search import JOURNAL, Search, select_by_search
from tests.train.validations import metrics, runner

pytest.importorskip("optuna")

RATE = "stages.0.optim.lr=log:0.01..1"


def search(out: Path, *words: str, trials: int = 6, seeds=(0,), seed: int = 0, **options) -> Search:
    given = parse_words([*(words or (RATE,)), "data.val_fraction=0.1"])
    selection = Select(metric="overall", trials=trials, seed=seed, **options)
    return Search("quickstart", [given], list(seeds), str(out), selection)


def rate(cell: Cell) -> float:
    optim = cell.recipe.stages[0].optim
    assert optim is not None
    return optim.lr


def near(cell: Cell):
    """Better the nearer the rate is to 0.1; above 0.8 the loss diverges."""
    if rate(cell) > 0.8:
        return None
    return metrics([int(1000 - 900 * abs(rate(cell) - 0.1)), 0, 0], [1000, 5, 5])


def tried(selection) -> list[str]:
    return [c.digest for c in selection.facts.candidates]


def test_it_is_seeded_and_finds_the_rate(tmp_path):
    first = select_by_search(search(tmp_path / "a", trials=8), runner(near))
    again = select_by_search(search(tmp_path / "b", trials=8), runner(near))
    other = select_by_search(search(tmp_path / "c", trials=8, seed=1), runner(near))
    assert tried(first) == tried(again) != tried(other)
    assert len(set(tried(first))) == 8
    assert rate(first.final[0]) < 0.3
    assert first.facts.search.startswith("Optuna ")
    assert first.facts.search.endswith("TPE, 8 trials, seed 0")
    best = max(c.score for c in first.facts.candidates if c.score is not None)
    assert first.facts.candidates[first.facts.chosen].score == best


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_killed_search_goes_on_as_if_it_had_not_been(tmp_path, at_once):
    unbroken = select_by_search(search(tmp_path / "a"), runner(near), at_once=at_once)
    for after in (2, 4, 5):
        began = 0

        def dies(cell: Cell, after: int = after):
            nonlocal began
            began += 1
            if began > after:
                raise KeyboardInterrupt
            return near(cell)

        with pytest.raises(KeyboardInterrupt):
            select_by_search(search(tmp_path / "b"), runner(dies), at_once=at_once)
    seen: list[Cell] = []
    resumed = select_by_search(search(tmp_path / "b"), runner(near, seen), at_once=at_once)
    assert tried(resumed) == tried(unbroken)
    assert resumed.facts == unbroken.facts
    assert (tmp_path / "b" / JOURNAL).is_file()


def test_more_trials_go_on_from_those_that_were_made(tmp_path):
    few = select_by_search(search(tmp_path), runner(near))
    more = select_by_search(search(tmp_path, trials=9), runner(near))
    assert tried(more)[:6] == tried(few)
    assert len(tried(more)) == 9


def test_diverged_trials_are_neither_chosen_nor_tried_again(tmp_path):
    wide = "stages.0.optim.lr=0.05..1.3"
    found = select_by_search(search(tmp_path, wide), runner(near))
    diverged = {c.digest for c in found.facts.candidates if c.score is None}
    assert 0 < len(diverged) < 6
    seen: list[Cell] = []
    again = select_by_search(search(tmp_path, wide), runner(near, seen))
    assert again.facts == found.facts
    assert not diverged & {cell.recipe.digest for cell in seen}


def test_names_and_whole_numbers_over_seeds(tmp_path):
    words = ("stages.0.update=plain,sam", "stages.0.epochs=5..9")
    seen: list[Cell] = []

    def good(cell: Cell):
        sam = cell.recipe.stages[0].update.name == "sam"
        return metrics([9 if sam else 3, 0, 0], [10, 5, 5])

    found = select_by_search(search(tmp_path, *words, seeds=(0, 1)), runner(good, seen))
    assert found.facts.candidates[found.facts.chosen].values["stages.0.update"] == "sam"
    assert {cell.recipe.stages[0].epochs for cell in seen} <= set(range(5, 10))
    assert [cell.recipe.seed for cell in found.final] == [0, 1]
    assert len({c.digest for c in found.facts.candidates}) == len(found.facts.candidates)


def test_mistakes_are_one_line_before_anything_runs(tmp_path, monkeypatch):
    def never(cells):
        raise AssertionError

    for words, text in (
        (["stages.0.epochs=5"], "needs a key to search"),
        (["stages.0.optim.momentum=0.5..1.5"], "should be less than 1, found 1.5"),
        (["stages.0.update=plain,sma"], "sma"),
    ):
        with pytest.raises(UserError, match=text):
            select_by_search(search(tmp_path / "out", *words), never)
    assert not (tmp_path / "out").exists()
    (tmp_path / JOURNAL).write_text("{broken\n")
    with pytest.raises(UserError, match=r"optuna\.journal is damaged"):
        select_by_search(search(tmp_path), never)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'ltbench\[optuna\]'"):
        select_by_search(search(tmp_path / "out"), never)
    assert not (tmp_path / "out").exists()
