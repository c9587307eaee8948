"""`ltbench bench data`: the measurements of reading, decoding and packing as one table."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ltbench.bench import loading, shards
from ltbench.bench.rounds import Row
from ltbench.bench.workers import workers
from ltbench.errors import UserError, did_you_mean

WHAT: dict[str, Callable[..., list[Row]]] = {
    "loading": loading.loading,
    "reading": shards.reading,
    "memory": loading.memory,
    "packing": shards.packing,
    "index": shards.index,
    "workers": workers,
}


def report(words: Mapping[str, Any], console: Console) -> dict[str, list[Row]]:
    """Measure, print, and return the same as plain data.

    Args:
        words: ``what`` (names of ``WHAT`` with commas between) and ``rounds``.
        console: where the table goes.

    Raises:
        UserError: a word or a value is unknown.
    """
    for word in words:
        if word not in ("what", "rounds"):
            near = did_you_mean(word, ("what", "rounds"))
            raise UserError(f"unknown word `{word}`{near}; known: what, rounds")
    chosen = str(words.get("what", ",".join(WHAT))).split(",")
    for name in chosen:
        if name not in WHAT:
            raise UserError(f"`what={name}`{did_you_mean(name, WHAT)}; known: {', '.join(WHAT)}")
    rounds = words.get("rounds", 5)
    if type(rounds) is not int or rounds < 1:
        raise UserError(f"`rounds` must be a whole number from 1, found {rounds}")
    console.print(
        f"{platform.processor() or platform.machine()}, one thread; medians of {rounds} rounds in "
        "turn; ratio: how many times faster ours is\n"
    )
    figures = {}
    for name in chosen:
        figures[name] = WHAT[name](rounds=rounds)
        console.print(_table(name, figures[name]))
    return figures


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
