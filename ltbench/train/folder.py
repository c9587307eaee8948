"""Checks of a run's folder and data that import little, so that mistakes show quickly."""

from __future__ import annotations

from pathlib import Path

from ltbench.config.paths import expanded
from ltbench.config.recipe import Recipe
from ltbench.records.record import RECORD
from ltbench.records.validation import VALIDATION


def run_folder(recipe: Recipe) -> Path:
    """Return the folder of a run; overrides change the digest and so the default folder."""
    if recipe.out is not None:
        return expanded(recipe.out)
    return Path("runs") / f"{recipe.name}-{recipe.digest[:8]}" / f"seed{recipe.seed}"


def results_file(recipe: Recipe) -> str:
    """Return the name of the file that a run writes last."""
    return VALIDATION if recipe.run.evaluate == "val" else RECORD


def check_data(recipe: Recipe) -> None:
    """Check quickly that a run is finished or has data to load.

    Raises:
        UserError: the data set's root is missing or empty.
    """
    if not (run_folder(recipe) / results_file(recipe)).is_file():
        recipe.data.config.ready()  # type: ignore[attr-defined]
