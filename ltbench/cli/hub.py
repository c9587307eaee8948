"""The commands `ltbench publish` and `ltbench download`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import Field
from rich.markup import escape

from ltbench.cli.command import OWN_PARTS, WordsCommand
from ltbench.cli.display import console
from ltbench.config import plugins
from ltbench.config.schema import Config
from ltbench.config.words import PLAIN, read_words
from ltbench.errors import UserError

if TYPE_CHECKING:
    from ltbench.hub.publish import Published

LINES = 40  # of the diff of a file that are shown
MARKS = {"new": "green", "changed": "yellow", "same": "dim", "removed": "red", "kept": "dim"}


class Publish(Config):
    """Words of `ltbench publish`."""

    run: Path = Field(description="folder of a finished run")
    repo: str = Field(description="repository on the Hub, ORG/NAME")
    out: Path | None = Field(
        None, description="folder to keep the published files in (--dry-run: RUN/publish)"
    )
    half: bool = Field(
        False, description="float16 weights; they are evaluated anew on the run's test data"
    )
    apart: bool = Field(
        False, description="leave out the frozen encoder that adapters belong to, and name it"
    )
    licence: str | None = Field(None, description="licence of the weights, e.g. mit")
    plugins: tuple[str, ...] = OWN_PARTS
    private: bool = Field(False, description="only members see the repository")


class Download(Config):
    """Words of `ltbench download`."""

    name: str = Field(json_schema_extra=PLAIN, description="name, pattern or hf-hub:ORG/NAME@REV")
    seed: int | None = Field(None, ge=0, description="seed of the run; all by default")
    out: Path | None = Field(None, description="folder to put a folder per model in")


@click.command(cls=WordsCommand, options=Publish)
@click.argument("words", nargs=-1, metavar="run=PATH repo=ORG/NAME [key=value ...]")
@click.option("--dry-run", is_flag=True, help="Write the folder, show what would change.")
def publish(words: tuple[str, ...], dry_run: bool) -> None:
    """Publish the weights of a run, with all that loads and explains them, in one commit.

    A repository holds one recipe and seed; ORG/<recipe>-seed<n> is a good name. Publishing again
    changes nothing unless something differs. Log in with `hf auth login` first.

    \b
    Examples:
      ltbench publish run=runs/RUN/seed0 repo=my-lab/mislas_plot_cifar10-seed0 --dry-run
      ltbench publish run=runs/RUN/seed0 repo=my-lab/mislas_plot_cifar10-seed0 licence=mit
    """  # noqa: D301
    given = read_words(words, Publish)
    from ltbench.hub.publish import publish as publish_run

    plugins.load_plugins(given.plugins)
    done = publish_run(
        given.run,
        given.repo,
        dry_run=dry_run,
        out=given.out,
        half=given.half,
        licence=given.licence,
        private=given.private,
        apart=given.apart,
    )
    _show(done)


def _show(done: Published) -> None:
    for difference in done.differences:
        colour = MARKS[difference.state]
        console.print(
            f"[{colour}]{difference.state:<8}[/{colour}] {escape(difference.path)}"
            f"  {difference.bytes:,} bytes",
            soft_wrap=True,
        )
        for line in difference.diff[:LINES]:
            console.print(f"         {escape(line)}", style="dim", soft_wrap=True)
        if len(difference.diff) > LINES:
            console.print(f"         {len(difference.diff) - LINES} more lines", style="dim")
    if done.folder is not None:
        console.print(f"folder   {escape(str(done.folder))}", soft_wrap=True)
    if done.note:
        console.print(f"note     {escape(done.note)}", soft_wrap=True)
    if done.revision is None:
        console.print("nothing was sent; leave --dry-run out to publish")
        return
    if not done.changed:
        console.print("nothing differs; no commit was made")
    source = f"hf-hub:{done.repository}@{done.revision}"
    console.print(f"revision {done.revision}")
    console.print("\nnext:")
    console.print(f"  ltbench eval model={escape(source)}", soft_wrap=True)
    from ltbench.hub.publish import zoo_entry

    console.print("\nto make it known by name, add to `models` in leaderboard/zoo.json:")
    console.print(escape(json.dumps(zoo_entry(done), indent=1)), soft_wrap=True)


@click.command(cls=WordsCommand, options=Download)
@click.argument("words", nargs=-1, metavar="NAME|PATTERN|hf-hub:ORG/NAME[@REV] [key=value ...]")
def download(words: tuple[str, ...]) -> None:
    """Fetch trained models into the cache, or into a folder, and check their hashes.

    What was fetched once is loaded without a network. HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE
    are respected; private models need `hf auth login`.

    \b
    Examples:
      ltbench download "*plot*cifar10*"
      ltbench download mislas_plot_cifar10 seed=0 out=models
      ltbench download hf-hub:my-lab/ce_cifar10-seed0@COMMIT
    """  # noqa: D301
    given = read_words(words, Download)
    from ltbench.hub import zoo

    what, seed, out = given.name, given.seed, given.out
    if what.startswith(zoo.HUB):
        if seed is not None:
            raise UserError(f"`seed=` is for a name of the zoo, found {what}; leave it out")
        repo, revision = zoo.parse_address(what)
        target = out / repo.partition("/")[2] if out else None
        place = zoo.fetch_repository(repo, revision, out=target, extra=True)
        _say(what, place)
        return
    chosen = _chosen(what, seed)
    for name, number, entry in chosen:
        target = out / f"{name}-seed{number}" if out else None
        place = zoo.fetch(entry, out=target, extra=True)
        _say(f"{name} seed={number}", place)
    console.print(f"\nnext:\n  ltbench eval model={chosen[0][0]} seed={chosen[0][1]}")


def _chosen(pattern: str, seed: int | None) -> list[tuple[str, int, Any]]:
    from ltbench.hub import zoo

    index = zoo.read_index()
    found = [
        (name, number, entry)
        for name in zoo.names(pattern)
        for number, entry in sorted(index[name].items())
        if seed in (None, number)
    ]
    if not found:
        zoo.find(pattern, seed or 0)  # raises, and names what is near
    return found


def _say(what: str, place: Path) -> None:
    from ltbench.records.record import WEIGHTS

    size = (place / WEIGHTS).stat().st_size / 2**20
    console.print(escape(f"{what}  {size:,.2f} MiB, hash checked: {place}"), soft_wrap=True)
