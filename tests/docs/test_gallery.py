"""The gallery of methods has every method, every recipe, and the numbers of published.csv."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from ltbench.config.files import list_recipes
from ltbench.methods import METHODS
from ltbench.updates import UPDATES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ltbench" / "methods" / "README.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (.*?)\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S))


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_has_its_section(name):
    text = SECTIONS[METHODS.title(name)]
    assert f"**Name:** `{name}`" in text
    assert METHODS.summary(name) in text
    for fact in ("Paper", "Departures", "Recipes", "Results of ltbench"):
        assert re.search(rf"^- \*\*{fact}(?: \(\d+\))?:\*\* \S", text, re.M), fact
    assert re.search(r"\b20[12]\d\b", text)


@pytest.mark.parametrize("name", UPDATES.names())
def test_an_update_has_its_section(name):
    assert "**Paper:**" in SECTIONS[f"`{name}`"]


def test_every_recipe_is_linked_from_its_method():
    linked = set(re.findall(r"\[(\w+)\]\(\.\./\.\./recipes/\w+/\1\.yaml\)", PAGE))
    apart = {"quickstart", "plot_official_cifar10", "plot_official_cifar100"}  # of several methods
    assert linked == set(list_recipes()) - apart


def test_printed_numbers_are_those_of_the_file():
    with (ROOT / "leaderboard" / "published.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    place = {"dataset": "CIFAR-100-LT", "imbalance_ratio": "100", "backbone": "ResNet-32"}
    for title in ("LDAM-DRW", "MiSLAS", "PaCo"):
        line = re.search(rf"^\| \[{title}\].* \| (.*?) \|$", PAGE, re.M)
        assert line is not None
        for method, found in zip(
            (title, f"{title} + PLOT"), line[1].split(", +PLOT "), strict=True
        ):
            printed = {
                row["overall"]
                for row in rows
                if row["method"] == method and all(row[k] == v for k, v in place.items())
            }
            assert set(found.split(" / ")) == printed
