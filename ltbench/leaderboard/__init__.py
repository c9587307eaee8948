"""Our records beside the literature's numbers; torch is never imported to show them."""

from __future__ import annotations

from ltbench.leaderboard.literature import (
    INAT_RATIOS,
    footnotes,
    nearest_published,
    published,
    target_row,
)
from ltbench.leaderboard.tables import (
    records,
    render,
    table,
    to_markdown,
)

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
