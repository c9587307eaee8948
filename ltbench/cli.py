from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from ltbench import __version__
from ltbench.cli_bench import bench
from ltbench.cli_data import data
from ltbench.cli_diagnose import diagnose
from ltbench.cli_download import download
from ltbench.cli_hub import publish
from ltbench.cli_leaderboard import leaderboard
from ltbench.display import (
    console,
    metrics_table,
    published_row,
    show_catalogue,
    show_result,
)
from ltbench.errors import UserError, did_you_mean

KINDS = ("recipes", "models", "methods", "updates", "solvers", "samplers", "backbones", "datasets")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Words are key=value; `ltbench COMMAND --help` explains each command.",
)
@click.version_option(__version__, prog_name="ltbench")
def cli() -> None:
    """Train, evaluate and compare long-tailed recognition methods.

    \b
    Start here:
      ltbench run recipe=quickstart          a real problem, no network, two minutes
      ltbench list recipes "*plot*cifar10*"  what there is
      ltbench show recipe=mislas_plot_inat   what a recipe does
    """  # noqa: D301 - \b is click's mark for a paragraph kept as it is


@cli.command()
@click.argument("words", nargs=-1, metavar="recipe=NAME [key=value ...]")
def run(words: tuple[str, ...]) -> None:
    """Train a recipe, evaluate it and write its record.

    The same command goes on after an interruption, and works unchanged under torchrun.

    \b
    Examples:
      ltbench run recipe=quickstart
      ltbench run recipe=crt_mixup_plot_cifar10 data.root=DIR seed=1
      ltbench run recipe=mislas_cifar100_if50 data.root=DIR data.download=true
      ltbench run recipe=ce_cifar10 data.root=DIR stages.0.epochs=20 stages.0.optim.lr=0.05
      ltbench run recipe=crt_mixup_plot data=folder data.root=MY_IMAGES
      ltbench run recipe=ce_cifar10,mislas_cifar10 seed=0,1,2 data.root=DIR
      ltbench run grid=FILE.yaml data.root=DIR jobs=3
      torchrun --nproc-per-node=4 -m ltbench run recipe=mislas_plot_inat data.root=DIR

    Several recipes or seeds make a grid: one table at the end; finished runs are skipped, broken
    ones go on, and the same command in a second terminal takes over its share. jobs=N runs N of
    them at once: they divide the processor among them, and share the GPU if there is one.

    \b
    Often used keys:
      seed=0               out=FOLDER            resume=auto|never
      epochs=N             (the whole schedule, shortened to N epochs in its longest stage;
                           what is given beside it stays as given)
      data.root=DIR        data.imbalance_ratio=50
      stages.0.epochs=N    stages.0.batch_size=N stages.0.optim.lr=X
      stages.0.update=plot stages.0.update.solver=mgda
      run.device=cpu       run.precision=bf16    run.max_steps=20 (a smoke test)
    """  # noqa: D301
    if several(words):
        run_several(words)
        return
    if any(w.startswith("jobs=") for w in words):
        raise UserError(
            "`jobs` needs several runs to choose from: recipe=A,B, seed=0,1,2 or grid=FILE; "
            "leave it out for one"
        )
    from ltbench.config import get_recipe

    name, rest = take(words, "recipe", required=True)
    recipe = get_recipe(name, *rest)
    from ltbench import dist, runner
    from ltbench.report import Bar, Silent

    main_rank = int(os.environ.get("RANK", "0")) == 0
    reporter = Bar(console) if main_rank else Silent()
    try:
        result = runner.run(recipe, reporter=reporter)
    except KeyboardInterrupt:
        reporter.close()
        if main_rank:
            folder = runner.run_folder(recipe)
            click.echo(
                f"interrupted; the same command goes on from the last checkpoint in {folder}",
                err=True,
            )
        raise
    finally:
        reporter.close()
        dist.close()
    if main_rank:
        show_result(result)


