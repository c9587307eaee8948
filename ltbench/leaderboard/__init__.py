"""Leaderboard: our records beside published results; shown without importing torch."""

from __future__ import annotations

from ltbench.leaderboard.tables import table
from ltbench.leaderboard.text import render, to_markdown
from ltbench.records.literature import (
    INAT_RATIOS,
    footnotes,
    nearest_published,
    published,
    target_row,
)
from ltbench.records.store import records

__all__ = [
    "INAT_RATIOS",
    "footnotes",
    "nearest_published",
    "published",
    "records",
    "render",
    "table",
    "target_row",
    "to_markdown",
]
