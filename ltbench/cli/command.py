"""Commands whose words are options, and groups with a command that needs no name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from pydantic import BaseModel, Field

from ltbench.config.registry import first_sentence
from ltbench.config.words import describe_words
from ltbench.errors import did_you_mean, visible

OWN_PARTS: Any = Field((), description="files or modules that define methods, data sets, ...")


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


class Group(click.Group):
    """A group whose help has the first sentence of each command, not cut."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write names and first sentences."""
        commands = sorted(self.commands.items())
        with formatter.section("Commands"):
            formatter.write_dl([(name, first_sentence(c.help or "")) for name, c in commands])


class DefaultGroup(Group):
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


def usage_line(error: click.ClickException, words: Sequence[str]) -> str:
    """Return what is wrong with a command line as one line in the style of our own errors.

    Args:
        error: raised by click.
        words: the command line.
    """
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "ltbench"
    if isinstance(error, click.exceptions.NoSuchOption):
        dashed = error.option_name
        name = dashed.lstrip("-").replace("-", "_")
        options = getattr(context.command, "words", None) if context is not None else None
        if options is not None and name in options.model_fields:
            return f"`{visible(dashed)}`: words have no dashes; write {_word(name, dashed, words)}"
        known = [] if options is None else list(options.model_fields)
        return (
            f"no option `{visible(dashed)}`{did_you_mean(name, known)}; words are key=value, see "
            f"`{path} --help`"
        )
    text = error.format_message()
    text = f"{text[:1].lower()}{text[1:].rstrip('.')}"
    return f"{text} See `{path} --help`" if text.endswith("?") else f"{text}; see `{path} --help`"


def _word(name: str, dashed: str, words: Sequence[str]) -> str:
    """Return the word that an option with dashes stands for."""
    for i, word in enumerate(words):
        head, equals, value = word.partition("=")
        if head == dashed:
            after = words[i + 1] if i + 1 < len(words) else ""
            after = "" if "=" in after or after.startswith("-") else after
            return f"{name}={visible(value if equals else after or 'true')}"
    return f"{name}=..."
