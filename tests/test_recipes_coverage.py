"""Printed results have recipes, variants chain, grids resolve, every model can be built."""

from __future__ import annotations

import itertools
import re
import runpy
from pathlib import Path

import pytest
import torch

from ltbench import get_recipe, list_recipes
from ltbench.config.files import family, list_variants
from ltbench.config.recipe import Recipe
from ltbench.data.base import DatasetInfo
from ltbench.errors import UserError
from ltbench.leaderboard import published
from ltbench.methods.build import build_backbone, build_method
from ltbench.records.titles import backbone_title
from ltbench.train import grid

ROOT = Path(__file__).parent.parent


def test_every_result_of_the_papers_tables_has_a_recipe(capsys):
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools" / "published_coverage.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert not end.value.code, shown
    assert "PLOT main Table 1" in shown


def test_variants_chain_and_the_longest_name_wins():
    recipe = get_recipe("gcl_moo_cifar10_mgda_naive_if50")
    update = recipe.stages[0].update.config
    assert recipe.name == "gcl_moo_cifar10_mgda_naive_if50"
    assert recipe.data.config.imbalance_ratio == 50
    assert update.solver.name == "mgda"
    assert update.epochs is None
    assert recipe.target.method == "GCL w/ MGDA (naive, no early stop)"
    assert get_recipe("gcl_moo_cifar10_mgda").stages[0].update.config.epochs == 50
    assert get_recipe("bcl_imagenet_lt_resnext50").backbone.name == "resnext50_32x4d"
    assert "if50" in list_variants("gcl_plot_cifar10")
    with pytest.raises(UserError, match=r"has no variant `x_if50`.*; known: `gcl_moo_cifar10_"):
        get_recipe("gcl_moo_cifar10_x_if50")


def test_un_mixed_labels_alone_are_ordinary_training_on_first_labels():
    for suffix, epochs in (("", 50), ("_if50", 20), ("_if200", 80)):
        recipe = get_recipe(f"plot_official_cifar10_unmixed_only{suffix}")
        update = recipe.stages[0].update.config
        assert (update.epochs, update.rho, update.climb_kept) == (epochs, 0.0, 0.0)
        assert (update.collapse_weight, update.mixed_labels) == (0.0, False)
        assert (update.solver.config.c, update.solver.config.rescale) == (0.0, "sum")
        assert "Isolates the labels" in recipe.note


def test_a_ratio_gives_way_to_other_variants_wherever_it_stands():
    for name in ("gcl_moo_cifar10_mgda_naive_if200", "gcl_moo_cifar10_if200_mgda_naive"):
        assert get_recipe(name).stages[0].update.config.epochs is None
    assert get_recipe("gcl_moo_cifar10_mgda_if200").stages[0].update.config.epochs == 80


def test_each_rung_of_the_ladder_adds_one_thing():
    recipes, _, _ = grid.read_grid(ROOT / "recipes" / "grids" / "table4_ladder.yaml")
    rungs = [get_recipe(name).stages[0].update.config.model_dump() for name in recipes[1:]]
    changed = [
        {key for key in one if one[key] != other[key]} for one, other in itertools.pairwise(rungs)
    ]
    assert changed == [{"rho"}, {"collapse_weight"}]


def every_variant() -> list[str]:
    names = [(name, list_variants(name)) for name in list_recipes()]
    return [f"{name}_{variant}" for name, variants in names for variant in variants]


def test_every_variant_resolves_and_aims_at_what_was_published():
    printed = {(row["method"], row["source"]) for row in published()}
    wrong = []
    for name in every_variant():
        recipe = get_recipe(name)
        target = recipe.target
        if recipe.name != name:
            wrong.append(f"{name} is called {recipe.name}")
        if not (target or recipe.note):
            wrong.append(f"{name}: name the result it aims at, or say in `note:` why there is none")
        if target is not None and (target.method, target.source) not in printed:
            wrong.append(f"{name}: no row for {target}")
    assert not wrong, "\n".join(wrong)


def test_variants_with_another_backbone_aim_at_rows_of_that_backbone():
    printed = {(row["method"], row["source"], row["backbone"]) for row in published()}
    for name in every_variant():
        recipe = get_recipe(name)
        network = backbone_title(recipe.backbone.name)
        if recipe.target is not None and f"_{recipe.backbone.name[:8]}" in name:
            aims = (recipe.target.method, recipe.target.source, network)
            assert aims in printed, name


def test_recipes_with_plot_in_their_name_use_it():
    for name in list_recipes("*_plot*"):
        updates = [stage.update.name for stage in get_recipe(name).stages]
        assert updates.count("plot") == 1, name


def test_names_follow_the_grammar():
    for name in list_recipes("*_*"):
        if get_recipe(name).data.name in (*CLASSES, "inat18"):
            assert re.fullmatch(r"[a-z0-9_]+_(cifar100?|imagenet_lt|places_lt|inat)", name), name


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "grids").glob("*.yaml")))
def test_grids_resolve(path):
    recipes, seeds, shared = grid.read_grid(path)
    assert len(grid.make_grid(recipes, seeds, shared=shared)) == len(recipes) * len(seeds)


CLASSES = {"cifar10_lt": 10, "cifar100_lt": 100, "imagenet_lt": 1000, "places_lt": 365}


FAMILIES = sorted({family(name) for name in list_recipes()} - {""})


def shapes(group: str) -> list[Recipe]:
    """One recipe of a family for each backbone and chain of methods; `_plot` changes neither."""
    found: dict[tuple[str, ...], Recipe] = {}
    for name in list_recipes(f"{group}_*"):
        recipe = get_recipe(name, "backbone.pretrained=false")
        if recipe.data.name in (*CLASSES, "inat18"):
            key = (recipe.backbone.name, *(str(s.method) for s in recipe.stages))
            found.setdefault(key, recipe)
    return list(found.values())


@pytest.mark.parametrize("group", FAMILIES)
def test_every_model_can_be_built(group, monkeypatch):
    for recipe in shapes(group):
        classes = CLASSES.get(recipe.data.name, 8142)
        counts = tuple(max(5, 1000 // (k + 1)) for k in range(classes))
        info = DatasetInfo(recipe.data.name, counts, tuple(map(str, range(classes))))
        small = recipe.backbone.name.endswith("_cifar")
        if group == "rsg" and not small:
            continue  # runs its backbone once to see its maps, which the meta device cannot

        def without_memory(recipe, classes=None, small=small):  # a large network, right shapes
            with torch.device("cpu" if small else "meta"):
                return build_backbone(recipe, classes)

        monkeypatch.setattr("ltbench.methods.build.build_backbone", without_memory)
        method = None
        for index in range(len(recipe.stages)):
            method = build_method(recipe, index, info, method)
        assert method is not None, recipe.name
        assert sum(p.numel() for p in method.parameters()) > 1e5, recipe.name
