"""Grids of recipes and seeds; finished runs are skipped, interrupted ones resumed."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ltbench.config.files import resolve
from ltbench.config.recipe import Recipe
from ltbench.config.value_grid import Point, label, points
from ltbench.config.words import parse_words
from ltbench.config.yaml_text import read_yaml_file
from ltbench.digest import digest_of
from ltbench.errors import DivergenceError, UserError, brief
from ltbench.records.aggregate import RANKS
from ltbench.records.results_table import Entry
from ltbench.train.folder import check_data, run_folder

if TYPE_CHECKING:
    from ltbench.records.record import Record
    from ltbench.records.validation import SelectionFacts, Validation
    from ltbench.train.identity import Images

    Runner = Callable[[Recipe], tuple[Record | Validation, bool]]

MOST_CELLS = 10_000  # runs of a grid
Outcome = Literal["done", "was done", "committed", "elsewhere", "failed"]


@dataclass(frozen=True)
class Cell:
    """One run of a grid and what became of it.

    Args:
        recipe: what is run, seed included.
        outcome: ``None`` before its turn; ``elsewhere`` if another process runs it.
        record: of a finished run that was evaluated on the test images.
        problem: why it failed.
        values: value, as it would be typed, of each key that has several in the grid.
        validation: results of a finished run that was evaluated on validation images.
        selected: how its values were chosen among others, if they were.
        diverged: whether it failed because its loss became infinite or no number.
    """

    recipe: Recipe
    outcome: Outcome | None = None
    record: Record | None = None
    problem: str = ""
    values: tuple[tuple[str, str], ...] = ()
    validation: Validation | None = None
    selected: SelectionFacts | None = None
    diverged: bool = False

    @property
    def label(self) -> str:
        """Name of the cell's row in the table of results."""
        return " ".join(filter(None, (self.recipe.name, label(dict(self.values)))))


