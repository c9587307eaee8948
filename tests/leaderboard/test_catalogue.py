"""`ltbench list methods --long`: every method has a paper, a year, a kind and recipes."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from ltbench.cli import app as cli
from ltbench.leaderboard.catalogue import catalogue, describe
from ltbench.methods import METHODS


@pytest.fixture(scope="module")
def entries():
    return {entry.name: entry for entry in catalogue()}


def test_every_method_is_there_and_says_what_it_is(entries):
    assert set(entries) == set(METHODS.names())
    for name, entry in entries.items():
        assert entry.summary.endswith("."), name
        assert entry.paper, name
        assert entry.departures, name
        assert entry.year is None or 1990 < entry.year < 2030, name
        assert entry.overrides or name == "crt", name
        assert entry.recipes or METHODS.facts(name).stage_of, name
        assert all(text for _, text in describe(entry)), name


def test_recipes_belong_to_the_longest_name(entries):
    assert "logit_adjustment_cifar10" in entries["logit_adjustment"].recipes
    assert "logit_adjustment_posthoc_cifar10" in entries["logit_adjustment_posthoc"].recipes
    assert "logit_adjustment_posthoc_cifar10" not in entries["logit_adjustment"].recipes
    assert "mislas_plot_inat" in entries["mislas"].recipes


def test_published_results_are_listed(entries):
    methods = {row["method"] for row in entries["mislas"].published}
    assert {"MiSLAS", "MiSLAS + PLOT"} <= methods
    results = dict(describe(entries["mislas"]))["published"]
    assert "MiSLAS + PLOT, CIFAR-10-LT, ResNet-32: " in results
    assert "81.88 at 100" in results


def test_results_of_shortened_runs_say_so(entries):
    results = dict(describe(entries["crt"]))["ours"]
    short = [part for part in results.split("; ") if "widths 8, 16, 32" in part]
    assert len(short) == 2
    assert all(part.endswith(" (shortened, 20+30 epochs) at 100") for part in short)


def test_the_command_prints_them():
    result = CliRunner().invoke(cli.cli, ["list", "methods", "mislas", "--long"])
    assert result.exit_code == 0
    assert "departures" in result.output
    assert "CVPR 2021" in result.output.replace("\n", " ")
    refused = CliRunner().invoke(cli.cli, ["list", "recipes", "--long"])
    assert refused.exit_code != 0
