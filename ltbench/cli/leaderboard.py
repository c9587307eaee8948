"""The commands `ltbench leaderboard ...`; without a command's name it prints the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, Field
from rich.markup import escape

from ltbench.cli.command import OWN_PARTS, DefaultGroup, WordsCommand
from ltbench.cli.display import clean, console, say
from ltbench.config import plugins
from ltbench.config.schema import Config
from ltbench.config.words import PLAIN, read_words
from ltbench.errors import UserError, did_you_mean, visible

NO_ROW = "no row matches these filters; `ltbench leaderboard` shows what there is"


class Filters(Config):
    """Words of `ltbench leaderboard`; patterns are those of a shell, in any case."""

    dataset: str | None = Field(None, description="pattern of the data set's name")
    ratio: str | None = Field(None, description="imbalance ratio")
    backbone: str | None = Field(None, description="pattern of the backbone's name")
    method: str | None = Field(None, description="pattern of the method's name")
    setting: str | None = Field(
        None,
        description="what rows may be compared with: plain, strong, pretrained, small or unknown",
    )
    track: str | None = Field(None, description="pattern of the training's protocol")
    status: str | None = Field(None, description="paper, imported, claimed, reproduced or verified")
    origin: str | None = Field(None, description="published, imported or reproduced")
    plot: str | None = Field(None, description="true or false: rows with or without PLOT")
    max_epochs: int | None = Field(
        None, ge=1, description="rows whose longest stage is known to have at most this many epochs"
    )
    sort: str | None = Field(None, description="column to sort by")
    notes: bool = Field(False, description="print the footnotes")
    all: bool = Field(False, description="every row, where no filter is given")


class Build(Config):
    """Words of `ltbench leaderboard build`."""

    out: Path = Field(Path("leaderboard.html"), description="the file")


class Submit(BaseModel):  # not a Config, whose `revision` is something else
    """Words of `ltbench leaderboard submit`."""

    run: Path = Field(description="folder of a finished run")
    repo: str = Field("", description="data set on the Hub that collects records, ORG/NAME")
    repository: str = Field("", description="repository of the weights, ORG/NAME")
    revision: str = Field("", description="commit of that repository")
    submitted_by: str = Field("", description="your name")
    licence: str = Field("", description="licence of the weights")
    plugins: tuple[str, ...] = OWN_PARTS
    data: dict[str, Any] = Field({}, description="where the images are, e.g. data.root=DIR")


class Verify(Config):
    """Words of `ltbench leaderboard verify`."""

    row: str = Field("all", json_schema_extra=PLAIN, description="recipe, NAME.SEED, file or id")
    mark: bool = Field(False, description="write the outcome to the record and to verified.json")
    plugins: tuple[str, ...] = OWN_PARTS
    device: str = Field("auto", description="device to evaluate on")
    data: dict[str, Any] = Field({}, description="where the images are, e.g. data.root=DIR")


class Publish(Config):
    """Words of `ltbench leaderboard publish`."""

    repo: str = Field(description="data set on the Hub, ORG/NAME")
    space: str = Field("", description="static space of the page, ORG/NAME")


@click.group(cls=DefaultGroup, default="table")
def leaderboard() -> None:
    """Show, build, submit to, verify and publish the leaderboard.

    \b
    Examples:
      ltbench leaderboard dataset=cifar10 ratio=100
      ltbench leaderboard dataset=inat method="*plot*" sort=few
      ltbench leaderboard build
      ltbench leaderboard submit run=RUN
      ltbench leaderboard verify all data.root=DIR
    """  # noqa: D301


@leaderboard.command(cls=WordsCommand, options=Filters)
@click.argument("words", nargs=-1, metavar="[dataset=NAME] [ratio=N] [method=PATTERN] ...")
@click.option("--csv", "form", flag_value="csv", help="Print comma-separated values.")
@click.option("--json", "form", flag_value="json", help="Print a list of rows as JSON.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a Markdown table.")
def table(words: tuple[str, ...], form: str | None) -> None:
    """Show committed records and the literature's numbers in one table.

    Without a filter it is an overview: the best row of ours and the best printed number for each
    data set and ratio; all=true prints everything. Output that goes into a pipe is not limited in
    width.

    \b
    Examples:
      ltbench leaderboard
      ltbench leaderboard dataset=cifar100 ratio=100 setting=plain
      ltbench leaderboard dataset=inat method="*plot*" sort=few
      ltbench leaderboard origin=reproduced track="200 epochs*" --markdown
    """  # noqa: D301
    given = read_words(words, Filters)
    filters = given.model_dump(exclude_none=True, exclude={"notes", "all"})
    if form is None:
        _print_rows(filters, given)
        return
    from ltbench import leaderboard as board

    frame = board.table(**filters)
    if frame.empty:
        raise UserError(NO_ROW)
    if form == "csv":
        click.echo(clean(frame.to_csv(index=False)), nl=False)
    elif form == "json":
        click.echo(frame.to_json(orient="records", indent=1, force_ascii=False))
    else:
        click.echo(clean(board.to_markdown(frame)), nl=False)


def _print_rows(filters: dict[str, Any], given: Filters) -> None:
    """Print the overview, or the rows that fit some filters."""
    from ltbench.leaderboard.merged import merged
    from ltbench.leaderboard.overview import Overview
    from ltbench.leaderboard.tables import select_rows
    from ltbench.leaderboard.text import Text
    from ltbench.records.store import no_collection

    limited = console.is_terminal
    with no_collection():
        rows = select_rows(**filters)
        if not rows:
            raise UserError(NO_ROW)
        table = filters or given.all or given.notes
        shown = Text(merged(rows), given.notes, limited) if table else Overview(rows, limited)
        console.print(shown, soft_wrap=True)


@leaderboard.command(cls=WordsCommand, options=Build)
@click.argument("words", nargs=-1, metavar="[out=FILE.html]")
def build(words: tuple[str, ...]) -> None:
    """Write the leaderboard as one HTML file that works offline.

    \b
    Examples:
      ltbench leaderboard build
      ltbench leaderboard build out=site/index.html
    """  # noqa: D301
    from ltbench.files import write_atomic
    from ltbench.leaderboard.page import build_page
    from ltbench.records.store import no_collection

    out = read_words(words, Build).out
    if out.suffix != ".html":
        raise UserError(f"`out`: expected the name of an .html file, found `{out}`")
    if not out.parent.is_dir():
        raise UserError(f"`out`: there is no folder {out.parent}; make it first")
    with no_collection():
        page = build_page().encode()
    write_atomic(out, page)
    click.echo(f"{out} ({len(page) / 2**20:.1f} MiB); open it in any browser, or put it anywhere")


@leaderboard.command(cls=WordsCommand, options=Submit)
@click.argument("words", nargs=-1, metavar="run=PATH [key=value ...]")
def submit(words: tuple[str, ...]) -> None:
    """Check a run's record, write it to the leaderboard, and offer it on the Hub.

    The record becomes leaderboard/records/DATASET/RUN_ID.json; repo= also opens a pull request on a
    data set that collects records. With repository= and revision= the row names its weights, which
    others need to verify it.

    \b
    Examples:
      ltbench leaderboard submit run=runs/quickstart-1a2b3c4d/seed0
      ltbench leaderboard submit run=RUN repository=ORG/MODEL revision=SHA submitted_by=NAME
      ltbench leaderboard submit run=RUN repo=ORG/DATASET
    """  # noqa: D301
    given = read_words(words, Submit)
    from ltbench.leaderboard.submit import submit as submit_run

    plugins.load_plugins(given.plugins)
    done = submit_run(
        given.run,
        repo=given.repo,
        repository=given.repository,
        revision=given.revision,
        submitted_by=given.submitted_by,
        licence=given.licence,
        options=_places(given.data),
    )
    for line in done.checks:
        console.print(f"ok     {_plain(line)}", soft_wrap=True)
    console.print(f"record {_plain(done.path)}", soft_wrap=True)
    if done.pull_request:
        console.print(f"offer  {_plain(done.pull_request)}", soft_wrap=True)


@leaderboard.command(cls=WordsCommand, options=Verify)
@click.argument("words", nargs=-1, metavar="[ROW|PATH|RUN_ID|all] [data.root=DIR] [device=cpu]")
def verify(words: tuple[str, ...]) -> None:
    """Check rows in seven steps, down to evaluating their weights again.

    A ROW is a recipe's name (all its seeds) or NAME.SEED. The steps: the record's hashes, its
    recipe's name and overrides, its date; metrics follow from counts; official numbers and hashes
    of the images, no weights or results of another seed; a pinned revision of .safetensors; the
    repository's listing; the hash of the download; evaluation. At most 2 predictions may differ,
    and the calibration error by less than 0.05 percentage points. A row whose images are not here,
    or whose weights are published nowhere, is checked as far as possible.

    Nothing is written unless mark=true: then rows that pass are marked verified, in the record and
    in leaderboard/verified.json, and rows that fail lose the mark.

    \b
    Examples:
      ltbench leaderboard verify all data.root=DIR
      ltbench leaderboard verify mislas_cifar10.0 data.root=DIR
      ltbench leaderboard verify 1f0c2a9b data.root=DIR device=cpu
      ltbench leaderboard verify all data.root=DIR mark=true
    """  # noqa: D301
    given = read_words(words, Verify)
    from ltbench.leaderboard.verify import find_rows, verify_file
    from ltbench.records.store import sound_records

    plugins.load_plugins(given.plugins)
    options = _places(given.data)
    others = sound_records()
    failed, verified = [], 0
    paths = find_rows(given.row)
    for path in paths:
        console.print(f"[bold]{_plain(path)}[/bold]", soft_wrap=True)
        done = verify_file(
            path, others=others, options=options, device=given.device, mark=given.mark
        )
        for step in done.steps:
            console.print(f"  {_plain(step)}", soft_wrap=True)
        outcome = "verified" if done.passed else "not verified"
        console.print(f"  {outcome}{done.mark and f', {done.mark}'}")
        verified += done.passed
        if done.failed:
            failed.append(f"{path}: step {done.failed.number} ({done.failed.name}) failed: ")
            failed[-1] += done.failed.text
    if len(paths) > 1:
        rest = len(paths) - verified - len(failed)
        console.print(f"{len(paths)} rows: {verified} verified, {len(failed)} failed, {rest} open")
    if failed:
        raise UserError("\n".join(visible(line, None) for line in failed))


@leaderboard.command(cls=WordsCommand, options=Publish)
@click.argument("words", nargs=-1, metavar="repo=ORG/NAME [space=ORG/NAME]")
def publish(words: tuple[str, ...]) -> None:
    """Bring all records to the Hub, with tables for its viewer and the page as a static space.

    Records that others have put there stay, and so do commits made at the same moment.

    \b
    Example:
      ltbench leaderboard publish repo=ORG/leaderboard space=ORG/page
    """  # noqa: D301
    given = read_words(words, Publish)
    from ltbench.leaderboard.push import publish as push

    done = push(given.repo, space=given.space)
    for line in done.problems:
        say(f"warning: {line}", err=True)
    console.print(
        f"runs  {done.runs:,}, of them new {done.added:,}: {_plain(done.url)}", soft_wrap=True
    )
    if done.space_url:
        console.print(f"page  {_plain(done.space_url)}", soft_wrap=True)


def _plain(value: object) -> str:
    """Return a text without control characters and without markup."""
    return escape(visible(str(value), None))


def _places(data: dict[str, Any]) -> dict[str, Any]:
    """Return options that name the place of a data set, not its content.

    Raises:
        UserError: one is another option.
    """
    if not data:
        return data
    from ltbench.data import DATASETS
    from ltbench.data.base import place_options

    known = set().union(*(place_options(DATASETS.get(name)) for name in DATASETS.names()))
    for key in data:
        if key not in known:
            hint = did_you_mean(key, known) or f"; known here: {', '.join(sorted(known))}"
            raise UserError(f"`data.{key}`: expected where images are{hint}")
    return data
