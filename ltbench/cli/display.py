"""Results and methods as the command line prints them; heavy modules are imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ltbench.evaluation.metrics import Metrics
    from ltbench.train.run import Result

console = Console(highlight=False)


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
    table = Table(title=title, title_justify="left")
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
    console.print(f"record      {folder / 'record.json'}")
    console.print(f"weights     {folder / 'model.safetensors'}")
    console.print(f"checkpoints {folder / 'checkpoints'}")
    console.print(f"curves      {folder / 'curves.png'} and curves.csv")
    console.print("\nnext:")
    console.print(f"  ltbench eval model={folder}")
    console.print(f"  ltbench show recipe={name}")
    console.print("  ltbench leaderboard")


def published_row(recipe: Any) -> str | None:
    """Return the published result a recipe aims at, as one line."""
    if recipe.target is None:
        return None
    from ltbench.leaderboard import target_row

    return target_row(recipe)
