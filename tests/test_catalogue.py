"""`ltbench list methods --long`: every method has a paper, a year, a kind and recipes."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from ltbench import cli, registries
from ltbench.catalogue import catalogue, describe

ENTRIES = {entry.name: entry for entry in catalogue()}
OF_A_STAGE = {"gcl_stage2", "plot_stage2"}  # second stages: the recipes are those of the first


def test_every_method_is_there():
    assert set(ENTRIES) == set(registries.METHODS.names())


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_every_method_says_what_it_is(name):
    entry = ENTRIES[name]
    assert entry.summary.endswith(".")
    assert entry.paper
    assert entry.departures
    assert entry.year is None or 1990 < entry.year < 2030
    assert entry.overrides or name == "crt"
    assert entry.recipes or name in OF_A_STAGE
    assert all(text for _, text in describe(entry))


def test_recipes_belong_to_the_longest_name():
    assert "logit_adjustment_cifar10" in ENTRIES["logit_adjustment"].recipes
    assert "logit_adjustment_posthoc_cifar10" in ENTRIES["logit_adjustment_posthoc"].recipes
    assert "logit_adjustment_posthoc_cifar10" not in ENTRIES["logit_adjustment"].recipes
    assert "mislas_plot_inat" in ENTRIES["mislas"].recipes


def test_published_results_are_listed():
    methods = {row["method"] for row in ENTRIES["mislas"].published}
    assert {"MiSLAS", "MiSLAS + PLOT"} <= methods
    results = dict(describe(ENTRIES["mislas"]))["published"]
    assert "MiSLAS + PLOT, CIFAR-10-LT, ResNet-32: " in results
    assert "81.88 at 100" in results


def test_results_of_shortened_runs_say_so():
    results = dict(describe(ENTRIES["crt"]))["ours"]
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