@cli.command("list")
@click.argument("kind", default="recipes", type=click.Choice(KINDS))
@click.argument("words", nargs=-1, metavar="[PATTERN] [pretrained=true]")
@click.option("--long", "in_full", is_flag=True, help="All there is to know (methods only).")
def list_(kind: str, words: tuple[str, ...], in_full: bool) -> None:
    """List what exists, by name, with an optional shell pattern.

    \b
    Examples:
      ltbench list recipes "*plot*inat*"
      ltbench list methods
      ltbench list methods "*cr*" --long    paper, kind, departures, recipes, results
      ltbench list backbones "resnext*"     timm's names too, when ours do not match
      ltbench list models pretrained=true   trained models: their results, where they lie
    """  # noqa: D301
    pattern, pretrained = _pattern(kind, words)
    if in_full and kind != "methods":
        raise UserError(f"`--long` is for methods, found {kind}; leave it out")
    rows = listing(kind, pattern, pretrained=pretrained)
    if not rows:
        raise UserError(f"no {kind} match `{pattern}`; `ltbench list {kind}` shows all")
    if in_full:
        show_catalogue(pattern)
        return
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:  # one line each, however narrow the terminal: made for grep
        console.print(f"{name:<{width}}  [dim]{escape(summary)}[/dim]", soft_wrap=True)
    if pattern == "*":
        click.echo(f"{len(rows)} {kind}", err=True)


@cli.command()
@click.argument("words", nargs=-1, metavar="recipe=NAME [key=value ...]")
def show(words: tuple[str, ...]) -> None:
    """Show a recipe with all its values, its digest, and where each value comes from.

    \b
    Examples:
      ltbench show recipe=mislas_plot_inat
      ltbench show recipe=ce_cifar10_if50 stages.0.update=plot
    """  # noqa: D301
    from ltbench.config import describe

    name, rest = take(words, "recipe", required=True)
    recipe, rows = describe(name, rest)
    table = Table(box=None, pad_edge=False)
    for column in ("key", "value", "from"):
        table.add_column(column, overflow="fold", style="dim" if column == "from" else None)
    for path, value, origin in rows:
        table.add_row(path, escape(_plain(value)), escape(origin))
    console.print(table)
    console.print(f"\ndigest {recipe.digest}  (without seed, paths and workers)")
    target = published_row(recipe)
    if target is not None:
        console.print(f"aims at {target}")


@cli.command("eval")
@click.argument("words", nargs=-1, metavar="model=PATH|NAME [seed=K] [data.key=value ...]")
def eval_(words: tuple[str, ...]) -> None:
    """Evaluate a trained model on the test set of its own or another data set.

    \b
    Examples:
      ltbench eval model=runs/quickstart-1a2b3c4d/seed0
      ltbench eval model=RUN/model.safetensors data.root=DIR
      ltbench eval model=quickstart seed=0                      a trained model by its name
      ltbench eval model=hf-hub:ORG/NAME@COMMIT data.root=DIR
      ltbench eval model=RUN dataset=list data.root=DIR data.train=train.txt data.test=new.txt
    """  # noqa: D301
    path, rest = take(words, "model", required=True)
    dataset, rest = take(rest, "dataset")
    seed, rest = take(rest, "seed")
    if seed and not seed.isdecimal():
        raise UserError(f"`seed`: expected a whole number from 0, found `{seed}`")
    from ltbench.api import evaluate, load_described
    from ltbench.config import parse_word
    from ltbench.validation import build_options

    method, facts = load_described(path, seed=int(seed or 0))
    own = dict(facts["recipe"]["data"])
    name = dataset or own["name"]
    options = {k: v for k, v in own.items() if k != "name"} if name == own["name"] else {}
    for word in rest:
        key, value = parse_word(word)
        if not key.startswith("data."):
            raise UserError(f"unknown word `{word}`; expected model=, dataset= or data.key=value")
        options[key.removeprefix("data.")] = value
    config = build_options("DATASETS", name, options)
    metrics = evaluate(method, config.load(), rule=facts["recipe"]["shot_rule"])  # type: ignore[attr-defined]
    console.print(metrics_table(f"{facts['recipe']['name']} on {name}", metrics))


for command in (bench, data, diagnose, download, leaderboard, publish):
    cli.add_command(command)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line: exit code 2 for a user's mistake, 130 for Ctrl-C."""
    rank = os.environ.get("RANK")
    mark = f"[rank {rank}] " if rank and os.environ.get("WORLD_SIZE", "1") != "1" else ""
    warnings.formatwarning = _note
    try:
        cli.main(args=list(argv) if argv is not None else None, standalone_mode=False)
    except UserError as error:
        for line in str(error).splitlines():
            click.echo(f"{mark}error: {line}", err=True)
        sys.exit(2)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


_shown = warnings.formatwarning


