"""Grids of recipes and seeds; finished runs are skipped, interrupted ones resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from ltbench.config.files import get_recipe
from ltbench.config.recipe import Recipe
from ltbench.errors import UserError
from ltbench.records.aggregate import VALUES, average_seeds, plus_minus

if TYPE_CHECKING:
    from rich.table import Table

    from ltbench.records.record import Record

Outcome = Literal["done", "was done", "committed", "elsewhere", "failed"]


@dataclass(frozen=True)
class Cell:
    """One run of a grid and what became of it.

    Args:
        recipe: what is run, seed included.
        outcome: ``None`` before its turn; ``elsewhere`` is in work by another process.
        record: of a finished run.
        problem: why it failed.
    """

    recipe: Recipe
    outcome: Outcome | None = None
    record: Record | None = None
    problem: str = ""


def make_grid(recipes: Sequence[str], seeds: Sequence[int], words: Sequence[str]) -> list[Cell]:
    """Resolve every recipe with every seed; nothing is run before all are sound.

    Args:
        recipes: names or paths.
        seeds: numbers >= 0.
        words: overrides for all of them; ``out=`` is the folder that the runs' folders go to.

    Raises:
        UserError: every mistake, one line each, with the recipe's name.
    """
    out = next((w.removeprefix("out=") for w in words if w.startswith("out=")), "")
    shared = [w for w in words if not w.startswith("out=")]
    cells, problems = [], []
    for name in dict.fromkeys(recipes):
        try:
            recipe = get_recipe(name, *shared)
        except UserError as error:
            problems += [f"{name}: {line}" for line in str(error).splitlines()]
            continue
        for seed in dict.fromkeys(seeds):
            own = recipe.model_copy(update={"seed": seed})
            folder = Path(out) / f"{own.name}-{own.digest[:8]}" / f"seed{seed}"
            cells.append(Cell(own.model_copy(update={"out": str(folder)}) if out else own))
    if problems:
        raise UserError("\n".join(problems))
    return cells


def read_grid(path: str) -> tuple[list[str], list[int], list[str]]:
    """Return recipes, seeds and override words of a grid file.

    The file has ``recipes:`` (a list), ``seeds:`` (a list, by default [0]) and ``set:`` (dotted
    keys and values for all runs).

    Raises:
        UserError: it is missing, not YAML, or has other keys.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the grid file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not readable YAML: {str(error).splitlines()[0]}") from error
    known = {"recipes": list, "seeds": list, "set": dict, "description": str}
    if not isinstance(tree, dict) or not tree.get("recipes"):
        raise UserError(f"{path}: expected `recipes:` with a list of names")
    for key, value in tree.items():
        if key not in known or not isinstance(value, known[key]):
            raise UserError(
                f"{path}: `{key}` is not understood; a grid file has recipes: [names], "
                "seeds: [numbers], set: {key: value}"
            )
    words = [f"{key}={_word(value)}" for key, value in tree.get("set", {}).items()]
    return [str(r) for r in tree["recipes"]], read_seeds(tree.get("seeds", [0])), words


def read_seeds(values: Sequence[Any]) -> list[int]:
    """Return seeds as numbers.

    Raises:
        UserError: one is not a whole number >= 0.
    """
    wrong = [v for v in values if not str(v).isdigit()]
    if wrong:
        raise UserError(f"`seed`: expected whole numbers >= 0, e.g. seed=0,1,2, found `{wrong[0]}`")
    return [int(v) for v in values]


def run_grid(cells: Sequence[Cell], run: Callable[[Recipe], tuple[Record, bool]]) -> list[Cell]:
    """Run the cells one after the other; a failure does not stop the others.

    Args:
        cells: from ``make_grid``.
        run: runs one recipe and returns its record and whether it ran just now.
    """
    return [run_cell(cell, run) if cell.outcome is None else cell for cell in known(cells)]


def known(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells, those with a committed record as ``committed``."""
    from ltbench.records.store import records

    committed = {(r.recipe.digest, r.seed): r for r in records()}
    found = [committed.get((c.recipe.digest, c.recipe.seed)) for c in cells]
    return [
        cell if record is None else replace(cell, outcome="committed", record=record)
        for cell, record in zip(cells, found, strict=True)
    ]


def run_cell(cell: Cell, run: Callable[[Recipe], tuple[Record, bool]]) -> Cell:
    """Return a cell with what became of it; a user's mistake is no exception here.

    Args:
        cell: one run.
        run: as for ``run_grid``.
    """
    try:
        record, fresh = run(cell.recipe)
    except UserError as error:
        busy = "another process is running" in str(error)
        outcome: Outcome = "elsewhere" if busy else "failed"
        return replace(cell, outcome=outcome, problem=str(error))
    return replace(cell, outcome="done" if fresh else "was done", record=record)


def rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return one row per recipe: means over its seeds in percent, and standard deviations."""
    found = average_seeds([c.record for c in cells if c.record is not None])
    order = list(dict.fromkeys(c.recipe.name for c in cells))
    return sorted(found, key=lambda row: order.index(row["recipe"]))


def table(cells: Sequence[Cell]) -> Table:
    """Return the rows of a grid for the terminal."""
    from rich import box
    from rich.table import Table

    show = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    show.add_column("recipe", overflow="fold")
    for value in ("n", *(("ECE" if v == "ece" else v) for v in VALUES), "epochs"):
        show.add_column(value, justify="right", no_wrap=True)
    for row in rows(cells):
        texts = [plus_minus(row[v], row[f"{v}_std"]) for v in VALUES]
        show.add_row(row["recipe"], str(row["n"]), *texts, row["epochs"])
    return show


def _word(value: Any) -> str:
    flow = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return value if isinstance(value, str) else flow.partition("\n")[0]
