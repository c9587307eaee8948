"""The command `ltbench run`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from pydantic import Field

from ltbench.cli.command import WordsCommand
from ltbench.cli.display import console, plain, show_grid, show_result
from ltbench.cli.launching import (
    check_place,
    chosen_cells,
    show_cells,
    submit_cells,
    submit_run,
)
from ltbench.cli.selecting import read_select, select, show_selection, show_validations
from ltbench.config.files import get_recipe
from ltbench.config.schema import Config
from ltbench.config.words import REST, missing, read_words
from ltbench.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ltbench.config.launcher import Launcher
    from ltbench.config.recipe import Recipe
    from ltbench.config.selection import Select
    from ltbench.train.grid import Cell
    from ltbench.train.progress import NoProgress
    from ltbench.train.search import Search
    from ltbench.train.select import Selection


class Run(Config):
    """Words of `ltbench run`."""

    recipe: tuple[str, ...] = Field(
        (), description="name of a recipe, or path of its file; several with commas between"
    )
    seed: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(
        (), description="seed of all random numbers; several with commas between"
    )
    grid: Path | None = Field(None, description="file that names recipes and seeds")
    jobs: int | None = Field(None, ge=1, le=1024, description="runs of a grid at the same time")
    launcher: str | None = Field(
        None, description="submit runs as jobs: slurm, local, debug; options as launcher.KEY=VALUE"
    )
    cell: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="only these runs of a grid, counted from 0, e.g. one of a job array"
    )
    dry_run: bool = Field(False, description="check recipe and data, describe the run, and stop")
    quiet: bool = Field(False, description="print the results only, no header and progress")
    select: dict[str, Any] = Field(
        {}, description="choose among values on validation images: metric, trials, seed, refit"
    )
    words: tuple[str, ...] = Field((), json_schema_extra=REST, description="keys of the recipe")


OUTCOMES = {  # of a grid's cells, for one of them and for several
    "done": ("done", "done"),
    "was done": ("was done before", "were done before"),
    "committed": ("is a committed record", "are committed records"),
    "elsewhere": ("runs in another process", "run in other processes"),
    "failed": ("failed", "failed"),
}


@click.command(cls=WordsCommand, options=Run)
@click.argument("words", nargs=-1, metavar="recipe=NAME [key=value ...]")
def run(words: tuple[str, ...]) -> None:
    """Train a recipe, evaluate it and write its record.

    The same command goes on after an interruption, and works unchanged under torchrun. The order of
    words has no meaning; two that contradict each other are refused.

    \b
    Examples:
      ltbench run recipe=quickstart
      ltbench run recipe=crt_mixup_plot_cifar10 data.root=DIR seed=1
      ltbench run recipe=mislas_cifar100_if50 data.root=DIR data.download=true
      ltbench run recipe=ce_cifar10 data.root=DIR stages.0.epochs=20 stages.0.optim.lr=0.05
      ltbench run recipe=crt_mixup_plot data=folder data.root=MY_IMAGES
      ltbench run recipe=ce_cifar10,mislas_cifar10 seed=0,1,2 data.root=DIR
      ltbench run recipe=ce_cifar10 stages.0.optim.lr=0.05,0.1 seed=0,1,2 data.root=DIR
      ltbench run recipe=ce_cifar10 stages.0.optim.lr=0.05,0.1 seed=0,1,2 data.root=DIR
                  data.val_fraction=0.1 select.metric=balanced
      ltbench run grid=FILE.yaml data.root=DIR jobs=3
      ltbench run grid=FILE.yaml data.root=DIR launcher=slurm launcher.gpus=4
      ltbench run recipe=crt_mixup_plot data.root=MY_IMAGES dry_run=true
      torchrun --nproc-per-node=4 -m ltbench run recipe=mislas_plot_inat data.root=DIR

    Several recipes, seeds or values of a key make a grid: one table at the end; finished runs are
    skipped, interrupted ones go on, and the same command in a second terminal takes its share.
    jobs=N runs N of them at once: they divide the processor among them, and share the GPU if there
    is one. In keys that take a list, a comma separates its items, and several lists have brackets:
    KEY=[160,180],[80,90].

    select.metric=balanced|overall|many|medium|few|ece chooses the values of each recipe by the mean
    over its seeds on validation images (data.val_fraction=0.1, or those of the data set), and
    evaluates the test images for the chosen ones alone. select.trials=N lets Optuna pick N values
    from lists or ranges: KEY=0.01..0.5, KEY=log:0.01..0.5. select.refit=true trains the chosen ones
    again on training and validation images together.

    launcher=slurm submits them as jobs, each with its own GPUs and ranks; jobs that were preempted
    or killed go on from their checkpoints. Its keys: launcher.gpus, nodes, ranks, cpus, memory,
    minutes, partition, account, qos, constraint, array_parallelism, restarts, wait, options.

    \b
    Often used keys of recipes:
      out=FOLDER           resume=auto|never
      epochs=N             (the whole schedule, shortened to N epochs in its longest stage;
                           keys given beside it keep their values)
      data.root=DIR        data.imbalance_ratio=50
      stages.0.epochs=N    stages.0.batch_size=N stages.0.optim.lr=X
      stages.0.update=plot stages.0.update.solver=mgda
      run.device=cpu       run.precision=bf16    run.max_steps=20 (a smoke test)
    """  # noqa: D301
    given, launcher = _launched(read_words(words, Run))
    if not given.recipe and given.grid is None:
        raise UserError(missing("recipe", words))
    if given.grid is not None or len(given.recipe) > 1 or len(given.seed) > 1 or varies(given):
        run_several(given, launcher)
        return
    if (given.jobs or 1) > 1:
        raise UserError(
            "`jobs` needs several runs: recipe=A,B, seed=0,1,2, several values of a key or "
            "grid=FILE; leave it out for one"
        )
    if given.cell:
        raise UserError("`cell` picks runs of a grid; leave it out for one run")
    name, words = given.recipe[0], (*(f"seed={n}" for n in given.seed), *given.words)
    from ltbench.distributed.launch import read_launch
    from ltbench.train.folder import check_data, run_folder

    recipe, main_rank = get_recipe(name, *words), read_launch().rank == 0
    if main_rank and not given.quiet:
        plain(heading(recipe))
    if "RANK" not in os.environ:
        check_data(recipe)
    if given.dry_run:
        if main_rank:
            preview(recipe)
        return
    if launcher is not None:
        submit_run(recipe, launcher)
        return
    from ltbench.distributed import ranks
    from ltbench.train import run as runner

    reporter = _reporter(given)
    try:
        result = runner.run(recipe, reporter=reporter)
    except KeyboardInterrupt:
        reporter.close()
        if main_rank:
            folder = run_folder(recipe)
            click.echo(
                f"interrupted; the same command goes on from the last checkpoint in {folder}",
                err=True,
            )
        raise
    finally:
        reporter.close()
        ranks.close()
    if main_rank:
        show_result(result)


def varies(given: Run) -> bool:
    """Return whether values are to be chosen, or a key of the one recipe has several."""
    if given.select:
        return True
    if not any("," in word or ".." in word for word in given.words):
        return False
    from ltbench.config.value_grid import space
    from ltbench.train.grid import layers_of

    return bool(space(given.recipe[0], layers_of(given.words)[0]))


def heading(recipe: Recipe, label: str = "") -> str:
    """Return the first line that a run prints."""
    return f"{label or recipe.name}, seed {recipe.seed}, digest {recipe.digest}"


def preview(recipe: Recipe) -> None:
    """Load the data of a run and print its header, without writing anything.

    Raises:
        UserError: the data cannot be loaded.
    """
    from ltbench.train.folder import results_file, run_folder
    from ltbench.train.plan import plan_of

    for line in plan_of(recipe).lines():
        plain(line)
    folder = run_folder(recipe)
    finished = (folder / results_file(recipe)).is_file()
    state = "holds this run, finished" if finished else "has no results"
    plain(f"dry run: nothing was trained or written; the folder {state}")


def _reporter(given: Run) -> NoProgress:
    from ltbench.distributed.launch import read_launch
    from ltbench.train.progress import NoProgress, ProgressBar

    quiet = given.quiet or read_launch().rank != 0
    return NoProgress() if quiet else ProgressBar(console)


def _launched(given: Run) -> tuple[Run, Launcher | None]:
    """Return the words without those of the launcher, and the launcher."""
    from ltbench.config.launcher import read_launcher

    launcher, words = read_launcher(given.launcher, given.words)
    if launcher is not None:
        check_place(launcher, given.jobs)
    return given.model_copy(update={"words": words}), launcher


def run_several(given: Run, launcher: Launcher | None = None) -> None:
    """Run a grid, print its table, and fail at the end if one of its runs failed.

    Raises:
        UserError: of every run that failed.
    """
    from ltbench.distributed.launch import read_launch
    from ltbench.records.results_table import table_rows
    from ltbench.train import grid

    if given.jobs is not None and "RANK" in os.environ:
        raise UserError("`jobs` runs on one machine without torchrun; leave out one of the two")
    main_rank = read_launch().rank == 0
    cells, searches, options = _planned(given)
    if given.cell:
        cells, options = chosen_cells(cells, given.cell), None
    if "RANK" not in os.environ:
        grid.check_some_data(cells)
    if given.dry_run:
        for cell in cells if main_rank else ():
            plain(heading(cell.recipe, cell.label))
            preview(cell.recipe)
        return
    from ltbench.distributed import ranks
    from ltbench.train import run as runner

    seen: dict[str, Any] = {}  # images, read once for all cells

    def one(recipe: Any) -> Any:
        reporter = _reporter(given)
        if main_rank and not given.quiet:
            plain(heading(recipe, labels.get(recipe.digest, "")))
        try:
            result = runner.run(recipe, reporter=reporter, seen=seen)
        finally:
            reporter.close()
        return result.found, result.fresh

    labels: dict[str, str] = {}  # by digest

    def run_cells(some: Sequence[Cell]) -> list[Cell]:
        labels.update({cell.recipe.digest: cell.label for cell in some})
        if launcher is not None:
            return submit_cells(some, launcher, seen)
        if (given.jobs or 1) > 1:
            from ltbench.train.jobs import GridProgress, run_jobs

            return run_jobs(some, given.jobs or 1, GridProgress(console))
        return grid.run_grid(some, one, seen)

    chosen: list[Selection] = []
    try:
        if options is None:
            done = run_cells(cells)
        else:
            at_once = given.jobs or (launcher.array_parallelism if launcher else None) or 1
            chosen = select(cells, searches, options, run_cells, at_once)
            done = [cell for selection in chosen for cell in selection.final]
    except KeyboardInterrupt:
        if main_rank:
            click.echo("interrupted; the same command goes on where it stopped", err=True)
        raise
    finally:
        ranks.close()
    validated = [cell for cell in done if cell.validation is not None]
    if main_rank:
        for selection in chosen:
            show_selection(selection)
        if given.cell:
            show_cells(done)
        elif validated:
            show_validations(validated)
        else:
            show_grid(table_rows(grid.entries(done)), grid.results_folder(done))
        for outcome, (one_of, many_of) in OUTCOMES.items():
            count = sum(c.outcome == outcome for c in done)
            if count:
                plain(f"{count} {one_of if count == 1 else many_of}")
    failed = [
        f"{c.label}, seed {c.recipe.seed}: {c.problem}" for c in done if c.outcome == "failed"
    ]
    if failed:
        raise UserError("\n".join(failed))


def _planned(given: Run) -> tuple[list[Cell], list[Search], Select | None]:
    """Return the runs of a grid, the searches in place of one, and how values are chosen.

    Raises:
        UserError: every mistake, one line each.
    """
    from ltbench.train import grid

    recipes, seeds, shared = grid.read_grid(given.grid) if given.grid else ([], [0], {})
    names = list(dict.fromkeys([*recipes, *given.recipe]))
    seeds = list(dict.fromkeys(given.seed or seeds))
    of_file = grid.read_select(given.grid) if given.grid else {}
    if not (given.select or of_file):
        return grid.make_grid(names, seeds, given.words, shared), [], None
    options = read_select({**of_file, **given.select})
    if "run.evaluate" in shared or any(w.startswith("run.evaluate=") for w in given.words):
        raise UserError(
            "`run.evaluate`: select evaluates all values on validation images, and the chosen ones "
            "on test images; leave it out"
        )
    if options.trials is None:
        words = [*given.words, "run.evaluate=val"]
        return grid.make_grid(names, seeds, words, shared), [], options
    if "RANK" in os.environ or given.cell:
        other = "`cell`" if given.cell else "torchrun"
        raise UserError(f"`select.trials` runs without {other}; leave out one of the two")
    from ltbench.train.search import Search, corners

    layers, out = grid.layers_of(given.words, shared)
    searches = [Search(name, layers, seeds, out, options) for name in names]
    return [cell for search in searches for cell in corners(search)], searches, options
