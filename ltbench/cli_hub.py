"""The command `ltbench publish`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape

from ltbench.display import console
from ltbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from ltbench.hub.publish import Published

WORDS = ("run", "repo", "out", "half", "licence", "private")
LINES = 40  # of the diff of a file that are shown
MARKS = {"new": "green", "changed": "yellow", "same": "dim", "removed": "red", "kept": "dim"}


@click.command()
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
    \b
    Further keys:
      out=DIR      keep the published folder (--dry-run: by default PATH/publish)
      half=true    float16 weights; they are evaluated anew on the run's test data
      private=true only members see the repository
    """  # noqa: D301
    given = _words(words)
    from ltbench.hub.publish import publish as publish_run

    done = publish_run(
        Path(_needed(given, "run")).expanduser(),
        _needed(given, "repo"),
        dry_run=dry_run,
        out=Path(given["out"]).expanduser() if "out" in given else None,
        half=_switch(given, "half"),
        licence=given.get("licence"),
        private=_switch(given, "private"),
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

    console.print("\nso that its name finds it, add to `models` in leaderboard/zoo.json:")
    console.print(escape(json.dumps(zoo_entry(done), indent=1)), soft_wrap=True)


def _words(words: tuple[str, ...]) -> dict[str, str]:
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not value or key not in WORDS:
            raise UserError(
                f"unknown word `{word}`{did_you_mean(key, WORDS)}; expected key=value with "
                f"{', '.join(WORDS)}"
            )
        if key in given:
            raise UserError(f"`{key}=` is given twice; give it once")
        given[key] = value
    return given


def _needed(given: dict[str, str], key: str) -> str:
    if key not in given:
        raise UserError(f"expected `{key}=...`, found {' '.join(given) or 'nothing'}")
    return given[key]


def _switch(given: dict[str, str], key: str) -> bool:
    value = given.get(key, "false")
    if value not in ("true", "false"):
        raise UserError(f"`{key}`: expected true or false, found `{value}`")
    return value == "true"
