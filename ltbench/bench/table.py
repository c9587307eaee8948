"""Plain tables for the terminal."""

from __future__ import annotations

from rich.table import Table


def plain_table(*columns: str) -> Table:
    """Return an empty table without borders: the first column to the left, the others right."""
    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table
