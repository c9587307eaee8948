"""Results and methods as the command line prints them; heavy modules are imported on use."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment
from rich.table import Table

from ltbench.errors import visible

if TYPE_CHECKING:
    from ltbench.evaluation.metrics import Metrics
    from ltbench.records.aggregate import Row
    from ltbench.records.record import Record
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
errors = CleanConsole(highlight=False, stderr=True)


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


def metrics_table(title: str, metrics: Metrics, split: str = "test") -> Table:
    """Return the results of one model on a split as a table; `shot_line` defines its groups."""
    from ltbench.evaluation.summary import COLUMNS, percentages

    table = Table(title=escape(title), title_justify="left")
    table.add_column("", overflow="fold")
    for name in COLUMNS.values():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(f"{split}, %", *percentages(metrics))
    return table


def show_result(result: Result) -> None:
    """Print a finished run: its table, its files, what to type next."""
    from ltbench.evaluation.summary import percentages, shot_line
    from ltbench.leaderboard import nearest_published
    from ltbench.records.aggregate import imbalance_ratio
    from ltbench.train.progress import clock

    if result.split == "val":
        _show_validation(result)
        return
    record = result.record
    name, folder, metrics = record.recipe.name, result.folder, record.metrics
    if not result.fresh:
        plain(f"{name} was finished before; this is its record. A new run needs a new out=")
    table = metrics_table(f"{name}, seed {record.seed}", metrics)
    rule = own_rule(record)
    if rule is not None:
        _, many, medium, few, _ = percentages(metrics.with_rule(rule))
        table.add_row("by thirds", "", many, medium, few, "")
    backbone = record.recipe.resolved["backbone"]["name"]
    printed = nearest_published(record.dataset.name, imbalance_ratio(record), name, backbone)
    if printed is not None:
        values = [printed[v] or "-" for v in ("overall", "many", "medium", "few")]
        table.add_row(escape(printed["source"]), *values, "-")
    console.print(table)
    plain(f"{shot_line(metrics)}, by training images")
    if rule is not None:
        plain(f"by thirds: {shot_line(metrics.with_rule(rule))}")
    if record.shortened:
        plain(f"shortened by {', '.join(record.shortened)}: not comparable with full runs")
    chosen = record.selected
    if chosen is not None:
        plain(
            f"chosen      by {chosen.metric} on {chosen.val_images:,} validation images among "
            f"{len(chosen.candidates)} ({chosen.search})"
        )
    facts = record.dataset.manifest
    tested = ", ".join(facts[key] for key in ("test_part", "test") if key in facts)
    if tested:
        plain(f"tested on   {tested}")
    plain(f"duration    {clock(record.execution.wall_seconds)}")
    plain(f"record      {folder}/record.json and metrics.json")
    plain(f"weights     {folder}/model.safetensors")
    plain(f"checkpoints {folder}/checkpoints")
    plain(f"curves      {folder}/curves.png and curves.csv")
    plain("\nnext:")
    plain(f"  ltbench eval {quote(f'model={folder}')}")
    plain(f"  ltbench diagnose {quote(f'run={folder}')}")
    plain("  ltbench leaderboard")


def _show_validation(result: Result) -> None:
    """Print a run that was evaluated on validation images only."""
    from ltbench.evaluation.summary import shot_line

    found, folder = result.found, result.folder
    if not result.fresh:
        plain(f"{found.recipe.name} was finished before; this is its result")
    title = f"{found.recipe.name}, seed {found.seed}"
    console.print(metrics_table(title, found.metrics, result.split))
    plain(f"{shot_line(found.metrics)}, by training images")
    plain("the test images were not evaluated (run.evaluate=val), so there is no record")
    plain(f"results     {folder}/validation.json")
    plain(f"curves      {folder}/curves.png and curves.csv")


def show_grid(rows: Sequence[Row], folder: Path) -> None:
    """Print a grid's table, at any width without a terminal, and write it to files.

    Args:
        rows: from ``table_rows``.
        folder: where the files go.

    Raises:
        UserError: they cannot be written.
    """
    from ltbench.records.results_files import write_results
    from ltbench.records.results_table import missing_lines, text_lines

    width = console.width if console.is_terminal else None
    for line in ("", *text_lines(rows, width), *missing_lines(rows)):
        plain(line)
    write_results(folder, rows)
    plain(f"\ntable  {folder}/results.csv, .md, .tex, .json")
    found = [row for row in rows if row["records"]]
    if len(found) > 1 and len({row["dataset"] for row in found}) == 1:
        first = found[0]["records"][0].recipe
        same = [row for row in found if row["records"][0].recipe.name == first.name]
        baseline = first.name if len(same) == 1 else first.digest[:8]
        words = (str(folder), f"baseline={baseline}", f"out={folder}")
        plain(f"next   ltbench compare {' '.join(map(quote, words))}")


def own_rule(record: Record) -> tuple[int, int] | None:
    """Return the rule by thirds for images of the user's own that leave a shot group empty."""
    from ltbench.data.overlap import OWN
    from ltbench.data.shots import shot_groups, thirds

    metrics = record.metrics
    full = all(shot_groups(metrics.class_counts, metrics.shot_rule).values())
    return thirds(metrics.class_counts) if record.dataset.name in OWN and not full else None


def plain(text: str) -> None:
    """Print a line as it stands, however narrow the terminal."""
    console.print(text, markup=False, soft_wrap=True)


def prose(text: str) -> None:
    """Print a line, broken between words on a narrow terminal."""
    console.print(text, markup=False, soft_wrap=not console.is_terminal)


def published_row(recipe: Any) -> str | None:
    """Return the published result a recipe aims at, as one line."""
    if recipe.target is None:
        return None
    from ltbench.leaderboard import target_row

    return target_row(recipe)
