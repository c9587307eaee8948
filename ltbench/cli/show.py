"""The commands `ltbench list` and `ltbench show`."""

from __future__ import annotations

import json
from typing import Any

import click
from pydantic import Field
from rich.markup import escape
from rich.table import Table

from ltbench.cli.command import WordsCommand
from ltbench.cli.display import console, published_row, show_catalogue
from ltbench.config.schema import Config
from ltbench.config.words import PLAIN, REST, read_words
from ltbench.errors import UserError

KINDS = ("recipes", "models", "methods", "updates", "solvers", "samplers", "backbones", "datasets")


class List(Config):
    """Words of `ltbench list`."""

    pattern: str = Field("*", json_schema_extra=PLAIN, description="pattern of a shell")
    pretrained: bool = Field(False, description="trained models only (models)")


class Show(Config):
    """Words of `ltbench show`."""

    recipe: str = Field(description="name of a recipe, or path of its file")
    words: tuple[str, ...] = Field((), json_schema_extra=REST, description="keys of the recipe")


@click.command("list", cls=WordsCommand, options=List)
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
    given = read_words(words, List)
    pattern, pretrained = given.pattern, given.pretrained
    if pretrained and kind != "models":
        raise UserError(f"`pretrained` is for models, found {kind}; leave it out")
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


@click.command(cls=WordsCommand, options=Show)
@click.argument("words", nargs=-1, metavar="recipe=NAME [key=value ...]")
def show(words: tuple[str, ...]) -> None:
    """Show a recipe with all its values, its digest, and where each value comes from.

    \b
    Examples:
      ltbench show recipe=mislas_plot_inat
      ltbench show recipe=ce_cifar10_if50 stages.0.update=plot
    """  # noqa: D301
    from ltbench.config.files import describe

    given = read_words(words, Show)
    recipe, rows = describe(given.recipe, given.words)
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


def listing(kind: str, pattern: str, *, pretrained: bool = False) -> list[tuple[str, str]]:
    """Return names and one-line descriptions of one kind."""
    from ltbench.config.files import list_recipes, recipe_summary
    from ltbench.config.registry import registry as find_registry

    if kind == "recipes":
        return [(name, recipe_summary(name)) for name in list_recipes(pattern)]
    if kind == "models":
        from ltbench.hub import zoo

        if pretrained:
            return zoo.listing(pattern)
        kind = "backbones"  # what `create_model` knows
    registry: Any = find_registry(kind.upper())
    names = registry.names(pattern)
    if kind == "backbones" and not names:
        import timm

        return [(name, "timm") for name in timm.list_models(pattern)]
    return [(name, registry.summary(name)) for name in names]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
