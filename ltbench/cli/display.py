"""Results and methods as the command line prints them; heavy modules are imported on use."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table

from ltbench.errors import visible

if TYPE_CHECKING:
    from ltbench.evaluation.metrics import Metrics
    from ltbench.train.run import Result

_SECRETS = re.compile(r"(\w://)[^\s/?#@`]+@")  # user and password of an address


def clean(text: str) -> str:
    """Return text for a terminal: control characters escaped, no passwords in addresses.

    Whatever the command line prints passes through here, since names, paths and messages may come
    from files that others wrote.
    """
    text = _SECRETS.sub(r"\1", text)
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or _harmless(c) else visible(c) for c in text)


def _harmless(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def say(text: str, *, err: bool = False) -> None:
    """Print a line, cleaned."""
    click.echo(clean(text), err=err)


class CleanConsole(Console):
    """Console of rich that prints cleaned text."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render an object to segments, those of text cleaned."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(clean(text), style)


console = CleanConsole(highlight=False)


def show_catalogue(pattern: str) -> None:
    """Print all there is to know of some methods."""
    from rich.padding import Padding

    from ltbench.leaderboard.catalogue import catalogue, describe

    for entry in catalogue(pattern):
        year = f" ({entry.year})" if entry.year else ""
        console.print(f"[bold]{entry.name}[/bold]{year}  {escape(entry.summary)}", soft_wrap=True)
        grid = Table.grid(padding=(0, 1))
        grid.add_column(style="dim", width=10)
        grid.add_column(overflow="fold")
        for label, text in describe(entry):
            grid.add_row(label, escape(text))
        console.print(Padding(grid, (0, 0, 1, 2)))


def metrics_table(title: str, metrics: Metrics) -> Table:
    """Return the results of one model as a table."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("")
    for name in ("overall", "many", "medium", "few", "ECE"):
        table.add_column(name, justify="right")
    values = (metrics.top1, metrics.many, metrics.medium, metrics.few, metrics.ece)
    table.add_row("test, %", *("-" if v is None else f"{100 * v:.2f}" for v in values))
    return table


def show_result(result: Result) -> None:
    """Print a finished run: its table, its files, what to type next."""
    from ltbench.leaderboard import nearest_published
    from ltbench.records.aggregate import imbalance_ratio

    record = result.record
    name, folder = record.recipe.name, result.folder
    if not result.fresh:
        console.print(f"{name} was finished before; this is its record. A new run needs a new out=")
    table = metrics_table(f"{name}, seed {record.seed}", record.metrics)
    backbone = record.recipe.resolved["backbone"]["name"]
    printed = nearest_published(record.dataset.name, imbalance_ratio(record), name, backbone)
    if printed is not None:
        values = [printed[v] or "-" for v in ("overall", "many", "medium", "few")]
        table.add_row(escape(printed["source"]), *values, "-")
    console.print(table)
    if record.shortened:
        console.print(f"shortened by {', '.join(record.shortened)}: not comparable with full runs")
    shown = escape(str(folder))
    console.print(f"record      {shown}/record.json")
    console.print(f"weights     {shown}/model.safetensors")
    console.print(f"checkpoints {shown}/checkpoints")
    console.print(f"curves      {shown}/curves.png and curves.csv")
    console.print("\nnext:")
    console.print(f"  ltbench eval model={shown}")
    console.print(f"  ltbench show recipe={name}")
    console.print("  ltbench leaderboard")


def published_row(recipe: Any) -> str | None:
    """Return the published result a recipe aims at, as one line."""
    if recipe.target is None:
        return None
    from ltbench.leaderboard import target_row

    return target_row(recipe)
