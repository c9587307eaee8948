"""Commands whose words are options, and groups with a command that needs no name."""

from __future__ import annotations

from typing import Any

import click
from pydantic import BaseModel

from ltbench.config.words import describe_words


class WordsCommand(click.Command):
    """A command whose help lists the words that it takes.

    Args:
        options: what the command reads its words into.
        settings: of click's own command.
    """

    def __init__(self, *settings: Any, options: type[BaseModel], **named: Any) -> None:
        super().__init__(*settings, **named)
        self.words = options

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the words before the options that begin with dashes."""
        with formatter.section("Words"):
            formatter.write_dl(describe_words(self.words))
        super().format_options(ctx, formatter)


class DefaultGroup(click.Group):
    """A group whose words belong to one command unless the first of them names another.

    Args:
        default: name of that command.
        settings: of click's own group.
    """

    def __init__(self, *settings: Any, default: str, **named: Any) -> None:
        super().__init__(*settings, **named)
        self.default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command's name before words that name none."""
        first = args[0] if args else ""
        if first not in self.commands and first not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)
