"""Grids of recipes and seeds; finished runs are skipped, interrupted ones resumed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ltbench.config.files import resolve
from ltbench.config.recipe import Recipe
from ltbench.config.words import parse_words
from ltbench.config.yaml_text import read_yaml_file
from ltbench.errors import UserError, brief
from ltbench.records.aggregate import RANKS, VALUES, average_seeds, plus_minus
from ltbench.train.folder import check_data

if TYPE_CHECKING:
    from rich.table import Table

    from ltbench.records.record import Record
    from ltbench.train.identity import Images

MOST_CELLS = 10_000  # runs of a grid
Outcome = Literal["done", "was done", "committed", "elsewhere", "failed"]


@dataclass(frozen=True)
class Cell:
    """One run of a grid and what became of it.

    Args:
        recipe: what is run, seed included.
        outcome: ``None`` before its turn; ``elsewhere`` if another process runs it.
        record: of a finished run.
        problem: why it failed.
    """

    recipe: Recipe
    outcome: Outcome | None = None
    record: Record | None = None
    problem: str = ""


def make_grid(
    recipes: Sequence[str],
    seeds: Sequence[int],
    words: Sequence[str] = (),
    shared: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """Resolve every recipe with every seed; nothing is run before all are sound.

    Args:
        recipes: names or paths.
        seeds: numbers >= 0 and < 2^63.
        words: overrides for all of them; ``out=`` is the folder that the runs' folders go to.
        shared: values by dotted key for all of them, which words replace.

    Raises:
        UserError: every mistake, one line each, with the recipe's name; or the grid is too large.
    """
    recipes, seeds = list(dict.fromkeys(recipes)), list(dict.fromkeys(seeds))
    if len(recipes) * len(seeds) > MOST_CELLS:
        raise UserError(
            f"expected at most {MOST_CELLS:,} runs, found {len(recipes):,} recipes with "
            f"{len(seeds):,} seeds each"
        )
    given = [dict(shared or {}), dict(parse_words(words))]
    out = [values.pop("out") for values in given if "out" in values]
    cells, problems = [], []
    for name in recipes:
        try:
            recipe = resolve(name, given)
        except UserError as error:
            problems += [f"{name}: {line}" for line in str(error).splitlines()]
            continue
        for seed in seeds:
            own = recipe.model_copy(update={"seed": seed})
            folder = Path(str(out[-1] if out else "")) / f"{own.name}-{own.digest[:8]}"
            where = {"out": str(folder / f"seed{seed}")} if out else {}
            cells.append(Cell(own.model_copy(update=where)))
    if problems:
        raise UserError("\n".join(problems))
    return cells


def read_grid(path: Path) -> tuple[list[str], list[int], dict[str, Any]]:
    """Return recipes, seeds and shared values of a grid file.

    The file has ``recipes:`` (a list), ``seeds:`` (a list, by default [0]) and ``set:`` (dotted
    keys and values for all runs).

    Raises:
        UserError: it is missing, not YAML, or has other keys.
    """
    tree = read_yaml_file(Path(path))
    known = {"recipes": list, "seeds": list, "set": dict, "description": str}
    if not isinstance(tree, dict) or not tree.get("recipes"):
        raise UserError(f"{path}: expected `recipes:` with a list of names")
    for key, value in tree.items():
        if key not in known or not isinstance(value, known[key]):
            raise UserError(
                f"{path}: `{brief(key)}` is not understood; a grid file has recipes: [names], "
                "seeds: [numbers], set: {key: value}"
            )
    wrong = [name for name in tree["recipes"] if not isinstance(name, str)]
    if wrong:
        raise UserError(f"{path}: `recipes`: expected names or paths, found {brief(wrong[0])}")
    return tree["recipes"], read_seeds(tree.get("seeds", [0])), tree.get("set", {})


def read_seeds(values: Sequence[Any]) -> list[int]:
    """Return seeds as numbers.

    Raises:
        UserError: one is not a whole number from 0 to 2^63 - 1.
    """
    wrong = [v for v in values if not re.fullmatch("[0-9]{1,19}", str(v)) or int(v) >= 2**63]
    if wrong:
        raise UserError(
            "`seed`: expected whole numbers from 0 to 2^63 - 1, e.g. seed=0,1,2, "
            f"found {brief(wrong[0])}"
        )
    return [int(v) for v in values]


def run_grid(
    cells: Sequence[Cell],
    run: Callable[[Recipe], tuple[Record, bool]],
    seen: dict[str, Images] | None = None,
) -> list[Cell]:
    """Run the cells one after the other; a failure does not stop the others.

    Args:
        cells: from ``make_grid``.
        run: runs one recipe and returns its record and whether it ran just now.
        seen: images of data sets read before; is added to.
    """
    return [run_cell(cell, run) if cell.outcome is None else cell for cell in known(cells, seen)]


def check_some_data(cells: Sequence[Cell]) -> None:
    """Check quickly that at least one cell is finished or has data to load.

    Raises:
        UserError: none is; one line for each.
    """
    problems = []
    for cell in cells:
        problem = _unready(cell.recipe)
        if not problem:
            return
        problems.append(f"{cell.recipe.name}, seed {cell.recipe.seed}: {problem}")
    raise UserError("\n".join(problems))


def _unready(recipe: Recipe) -> str:
    try:
        check_data(recipe)
    except UserError as error:
        return str(error)
    return ""


def known(cells: Sequence[Cell], seen: dict[str, Images] | None = None) -> list[Cell]:
    """Return the cells, those with a committed record of the same images as ``committed``.

    Args:
        cells: from ``make_grid``.
        seen: images of data sets read before; is added to.
    """
    from ltbench.records.store import sound_records

    asked = {(cell.recipe.digest, cell.recipe.seed) for cell in cells}
    found: dict[tuple[str, int], list[Record]] = {}
    for record in sound_records():
        key = (record.recipe.digest, record.seed)
        if key in asked and record.status in ("claimed", "reproduced", "verified"):
            found.setdefault(key, []).append(record)
    seen = {} if seen is None else seen
    return [_answered(c, found.get((c.recipe.digest, c.recipe.seed), []), seen) for c in cells]


def _answered(cell: Cell, committed: Sequence[Record], seen: dict[str, Images]) -> Cell:
    """Return a cell with the best of the committed records of its images, if there is one."""
    if cell.outcome is not None or not committed:
        return cell
    from ltbench.train.identity import images_of

    try:
        images = images_of(cell.recipe, seen)
    except UserError:
        return cell  # its run reports it
    same = [record for record in committed if images.match(record)]
    if not same:
        return cell
    best = max(same, key=lambda r: (RANKS.index(r.status), r.date, r.run_id))
    return replace(cell, outcome="committed", record=best)


def run_cell(cell: Cell, run: Callable[[Recipe], tuple[Record, bool]]) -> Cell:
    """Run a cell and return it with its outcome, which is ``failed`` after a ``UserError``.

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
    """Return one row per recipe: means over its seeds in percent, and standard deviations.

    Rows that share a name, with other images or from files of the same name, are numbered.
    """
    names = {cell.recipe.digest: cell.recipe.name for cell in cells}
    order = list(names.values())
    found = average_seeds(
        [_named(c.record, names[c.recipe.digest]) for c in cells if c.record is not None]
    )
    found.sort(key=lambda row: order.index(row["recipe"]))
    for name in {row["recipe"] for row in found}:
        same = [row for row in found if row["recipe"] == name]
        for number, row in enumerate(same if len(same) > 1 else (), start=1):
            row["recipe"] = f"{name} ({number})"
    return found


def _named(record: Record, name: str) -> Record:
    """Return a record under the name that the recipe has in this grid."""
    facts = record.recipe
    if facts.name == name:
        return record
    return record.model_copy(update={"recipe": facts.model_copy(update={"name": name})})


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
