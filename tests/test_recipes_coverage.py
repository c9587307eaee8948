"""Printed results have recipes, variants chain, grids resolve, every model can be built."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltbench import get_recipe, grid, list_recipes
from ltbench.config import list_variants
from ltbench.data.base import DatasetInfo
from ltbench.errors import UserError
from ltbench.trainer import build_backbone, build_method

ROOT = Path(__file__).parent.parent


def test_every_result_of_the_papers_tables_has_a_recipe():
    done = subprocess.run(
        [sys.executable, "tools/published_coverage.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "PLOT main Table 1" in done.stdout


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
    with pytest.raises(UserError, match="has no variant `x_if50`; known: `gcl_moo_cifar10_"):
        get_recipe("gcl_moo_cifar10_x_if50")


def test_un_mixed_labels_alone_are_ordinary_training_on_first_labels():
    update = get_recipe("plot_official_cifar10_unmixed_only").stages[0].update.config
    assert (update.rho, update.collapse_weight, update.mixed_labels) == (0.0, 0.0, False)
    assert (update.solver.config.c, update.solver.config.rescale) == (0.0, "sum")


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "grids").glob("*.yaml")))
def test_grids_resolve(path):
    recipes, seeds, words = grid.read_grid(str(path))
    assert len(grid.make_grid(recipes, seeds, words)) == len(recipes) * len(seeds)


CLASSES = {"cifar10_lt": 10, "cifar100_lt": 100, "imagenet_lt": 1000, "places_lt": 365}


def shapes() -> list[str]:
    """One recipe for each backbone and chain of methods; `_plot` changes neither."""
    seen, kept = set(), []
    for name in list_recipes("*_*"):
        recipe = get_recipe(name)
        if recipe.data.name in (*CLASSES, "inat18"):
            key = (recipe.backbone.name, *(str(s.method) for s in recipe.stages))
            kept += [name] if key not in seen else []
            seen.add(key)
    return kept


@pytest.mark.parametrize("name", shapes())
def test_every_model_can_be_built(name, monkeypatch):
    recipe = get_recipe(name, "backbone.pretrained=false")
    classes = CLASSES.get(recipe.data.name, 8142)
    counts = tuple(max(5, 1000 // (k + 1)) for k in range(classes))
    info = DatasetInfo(recipe.data.name, counts, tuple(map(str, range(classes))))
    small = recipe.backbone.name.endswith("_cifar")
    if "rsg" in name and not small:
        pytest.skip("runs its backbone once to see its maps, which the meta device cannot")

    def without_memory(recipe):  # a large network of the right shapes
        with torch.device("cpu" if small else "meta"):
            return build_backbone(recipe)

    monkeypatch.setattr("ltbench.trainer.build_backbone", without_memory)
    method = None
    for index in range(len(recipe.stages)):
        method = build_method(recipe, index, info, method)
    assert method is not None
    assert sum(p.numel() for p in method.parameters()) > 1e5
