"""Record files in a folder, by default the committed ones."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from ltbench.config.resources import leaderboard_dir
from ltbench.errors import UserError
from ltbench.records.aggregate import run_key
from ltbench.records.parts import NAME
from ltbench.records.record import Record


def records(folder: Path | None = None) -> list[Record]:
    """Return all records under a folder, by default the committed ones.

    Raises:
        UserError: one cannot be trusted, or two are of the same recipe, data, code and seed.
    """
    found: dict[tuple[Any, ...], Path] = {}
    loaded = []
    for path in record_files(folder):
        record = Record.load(path)
        run = run_key(record)
        if run in found:
            raise UserError(
                f"{path} and {found[run]} are of the same recipe, data, code and seed; keep one"
            )
        found[run] = path
        loaded.append(record)
    return loaded


def sound_records(folder: Path | None = None) -> list[Record]:
    """Return the records of a folder, by default the committed ones, that can be trusted."""
    found = []
    for path in record_files(folder):
        with contextlib.suppress(UserError):
            found.append(Record.load(path))
    return found


def record_files(folder: Path | None = None) -> list[Path]:
    """Return the record files under a folder, by default the committed ones, in order."""
    return sorted((folder or records_dir()).rglob("*.json"))


def records_dir() -> Path:
    """Return the folder of the committed records."""
    return leaderboard_dir() / "records"


def record_path(record: Record) -> str:
    """Return where a record lies among others: ``<data set>/<run_id>.json``.

    Raises:
        UserError: the data set's name is none that a folder may have.
    """
    for name in (record.dataset.name, record.recipe.name):
        if not re.fullmatch(NAME, name):
            raise UserError(
                f"`{name[:60]}` cannot name a data set or recipe of the leaderboard; expected "
                "letters, digits, `_`, `-` and `.`"
            )
    return f"{record.dataset.name}/{record.run_id}.json"
