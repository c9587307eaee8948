"""Published results that several tables print alike, as one row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ltbench.leaderboard.settings import agree, same_place, share_facts
from ltbench.leaderboard.tables import AS_PUBLISHED
from ltbench.records.aggregate import Row


def merged(rows: Iterable[Row]) -> list[Row]:
    """Return rows with published results that several tables print alike made one.

    They agree in data set, ratio, method, backbone, overall result, and in every shot group that
    both tables print. ``sources`` of such a row names all tables; what one of them knows of epochs,
    augmentation and selection holds for all.

    Args:
        rows: of ``board_rows``.
    """
    done: list[Row] = []
    by_place: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.get("records") or row["track"] != AS_PUBLISHED:
            done.append(row)
            continue
        place = (*same_place(row), row["setting"], row["overall"])
        same = by_place.setdefault(place, [])
        twin = next((other for other in same if agree(row, other)), None)
        if twin is None:
            twin = {**row, "sources": [], "table_marks": ""}
            same.append(twin)
            done.append(twin)
        share_facts(twin, row)
        twin["sources"].append(row["source"])
        for marks in ("footnotes", "table_marks"):
            twin[marks] = _joined(twin[marks], row.get(marks, ""))
        twin["note"] = twin["note"] or row["note"]
        twin["tie"] = twin["tie"] or row["tie"]
    return done


def _joined(one: str, other: str) -> str:
    return ",".join(sorted({m for m in f"{one},{other}".split(",") if m}, key=int))
