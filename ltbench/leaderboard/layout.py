"""Tables of text that fit a width without a word being cut or broken."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

LONGEST_WORD = 30  # a longer one may be broken


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: key of its cells.
        head: its heading.
        least: width below which a column of text is not squeezed, if it has wider cells; 0 is a
            column of numbers, which is never wrapped.
    """

    name: str
    head: str
    least: int = 0


class Line(NamedTuple):
    """A line of text and its style in the words of rich."""

    text: str
    style: str = ""


def fitted(
    columns: Sequence[Column], rows: Sequence[Mapping[str, str]], width: int | None
) -> list[int] | None:
    """Return the width of each column, or ``None`` if the table cannot be made so narrow.

    Args:
        columns: of the table.
        rows: cells by the columns' names.
        width: of the table; ``None`` for no limit.
    """
    wanted, least = [], []
    for column in columns:
        cells = {row[column.name] for row in rows} | {column.head}
        wanted.append(max(map(measure, cells)))
        words = max((measure(word) for cell in cells for word in cell.split()), default=0)
        squeezed = max(column.least, min(words, LONGEST_WORD))
        least.append(min(wanted[-1], squeezed) if column.least else wanted[-1])
    room = None if width is None else width - sum(map(_gap, columns[1:]))
    if room is None or sum(wanted) <= room:
        return wanted
    spare = room - sum(least)
    if spare < 0:
        return None
    found = list(least)
    while spare > 0:  # the column that lacks most has the next place
        lacks = [have - want for have, want in zip(found, wanted, strict=True)]
        found[lacks.index(min(lacks))] += 1
        spare -= 1
    return found


def line_up(
    columns: Sequence[Column], widths: Sequence[int], row: Mapping[str, str], indent: str = " "
) -> list[str]:
    """Return the lines of a row.

    Args:
        columns: of the table.
        widths: from ``fitted``.
        row: cells by the columns' names.
        indent: of the further lines of a cell.
    """
    cells = []
    for column, width in zip(columns, widths, strict=True):
        text = row[column.name]
        fits = not column.least or measure(text) <= width
        cells.append([text] if fits else wrap(text, width, indent))
    lines = []
    for number in range(max(map(len, cells))):
        line = ""
        for at, (column, width, cell) in enumerate(zip(columns, widths, cells, strict=True)):
            text = cell[number] if number < len(cell) else ""
            space = " " * (width - measure(text))
            line += " " * (_gap(column) if at else 0)
            line += text + space if column.least else space + text
        lines.append(line.rstrip())
    return lines


def wrap(text: str, width: int | None, indent: str = "") -> list[str]:
    """Return a text as lines of at most a width, broken between words only.

    Args:
        text: the text.
        width: in columns; ``None`` for one line.
        indent: put before all lines but the first.
    """
    if width is None or measure(text) <= width:
        return [text]
    return textwrap.wrap(
        text,
        max(width, len(indent) + 1),
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=any(measure(word) > width - len(indent) for word in text.split()),
    )


def measure(text: str) -> int:
    """Return the width of a text in columns of a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _gap(column: Column) -> int:
    return 2 if column.least else 1