def _note(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Write our own warnings as one line, without the place in the code."""
    if category is UserWarning:
        return f"note: {message}\n"
    return _shown(message, category, filename, lineno, line)


def take(words: Sequence[str], key: str, *, required: bool = False) -> tuple[str, list[str]]:
    """Take the value of one `key=value` word out of the others.

    Raises:
        UserError: it is required and not given, or given twice.
    """
    found = [w.partition("=")[2] for w in words if w.startswith(key + "=")]
    rest = [w for w in words if not w.startswith(key + "=")]
    if len(found) > 1:
        raise UserError(f"`{key}=` is given {len(found)} times; give it once")
    if required and not (found and found[0]):
        hint = did_you_mean(key, [w.partition("=")[0] for w in words])
        raise UserError(f"expected `{key}=...`, found {' '.join(words) or 'nothing'}{hint}")
    return (found[0] if found else ""), rest


def several(words: Sequence[str]) -> bool:
    """Whether the words of `run` ask for more than one run."""
    lists = any(w.startswith(("recipe=", "seed=")) and "," in w for w in words)
    return lists or any(w.startswith("grid=") for w in words)


def run_several(words: Sequence[str]) -> None:
    """Run a grid, print its table, and fail at the end if one of its runs failed.

    Raises:
        UserError: of every run that failed.
    """
    from ltbench import dist, grid, runner
    from ltbench.report import Bar, Silent

    at_once, rest = take_jobs(words)
    file, rest = take(rest, "grid")
    names, rest = take(rest, "recipe", required=not file)
    chosen, rest = take(rest, "seed")
    recipes, seeds, shared = grid.read_grid(file) if file else ([], [0], [])
    recipes += [n for n in names.split(",") if n]
    seeds = grid.read_seeds(chosen.split(",")) if chosen else seeds
    cells = grid.make_grid(recipes, seeds, [*shared, *rest])
    main_rank = int(os.environ.get("RANK", "0")) == 0

    def one(recipe: Any) -> Any:
        reporter = Bar(console) if main_rank else Silent()
        if main_rank:
            console.print(f"{recipe.name}, seed {recipe.seed}")
        try:
            result = runner.run(recipe, reporter=reporter)
        finally:
            reporter.close()
        return result.record, result.fresh

    try:
        if at_once > 1:
            from ltbench.jobs import Board, run_jobs

            done = run_jobs(cells, at_once, Board(console))
        else:
            done = grid.run_grid(cells, one)
    except KeyboardInterrupt:
        if main_rank:
            click.echo("interrupted; the same command goes on where it stopped", err=True)
        raise
    finally:
        dist.close()
    if main_rank:
        console.print(grid.table(done))
        for outcome in ("done", "was done", "committed", "elsewhere", "failed"):
            count = sum(c.outcome == outcome for c in done)
            if count:
                console.print(f"{count} {outcome}")
    failed = [
        f"{c.recipe.name}, seed {c.recipe.seed}: {c.problem}" for c in done if c.outcome == "failed"
    ]
    if failed:
        raise UserError("\n".join(failed))


def take_jobs(words: Sequence[str]) -> tuple[int, list[str]]:
    """Take `jobs=N` out of the words of `run`; without it N is 1.

    Raises:
        UserError: N is no number from 1, or the command runs under torchrun.
    """
    chosen, rest = take(words, "jobs")
    if len(rest) == len(words):
        return 1, rest
    if not chosen.isdecimal() or int(chosen) < 1:
        raise UserError(f"`jobs`: expected a whole number from 1, e.g. jobs=3, found `{chosen}`")
    if "RANK" in os.environ:
        raise UserError("`jobs` runs on one machine without torchrun; leave out one of the two")
    return int(chosen), rest


def listing(kind: str, pattern: str, *, pretrained: bool = False) -> list[tuple[str, str]]:
    """Return names and one-line descriptions of one kind."""
    from ltbench import registries
    from ltbench.config import list_recipes, recipe_summary

    if kind == "recipes":
        return [(name, recipe_summary(name)) for name in list_recipes(pattern)]
    if kind == "models":
        from ltbench.hub import zoo

        if pretrained:
            return zoo.listing(pattern)
        kind = "backbones"  # what `create_model` knows
    registry: Any = getattr(registries, kind.upper())
    names = registry.names(pattern)
    if kind == "backbones" and not names:
        import timm

        return [(name, "timm") for name in timm.list_models(pattern)]
    return [(name, registry.summary(name)) for name in names]


def _pattern(kind: str, words: Sequence[str]) -> tuple[str, bool]:
    """Return the pattern among the words of `list`, and whether trained models are wanted."""
    chosen, rest = take(words, "pretrained")
    if len(rest) > 1 or chosen not in ("", "true", "false") or (chosen and kind != "models"):
        raise UserError(
            f"expected a pattern, and for models `pretrained=true`; found {' '.join(words)}"
        )
    return (rest[0] if rest else "*"), chosen == "true"


def _plain(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)
