"""Runs of `ltbench run launcher=...`, as jobs of a cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ltbench.cli.display import console, plain, show_result
from ltbench.errors import UserError

if TYPE_CHECKING:
    from ltbench.config.launcher import Launcher
    from ltbench.config.recipe import Recipe
    from ltbench.train.grid import Cell


def submit_cells(cells: Sequence[Cell], launcher: Launcher, seen: dict[str, Any]) -> list[Cell]:
    """Run the cells of a grid as jobs and return them with their outcomes.

    Args:
        cells: of a grid.
        launcher: what each job asks for.
        seen: images of data sets read before; is added to.

    Raises:
        UserError: submitit is missing, or refuses what is asked for.
    """
    from ltbench.train import grid
    from ltbench.train.cluster import FOLDER, run_cluster
    from ltbench.train.jobs import GridProgress

    folder = (grid.results_folder(cells) / FOLDER).absolute()
    plain(f"jobs and their output: {folder}")
    known = grid.known(cells, seen)
    done = run_cluster(known, launcher, GridProgress(console), folder, seen)
    if not launcher.wait:
        plain("submitted; the same command with launcher.wait=true waits and prints the table")
    return done


def submit_run(recipe: Recipe, launcher: Launcher) -> None:
    """Run one recipe as a job and print its results.

    Raises:
        UserError: the run failed, or submitit refuses what is asked for.
    """
    from ltbench.train.cluster import FOLDER, run_cluster
    from ltbench.train.folder import run_folder
    from ltbench.train.grid import Cell
    from ltbench.train.jobs import GridProgress
    from ltbench.train.run import Result

    place = run_folder(recipe)
    folder = (place.parent / FOLDER).absolute()
    plain(f"job and its output: {folder}")
    try:
        (cell,) = run_cluster([Cell(recipe)], launcher, GridProgress(console), folder)
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on where it stopped", err=True)
        raise
    found = cell.record or cell.validation
    if cell.outcome == "failed":
        raise UserError(cell.problem)
    if found is None:
        plain("submitted; the same command with launcher.wait=true waits and prints the results")
    else:
        show_result(Result(place, found, fresh=cell.outcome == "done"))


def check_place(launcher: Launcher, jobs: int | None) -> None:
    """Check that jobs can be submitted from this process.

    Raises:
        UserError: it is a rank of torchrun, or runs are to be made here as well.
    """
    if "RANK" in os.environ:
        raise UserError("`launcher` starts the ranks itself; give the command without torchrun")
    if jobs is not None:
        raise UserError(
            "`jobs` runs on this machine, `launcher` as jobs of a cluster; leave out one of the two"
            " (launcher.array_parallelism=N limits the runs at a time)"
        )
    if launcher.executor in ("local", "debug") and not launcher.wait:
        raise UserError(
            f"`launcher.wait=false` needs a queue, which launcher={launcher.executor} does not "
            "have; leave it out"
        )


def chosen_cells(cells: Sequence[Cell], numbers: Sequence[int]) -> list[Cell]:
    """Return the cells of these numbers.

    Raises:
        UserError: the grid has no such cell.
    """
    wrong = [number for number in numbers if number >= len(cells)]
    if wrong:
        raise UserError(
            f"`cell`: expected numbers from 0 to {len(cells) - 1}, as this grid has {len(cells)} "
            f"runs, found {wrong[0]}"
        )
    return [cells[number] for number in numbers]


def show_cells(cells: Sequence[Cell]) -> None:
    """Print the results of single runs of a grid, whose table the whole grid writes."""
    from ltbench.train.folder import run_folder
    from ltbench.train.run import Result

    for cell in cells:
        found = cell.record or cell.validation
        if found is not None:
            show_result(Result(run_folder(cell.recipe), found, fresh=cell.outcome == "done"))
