"""The commands `ltbench leaderboard ...`; without a command's name it prints the table."""

from __future__ import annotations

import click

from ltbench.display import console
from ltbench.errors import UserError, did_you_mean

FILTERS = ("dataset", "ratio", "backbone", "method", "sort")


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
    """  # noqa: D301


@leaderboard.command()
@click.argument("words", nargs=-1, metavar="[dataset=NAME] [ratio=N] [method=PATTERN] ...")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
def table(words: tuple[str, ...], as_csv: bool) -> None:
    """Show committed records and the literature's numbers in one table.

    \b
    Filters: dataset=, ratio=, backbone=, method= (shell patterns, any case), sort=COLUMN
    Examples:
      ltbench leaderboard dataset=cifar10 ratio=100
      ltbench leaderboard dataset=inat method="*plot*" sort=few
    """  # noqa: D301
    from ltbench import leaderboard as board

    filters: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in FILTERS:
            raise UserError(
                f"unknown filter `{word}`{did_you_mean(key, FILTERS)}; known: {', '.join(FILTERS)}"
            )
        filters[key] = value
    frame = board.table(**filters)  # type: ignore[arg-type]
    if frame.empty:
        raise UserError("no row matches these filters; `ltbench leaderboard` shows all")
    if as_csv:
        click.echo(frame.to_csv(index=False), nl=False)
    else:
        console.print(board.render(frame))
