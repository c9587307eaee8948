"""The commands `ltbench leaderboard ...`; without a command's name it prints the table."""

from __future__ import annotations

from pathlib import Path

import click

from ltbench.cli_records import publish, submit, verify
from ltbench.display import console
from ltbench.errors import UserError, did_you_mean

FILTERS = (
    *("dataset", "ratio", "backbone", "method", "track", "status", "origin", "plot", "sort"),
)
PAGE = "leaderboard.html"


class _TableByDefault(click.Group):
    """A group whose words belong to `table` unless the first one names a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        helps = set(ctx.help_option_names)
        if not args or (args[0] not in self.commands and args[0] not in helps):
            args = ["table", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_TableByDefault)
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


@leaderboard.command()
@click.argument("words", nargs=-1, metavar="[dataset=NAME] [ratio=N] [method=PATTERN] ...")
@click.option("--csv", "form", flag_value="csv", help="Print comma-separated values.")
@click.option("--json", "form", flag_value="json", help="Print a list of rows as JSON.")
@click.option("--markdown", "form", flag_value="markdown", help="Print a Markdown table.")
def table(words: tuple[str, ...], form: str | None) -> None:
    """Show committed records and the literature's numbers in one table.

    \b
    Filters: dataset=, ratio=, backbone=, method=, track= (shell patterns, any case),
             status=paper|claimed|reproduced|verified, origin=published|reproduced,
             plot=true|false, sort=COLUMN
    Examples:
      ltbench leaderboard dataset=cifar10 ratio=100
      ltbench leaderboard dataset=inat method="*plot*" sort=few
      ltbench leaderboard origin=reproduced track="200 epochs*" --markdown
    """  # noqa: D301
    from ltbench import leaderboard as board

    frame = board.table(**_given(words, FILTERS, "filter"))  # type: ignore[arg-type]
    if frame.empty:
        raise UserError("no row matches these filters; `ltbench leaderboard` shows all")
    if form == "csv":
        click.echo(frame.to_csv(index=False), nl=False)
    elif form == "json":
        click.echo(frame.to_json(orient="records", indent=1, force_ascii=False))
    elif form == "markdown":
        click.echo(board.to_markdown(frame), nl=False)
    else:
        console.print(board.render(frame))


@leaderboard.command()
@click.argument("words", nargs=-1, metavar="[out=FILE.html]")
def build(words: tuple[str, ...]) -> None:
    """Write the leaderboard as one HTML file that works offline.

    \b
    Examples:
      ltbench leaderboard build
      ltbench leaderboard build out=site/index.html
    """  # noqa: D301
    from ltbench.atomic import write_atomic
    from ltbench.leaderboard.page import build_page

    out = Path(_given(words, ("out",), "word").get("out") or PAGE).expanduser()
    if out.suffix != ".html":
        raise UserError(f"`out`: expected the name of an .html file, found `{out}`")
    if not out.parent.is_dir():
        raise UserError(f"`out`: there is no folder {out.parent}; make it first")
    page = build_page().encode()
    write_atomic(out, page)
    click.echo(f"{out} ({len(page) / 2**20:.1f} MiB); open it in any browser, or put it anywhere")


for command in (submit, verify, publish):
    leaderboard.add_command(command)


def _given(words: tuple[str, ...], known: tuple[str, ...], kind: str) -> dict[str, str]:
    """Return the values of `key=value` words.

    Raises:
        UserError: a word is not of this form, not known, or given twice.
    """
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            raise UserError(
                f"unknown {kind} `{word}`{did_you_mean(key, known)}; known: {', '.join(known)}"
            )
        if key in given:
            raise UserError(f"`{key}=` is given more than once; give it once")
        given[key] = value
    return given
