"""Choices on validation images as `ltbench run` makes and prints them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING

from ltbench.cli.display import plain
from ltbench.config.value_grid import label
from ltbench.errors import UserError

if TYPE_CHECKING:
    from ltbench.config.selection import Select
    from ltbench.evaluation.metrics import Metrics
    from ltbench.train.grid import Cell
    from ltbench.train.search import Search
    from ltbench.train.select import RunCells, Selection

MEASURES = ("balanced", "overall", "many", "medium", "few", "ece")
MARK = "*"  # in front of the chosen values


def select(
    cells: Sequence[Cell], searches: Sequence[Search], options: Select, run: RunCells, at_once: int
) -> list[Selection]:
    """Choose the values of every recipe, and evaluate the chosen ones on the test images.

    Args:
        cells: of a grid.
        searches: of each recipe, in place of a grid.
        options: how to choose.
        run: runs cells.
        at_once: runs at the same time.

    Raises:
        UserError: there are no validation images, or a run failed.
    """
    from ltbench.train.select import finish, select_from_grid

    if not searches:
        return select_from_grid(cells, options, run)
    from ltbench.train.search import select_by_search

    chosen = [
        select_by_search(s, run, at_once=max(1, at_once // len(s.seeds)), say=plain)
        for s in searches
    ]
    return finish(chosen, options, run)


def read_select(given: dict[str, object]) -> Select:
    """Return the options of a choice.

    Raises:
        UserError: every mistake, one line each.
    """
    from ltbench.config.selection import Select
    from ltbench.config.validation import find_mistakes

    options, mistakes = find_mistakes(Select, dict(given), "select")
    if options is None or mistakes:
        raise UserError("\n".join(mistakes))
    return options


def show_selection(selection: Selection) -> None:
    """Print the candidates of a recipe, with their results on validation images."""
    facts, first = selection.facts, selection.candidates[0].cells[0]
    seeds = len(facts.seeds)
    over = f", means of {seeds} seeds" if seeds > 1 else f", seed {facts.seeds[0]}"
    plain(f"\n{first.recipe.name}: {facts.val_images:,} validation images{over}, %")
    rows = [
        (label(dict(c.cells[0].values)) or "as it stands", [_metrics(cell) for cell in c.cells])
        for c in selection.candidates
    ]
    for line in table(rows, facts.metric, facts.chosen):
        plain(line)
    ties = f"; {facts.tied} tied, the first was taken" if facts.tied > 1 else ""
    plain(f"{MARK} chosen by {facts.metric}{ties}; the test images were evaluated for it alone")


def show_validations(cells: Sequence[Cell]) -> None:
    """Print the results of runs that were evaluated on validation images."""
    by_digest: dict[str, list[Cell]] = {}
    for cell in cells:
        by_digest.setdefault(cell.recipe.digest, []).append(cell)
    rows = [(own[0].label, [_metrics(cell) for cell in own]) for own in by_digest.values()]
    plain("\nvalidation images, %")
    for line in table(rows, "balanced"):
        plain(line)


def table(
    rows: Sequence[tuple[str, Sequence[Metrics | None]]], metric: str, chosen: int | None = None
) -> list[str]:
    """Return lines of results: the deciding measure first, with its standard deviation.

    Args:
        rows: label and results of each seed, None where a run has none.
        metric: the measure that decides.
        chosen: number of the row that is marked.
    """
    names = [metric, *(name for name in MEASURES if name != metric)]
    width = max(len("value"), *(len(text) for text, _ in rows))
    heads = ["ECE" if name == "ece" else name for name in names]
    lines = [f"  {'value':<{width}}  n{heads[0]:>16}{''.join(f'{h:>9}' for h in heads[1:])}"]
    for number, (text, results) in enumerate(rows):
        found = [m for m in results if m is not None]
        cells = [_cell([_measured(m, name) for m in found], name == metric) for name in names]
        if len(found) < len(results):
            cells = ["diverged" if not found else f"{len(results) - len(found)} diverged"]
        mark = MARK if number == chosen else " "
        first, *others = cells
        lines.append(
            f"{mark} {text:<{width}}  {len(found)}{first:>16}{''.join(f'{c:>9}' for c in others)}"
        )
    return lines


def _metrics(cell: Cell) -> Metrics | None:
    return None if cell.validation is None else cell.validation.metrics


def _measured(metrics: Metrics, name: str) -> float | None:
    from ltbench.train.select import measure

    try:
        return measure(metrics, name)
    except UserError:  # a shot group without images
        return None


def _cell(values: Sequence[float | None], spread: bool) -> str:
    found = [100 * value for value in values if value is not None]
    if not found:
        return "-"
    text = f"{mean(found):.2f}"
    return f"{text} ± {stdev(found):.2f}" if spread and len(found) > 1 else text
