"""The commands `ltbench list` and `ltbench show`."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

import click
from pydantic import Field
from rich.markup import escape

from ltbench.cli.command import OWN_PARTS, WordsCommand
from ltbench.cli.display import console, plain, published_row, show_catalogue
from ltbench.config import plugins
from ltbench.config.schema import Config
from ltbench.config.words import PLAIN, REST, missing, read_words
from ltbench.errors import UserError

if TYPE_CHECKING:
    from ltbench.config.explain import Explanation
    from ltbench.config.recipe import Recipe

KINDS = (
    *("recipes", "models", "methods", "updates", "solvers", "samplers", "backbones", "datasets"),
    "releases",
)


class List(Config):
    """Words of `ltbench list`."""

    pattern: str = Field("*", json_schema_extra=PLAIN, description="pattern of a shell")
    pretrained: bool = Field(False, description="trained models only (models)")
    plugins: tuple[str, ...] = OWN_PARTS


class Show(Config):
    """Words of `ltbench show`."""

    recipe: str | None = Field(None, description="name of a recipe, or path of its file")
    changed: bool = Field(False, description="only what the recipe or these words set")
    key: tuple[str, ...] = Field(
        (),
        description="meaning, range and default of keys, in the recipe or in general: a key, its "
        "end or its beginning",
    )
    explain: tuple[str, ...] = Field((), description="the same as key=")
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
      ltbench list releases "*imagenet_lt*" checkpoints of the literature, for `ltbench import`
    """  # noqa: D301
    given = read_words(words, List)
    plugins.load_plugins(given.plugins)
    pattern, pretrained = given.pattern, given.pretrained
    if pretrained and kind != "models":
        raise UserError(f"`pretrained` is for models, found {kind}; leave it out")
    if in_full and kind != "methods":
        raise UserError(f"`--long` is for methods, found {kind}; leave it out")
    rows = listing(kind, pattern, pretrained=pretrained)
    if not rows:
        inside = listing(kind, f"*{pattern}*", pretrained=pretrained)
        found = f'; "*{pattern}*" matches {len(inside)}' if inside else ""
        raise UserError(f"no {kind} match `{pattern}`{found}; `ltbench list {kind}` shows all")
    if in_full:
        show_catalogue(pattern)
        return
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:  # one line each, however narrow the terminal: made for grep
        console.print(f"{name:<{width}}  [dim]{escape(summary)}[/dim]", soft_wrap=True)
    if pattern == "*":
        more = "; any name of timm works too: list backbones 'vit*'" if kind == "backbones" else ""
        noun = kind.removesuffix("s") if len(rows) == 1 else kind
        click.echo(f"{len(rows)} {noun}{more}", err=True)


@click.command(cls=WordsCommand, options=Show)
@click.argument("words", nargs=-1, metavar="[recipe=NAME [KEY=VALUE ...]] [key=KEY]")
def show(words: tuple[str, ...]) -> None:
    """Show a recipe with all its values, where each comes from, and its digest, or explain keys.

    \b
    Examples:
      ltbench show recipe=mislas_plot_inat
      ltbench show recipe=ce_cifar10_if50 stages.0.update=plot
      ltbench show recipe=crt_mixup_plot changed=true           without the defaults
      ltbench show key=stages.0.update.rho                      what a key means
      ltbench show recipe=crt_mixup_plot key=rho,stages.0.optim
    """  # noqa: D301
    from ltbench.config.files import describe

    given = read_words(words, Show)
    asked = tuple(dict.fromkeys((*given.key, *given.explain)))
    if given.recipe is None:
        if not asked or given.words:
            raise UserError(missing("recipe", given.words or words))
        _show_keys(asked)
        return
    recipe, rows = describe(given.recipe, given.words)
    if given.changed:
        rows = [row for row in rows if row[2] != "default"]
    if asked:
        _show_explanations(recipe, asked, {path: row for path, *row in rows})
        return
    _show_rows([(f"{path}={_plain(value)}", origin) for path, value, origin in rows])
    console.print(f"\ndigest {recipe.digest}  (without seed, paths and workers)")
    target = published_row(recipe)
    if target is not None:
        console.print(f"aims at {target}")


def _show_rows(rows: list[tuple[str, str]]) -> None:
    """Print `key=value` with its origin, one line each without a terminal; keys stay whole."""
    room = console.width if console.is_terminal else 10**6
    left = min(max((len(text) for text, _ in rows), default=0), 56)
    for text, origin in rows:
        style = "dim" if origin == "default" else ""
        line = f"{text:<{left}}  {origin}"
        if len(line) > room:
            line = textwrap.fill(
                f"{text}  ({origin})", room, subsequent_indent="    ", break_long_words=False,
                break_on_hyphens=False,
            )  # fmt: skip
        console.print(line, style=style, markup=False, soft_wrap=True)


def _show_explanations(recipe: Recipe, keys: tuple[str, ...], rows: dict[str, list[Any]]) -> None:
    """Print what keys mean, with their values in a recipe and where these come from."""
    from ltbench.config.explain import explain

    for found in explain(recipe, keys):
        if found.key in rows:
            value, origin = rows[found.key]
            plain(f"{found.key}={_plain(value)}  ({origin})")
            _wrapped(found.meaning, 4)
            _wrapped(_takes(found), 4)


def _show_keys(keys: tuple[str, ...]) -> None:
    """Print what keys mean in any recipe, by the parts that have them, and what recipes set."""
    from ltbench.config.keys import find_keys, uses

    plugins.load_installed()
    found = find_keys(keys)
    before = ""
    for one, use in zip(found, uses(found), strict=True):
        if one.key != before:
            plain(one.key)
        before = one.key
        if one.parts:
            _wrapped(f"with {'; '.join(one.parts)}", 2)
        _wrapped(one.meaning, 4)
        _wrapped(_takes(one), 4)
        if use.recipes:
            values = [f"{value} ({count})" for value, count in use.values[:4]]
            more = ", ..." if len(use.values) > 4 else ""
            count = f"{use.recipes} recipe{'s set' if use.recipes > 1 else ' sets'} it"
            _wrapped(f"{count}, e.g. {use.example}: {', '.join(values)}{more}", 4)


def _takes(found: Explanation) -> str:
    return f"{found.values}; {f'default {found.default}' if found.default else 'required'}"


def _wrapped(text: str, indent: int) -> None:
    """Print a text in lines of at most 100 columns; words, keys among them, stay whole."""
    lines = textwrap.wrap(
        text, min(console.width, 100) - indent, break_long_words=False, break_on_hyphens=False
    )
    if lines:
        plain(textwrap.indent("\n".join(lines), " " * indent))


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
    if kind == "releases":
        from ltbench.importing.releases import releases

        return [(name, known.summary) for name, known in releases(pattern).items()]
    registry: Any = find_registry(kind.upper())
    plugins.load_installed()
    names = registry.names(pattern)
    if kind == "backbones" and not names:
        import timm

        return [(name, "timm") for name in timm.list_models(pattern)]
    return [(name, registry.summary(name) + _origin(registry.plugin(name))) for name in names]


def _origin(plugin: str) -> str:
    return f" (plugin {plugins.title(plugin)})" if plugin else ""


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
