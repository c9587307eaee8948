"""Our records beside the literature's numbers; torch is never imported to show them."""

from __future__ import annotations

from ltbench.leaderboard.tables import (
    INAT_RATIOS,
    nearest_published,
    published,
    records,
    render,
    table,
    target_row,
    trained_models,
)

__all__ = [
    "INAT_RATIOS",
    "nearest_published",
    "published",
    "records",
    "render",
    "table",
    "target_row",
    "trained_models",
]