def make_grid(
    recipes: Sequence[str],
    seeds: Sequence[int],
    words: Sequence[str] = (),
    shared: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """Resolve every recipe with every combination of values and every seed.

    A key may have several values, see ``ltbench.config.value_grid``. Nothing is run before all are
    sound.

    Args:
        recipes: names or paths.
        seeds: numbers >= 0 and < 2^63.
        words: overrides for all of them; ``out=`` is the folder that the runs' folders go to.
        shared: values by dotted key for all of them, which words replace.

    Raises:
        UserError: every mistake, one line each, with the recipe's name; or the grid is too large.
    """
    recipes, seeds = list(dict.fromkeys(recipes)), list(dict.fromkeys(seeds))
    layers, out = layers_of(words, shared)
    found: dict[str, list[Point]] = {}
    problems: dict[str, None] = {}
    for name in recipes:
        try:
            chosen = list(itertools.islice(points(name, layers), MOST_CELLS + 1))
        except UserError as error:
            problems |= {f"{name}: {line}": None for line in str(error).splitlines()}
            continue
        found[name] = chosen
    if sum(map(len, found.values())) * len(seeds) > MOST_CELLS:
        several = ", several values" if any(len(p) > 1 for p in found.values()) else ""
        raise UserError(
            f"expected at most {MOST_CELLS:,} runs, found {len(recipes):,} recipes with "
            f"{len(seeds):,} seeds each{several}"
        )
    cells: list[Cell] = []
    for name, chosen in found.items():
        of_digest: dict[str, Point] = {}
        for point in chosen:
            try:
                recipe = resolve(name, point.given)
            except UserError as error:
                problems |= {f"{name}: {line}": None for line in str(error).splitlines()}
                continue
            twin = of_digest.setdefault(recipe.digest, point)
            if twin is not point:
                first, second = label(twin.values), label(point.values)
                problem = (
                    f"{name}: `{first}` and `{second}` compute the same and would share a folder; "
                    "leave one of them out"
                )
                problems |= {problem: None}
            cells += cells_of(recipe, seeds, out, point.values)
    if problems:
        raise UserError("\n".join(problems))
    return cells


def layers_of(
    words: Sequence[str], shared: Mapping[str, Any] | None = None
) -> tuple[list[dict[str, Any]], str | None]:
    """Return values by dotted key, those of words last, and the folder of all runs among them.

    Raises:
        UserError: of a word without a value, and of keys given twice.
    """
    layers: list[dict[str, Any]] = [dict(shared or {}), dict(parse_words(words))]
    out = [values.pop("out") for values in layers if "out" in values]
    return layers, str(out[-1]) if out else None


def cells_of(
    recipe: Recipe, seeds: Sequence[int], out: str | None, values: Mapping[str, str]
) -> list[Cell]:
    """Return the cells of a recipe, one for each seed.

    Args:
        recipe: with any seed.
        seeds: numbers >= 0 and < 2^63.
        out: folder that the runs' folders go to; None for the default.
        values: of the keys that have several.
    """
    folder = Path(out or "") / f"{recipe.name}-{recipe.digest[:8]}"
    return [
        Cell(
            recipe.model_copy(
                update={"seed": seed} | ({"out": str(folder / f"seed{seed}")} if out else {})
            ),
            values=tuple(values.items()),
        )
        for seed in seeds
    ]


def read_grid(path: Path) -> tuple[list[str], list[int], dict[str, Any]]:
    """Return recipes, seeds and shared values of a grid file.

    The file has ``recipes:`` (a list), ``seeds:`` (a list, by default [0]), ``set:`` (dotted
    keys and values for all runs; a list of values of one key makes runs of each) and ``select:``
    (see ``read_select``).

    Raises:
        UserError: it is missing, not YAML, or has other keys.
    """
    tree = read_yaml_file(Path(path))
    known = {"recipes": list, "seeds": list, "set": dict, "select": dict, "description": str}
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


def read_select(path: Path) -> dict[str, Any]:
    """Return the options of ``ltbench.config.selection.Select`` in a grid file, if it has any."""
    tree = read_yaml_file(Path(path))
    found = tree.get("select") if isinstance(tree, dict) else None
    return found if isinstance(found, dict) else {}


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
    run: Runner,
    seen: dict[str, Images] | None = None,
) -> list[Cell]:
    """Run the cells one after the other; a failure does not stop the others.

    Args:
        cells: from ``make_grid``.
        run: runs one recipe and returns its results and whether it ran just now.
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
        problems.append(f"{cell.label}, seed {cell.recipe.seed}: {problem}")
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
    own = cell.recipe.run.evaluate == "val" or cell.selected is not None
    if cell.outcome is not None or own or not committed:
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


def run_cell(cell: Cell, run: Runner) -> Cell:
    """Run a cell and return it with its outcome, which is ``failed`` after a ``UserError``.

    Args:
        cell: one run.
        run: as for ``run_grid``.
    """
    from ltbench.records.record import Record

    try:
        found, fresh = run(cell.recipe)
    except UserError as error:
        busy = "another process is running" in str(error)
        outcome: Outcome = "elsewhere" if busy else "failed"
        diverged = isinstance(error, DivergenceError)
        return replace(cell, outcome=outcome, problem=str(error), diverged=diverged)
    ended: Outcome = "done" if fresh else "was done"
    if isinstance(found, Record):
        return replace(cell, outcome=ended, record=found)
    return replace(cell, outcome=ended, validation=found)


def entries(cells: Sequence[Cell]) -> list[Entry]:
    """Return the cells as the table of results reads them, see ``records.results_table``."""
    reasons = {None: "not run", "elsewhere": "runs in another process"}
    return [
        Entry(
            c.label,
            c.recipe.digest,
            c.recipe.seed,
            c.record or _finished_elsewhere(c),
            reasons.get(c.outcome, str(c.outcome)),
            None if c.outcome == "committed" else run_folder(c.recipe),
        )
        for c in cells
    ]


def _finished_elsewhere(cell: Cell) -> Record | None:
    """Return the record of a cell that another process has finished in the meantime."""
    from ltbench.records.record import RECORD, Record

    if cell.outcome == "elsewhere":
        with contextlib.suppress(UserError):
            record = Record.load(run_folder(cell.recipe) / RECORD)
            if (record.recipe.digest, record.seed) == (cell.recipe.digest, cell.recipe.seed):
                return record
    return None


def results_folder(cells: Sequence[Cell]) -> Path:
    """Return the folder of a grid's table: that of its runs, by default one for these runs."""
    first = cells[0].recipe
    top = run_folder(first).parent.parent
    if first.out is not None:
        return top
    digest = digest_of({"grid": sorted([c.recipe.digest, c.recipe.seed] for c in cells)})
    return top / f"grid-{digest[:8]}"
