"""The commands `ltbench leaderboard submit`, `verify` and `publish`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.markup import escape

from ltbench.display import console
from ltbench.errors import UserError, did_you_mean


@click.command()
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
    \b
    Further keys: licence=NAME, data.root=DIR (where the images are, if they were moved)
    """  # noqa: D301
    from ltbench.leaderboard.submit import submit as submit_run

    known = ("run", "repo", "repository", "revision", "submitted_by", "licence")
    given, options = _split(words, known)
    if not given.get("run"):
        raise UserError("expected `run=PATH`, the folder of a finished run")
    done = submit_run(
        Path(given["run"]).expanduser(),
        repo=given.get("repo", ""),
        repository=given.get("repository", ""),
        revision=given.get("revision", ""),
        submitted_by=given.get("submitted_by", ""),
        licence=given.get("licence", ""),
        options=options,
    )
    for line in done.checks:
        console.print(f"ok     {escape(line)}", soft_wrap=True)
    console.print(f"record {escape(str(done.path))}", soft_wrap=True)
    if done.pull_request:
        console.print(f"offer  {escape(done.pull_request)}", soft_wrap=True)


@click.command()
@click.argument("words", nargs=-1, metavar="[ROW|PATH|RUN_ID|all] [data.root=DIR] [device=cpu]")
def verify(words: tuple[str, ...]) -> None:
    """Check rows in seven steps, down to evaluating their weights again, and mark them verified.

    A ROW is a recipe's name (all its seeds) or NAME.SEED. The steps: hashes of the record; metrics
    follow from counts; hashes of the images; a pinned revision of .safetensors; the repository's
    listing; the hash of the download; evaluation. At most 2 predictions may differ, and the
    calibration error by less than 0.05 percentage points. A row whose images are not here is
    checked as far as possible and not marked.

    \b
    Examples:
      ltbench leaderboard verify all data.root=DIR
      ltbench leaderboard verify mislas_cifar10.0 data.root=DIR
      ltbench leaderboard verify 1f0c2a9b data.root=DIR device=cpu
    """  # noqa: D301
    from ltbench.leaderboard.verify import find_rows, sound_records, verify_file

    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise UserError(f"expected one row, found {', '.join(names)}")
    given, options = _split([word for word in words if "=" in word], ("device",))
    others = sound_records()
    failed = []
    for path in find_rows(names[0] if names else "all"):
        console.print(f"[bold]{escape(str(path))}[/bold]", soft_wrap=True)
        device = given.get("device", "auto")
        done = verify_file(path, others=others, options=options, device=device)
        for step in done.steps:
            console.print(f"  {escape(str(step))}", soft_wrap=True)
        console.print(f"  {'verified' if done.passed else 'not verified'}")
        if done.failed:
            failed.append(f"{path}: step {done.failed.number} ({done.failed.name}) failed: ")
            failed[-1] += done.failed.text
    if failed:
        raise UserError("\n".join(failed))


@click.command()
@click.argument("words", nargs=-1, metavar="repo=ORG/NAME [space=ORG/NAME]")
def publish(words: tuple[str, ...]) -> None:
    """Bring all records to the Hub, with tables for its viewer and the page as a static space.

    What others have put there stays; who commits at the same moment loses nothing.

    \b
    Example:
      ltbench leaderboard publish repo=ORG/leaderboard space=ORG/page
    """  # noqa: D301
    from ltbench.leaderboard.push import publish as push

    given, options = _split(words, ("repo", "space"))
    if options or not given.get("repo"):
        raise UserError("expected `repo=ORG/NAME`, and perhaps `space=ORG/NAME`")
    done = push(given["repo"], space=given.get("space", ""))
    for line in done.problems:
        click.echo(f"warning: {line}", err=True)
    console.print(
        f"runs  {done.runs:,}, of them new {done.added:,}: {escape(done.url)}", soft_wrap=True
    )
    if done.space_url:
        console.print(f"page  {escape(done.space_url)}", soft_wrap=True)


def _split(words: Any, known: tuple[str, ...]) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the values of known words, and the options that say where a data set lies.

    Raises:
        UserError: a word is none of these, or is given twice.
    """
    from ltbench import registries
    from ltbench.config import parse_word
    from ltbench.leaderboard.verify import place_options

    datasets = registries.DATASETS
    places = set().union(*(place_options(datasets.get(name)) for name in datasets.names()))
    given: dict[str, str] = {}
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        place = key.removeprefix("data.")
        if not equals or (key not in known and not (key != place and place in places)):
            near = did_you_mean(key, known)
            raise UserError(f"unknown word `{word}`{near}; known: {', '.join(known)}, data.root")
        if key in given or place in options:
            raise UserError(f"`{key}=` is given twice; give it once")
        if key in known:
            given[key] = value
        else:
            options[place] = parse_word(word)[1]
    return given, options
