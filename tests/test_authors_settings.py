"""Every recipe is what its authors ran, or its note names the difference."""

from __future__ import annotations

import re

import authors_settings
import pytest
from authors_settings import compare, compared, entries, factors

from ltbench import get_recipe, list_recipes
from ltbench.config.files import list_variants


def test_recipes_and_their_variants_are_what_the_authors_ran():
    problems = [line for pair in compared() for line in compare(*pair).problems]
    assert not problems, "\n".join(problems)


def test_entries_are_of_recipes_and_say_where_they_were_read():
    for name, entry in entries().items():
        assert name in list_recipes()
        assert set(entry.get("variants", {})) <= set(list_variants(name)), name
        if entry.get("authors") != "none":
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", entry["repository"]), name


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ("stages.0.schedule.milestones=[160, 181]", "stages.0.factor"),
        ("stages.0.schedule.warmup=4", "stages.0.factor"),
        ("stages.0.optim.weight_decay=3e-4", "stages.0.optim.weight_decay"),
        ("stages.0.optim.nesterov=true", "stages.0.optim.nesterov"),
        ("stages.0.last_batch=drop", "stages.0.last_batch"),
        ("stages.0.head_init=pytorch", "stages.0.head_init"),
        ("stages.0.sampler=class_aware", "stages.0.sampler.name"),
        ("data.augment=strong", "data.augment"),
    ],
)
def test_a_changed_setting_is_found(monkeypatch, word, path):
    monkeypatch.setattr(authors_settings, "get_recipe", lambda name: get_recipe(name, word))
    found = " ".join(compare("ce_cifar10").problems)
    assert f"`{path}` is" in found


def test_a_difference_counts_as_declared_only_if_the_note_has_the_words(monkeypatch):
    entry = {**entries()["ce_cifar10"], "differs": {"stages.0.optim.lr": "half of the rate"}}
    monkeypatch.setitem(entries(), "ce_cifar10", entry)
    assert "though `differs` has it" in " ".join(compare("ce_cifar10").problems)

    def changed(name, **more):
        return get_recipe(name, "stages.0.optim.lr=0.05", **more)

    monkeypatch.setattr(authors_settings, "get_recipe", changed)
    assert "does not say `half of the rate`" in " ".join(compare("ce_cifar10").problems)
    monkeypatch.setattr(
        authors_settings, "get_recipe", lambda name: changed(name, note="Here half of the rate.")
    )
    result = compare("ce_cifar10")
    assert not [line for line in result.problems if "optim.lr" in line]
    assert result.declared["stages.0.optim.lr"] == (0.1, 0.05, "half of the rate")


def test_factors_are_pieces_of_formulas():
    assert factors([[2, "(e + 1) / 2"], [4, "1"], [5, "cos(pi * (e - 4))"]]) == [0.5, 1, 1, 1, 1]
