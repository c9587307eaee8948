from __future__ import annotations

from pathlib import Path

from ltbench.errors import UserError


def recipes_dir() -> Path:
    """Return the folder of the recipes: ``recipes/`` of a checkout, or its copy in the wheel.

    Raises:
        UserError: there is neither.
    """
    return _top_level("recipes")


def leaderboard_dir() -> Path:
    """Return the folder of records and published numbers, of a checkout or in the wheel.

    Raises:
        UserError: there is neither.
    """
    return _top_level("leaderboard")


def _top_level(name: str) -> Path:
    package = Path(__file__).resolve().parent.parent
    for folder in (package / f"_{name}", package.parent / name):
        if folder.is_dir():
            return folder
    raise UserError(
        f"`{name}/` is neither inside the installed package nor beside it; reinstall ltbench "
        "with `pip install .` or `pip install -e .` from a complete checkout"
    )
