"""Reading, decoding and packing images, other people's pipelines beside ours.

Usage:
  python tools/bench/data.py what=loading,packing rounds=7 [out=FILE]

what=loading     photographs from folders, streams and shards to batches for the network
what=reading     bytes of small images; random reads that the disk has to answer
what=memory      CIFAR-sized images that lie in memory
what=packing     writing shards
what=index       opening the index of iNaturalist 2018, orders of an epoch, checksums
what=workers     memory of a loader process, by the size of the data set
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import loading
import shards
from pydantic import Field
from rich.console import Console
from rich.table import Table
from rounds import Row
from workers import workers

from ltbench.config.schema import Config
from ltbench.config.words import read_words
from ltbench.errors import UserError, did_you_mean
from ltbench.files import write_json
from ltbench.machine import cpu_name

WHAT: dict[str, Callable[..., list[Row]]] = {
    "loading": loading.loading,
    "reading": shards.reading,
    "memory": loading.memory,
    "packing": shards.packing,
    "index": shards.index,
    "workers": workers,
}


class Words(Config):
    """Words of this script."""

    what: tuple[str, ...] = tuple(WHAT)
    rounds: int = Field(5, ge=1)
    out: Path | None = None  # gets the figures as JSON


def report(words: Sequence[str], console: Console) -> None:
    """Measure and print.

    Args:
        words: see ``Words``.
        console: where the table goes.

    Raises:
        UserError: a word or a value is unknown.
    """
    given = read_words(words, Words)
    for name in given.what:
        if name not in WHAT:
            raise UserError(f"`what={name}`{did_you_mean(name, WHAT)}; known: {', '.join(WHAT)}")
    console.print(
        f"{cpu_name()}, one thread; medians of {given.rounds} rounds in turn; ratio: how many "
        "times faster ours is\n"
    )
    figures = {}
    for name in given.what:
        figures[name] = WHAT[name](rounds=given.rounds)
        console.print(_table(name, figures[name]))
    if given.out is not None:
        write_json(given.out, figures)


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("goal", "case", "pipeline"):
        table.add_column(column)
    for column in ("images/s", "ms", "MiB", "ratio", "goal is", ""):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row["goal"], row["case"], row["pipeline"], *_values(row))
    return table


def _values(row: Row) -> list[str]:
    speed, seconds = row.get("images_per_second"), row.get("seconds")
    ratio, least, most = row.get("ratio"), row.get("least"), row.get("most")
    met = ""
    if least is not None and ratio is not None:
        met = "met" if ratio >= least else "missed"
    elif least is not None and speed is not None:
        met = "met" if speed >= least else "missed"
    elif most is not None:
        met = "met" if (seconds if seconds is not None else ratio) <= most else "missed"
    bound = "" if least is None else f">= {least:g}"
    return [
        f"{speed:,.0f}" if speed is not None else "",
        f"{1000 * seconds:,.1f}" if seconds is not None else "",
        f"{row['mib']:,.0f}" if "mib" in row else "",
        f"{ratio:.2f}" if ratio is not None else "",
        bound if most is None else f"<= {most:g}",
        met,
    ]


if __name__ == "__main__":
    try:
        report(sys.argv[1:], Console(highlight=False))
    except UserError as error:
        sys.exit(f"error: {error}")
