"""Record files in a folder, by default the committed ones."""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltbench.config.resources import leaderboard_dir
from ltbench.digest import read_json
from ltbench.errors import UserError, visible
from ltbench.files import write_json
from ltbench.records.claims import check_date, choose
from ltbench.records.parts import VerificationFacts
from ltbench.records.reading import Shared
from ltbench.records.record import UNCHECKED, Record

MARKS = "verified.json"
MOST_NOTES = 20  # that are printed


@dataclass(frozen=True)
class Found:
    """Records of a folder.

    Args:
        kept: those that can stand in one table.
        notes: one line for each file that was left aside, or whose mark does not count.
    """

    kept: tuple[Record, ...]
    notes: tuple[str, ...]


def records(folder: Path | None = None) -> list[Record]:
    """Return the records under a folder, by default the committed ones, that can stand in tables.

    A warning names each file that was left aside, with the reason.
    """
    found = read_records(folder)
    for line in found.notes[:MOST_NOTES]:
        warnings.warn(line, stacklevel=2)
    if len(found.notes) > MOST_NOTES:
        warnings.warn(f"... and {len(found.notes) - MOST_NOTES:,} more such files", stacklevel=2)
    return list(found.kept)


def read_records(folder: Path | None = None) -> Found:
    """Return the records under a folder, by default the committed ones, and notes on the others.

    Left aside are files that are no sound record, records dated in the future, and all but one of
    those that repeat a run or show the same weights as another seed.
    """
    sound, notes = load_records(folder)
    kept, lines = choose([(visible(str(path), None), record) for path, record in sound.items()])
    return Found(tuple(kept), (*notes, *lines))


def load_records(folder: Path | None = None) -> tuple[dict[Path, Record], list[str]]:
    """Return the sound records under a folder by path, and a line for each other file.

    Records of one recipe share its values, which must not be changed.
    """
    found, notes, marks, shared = {}, [], verifications(), Shared()
    with no_collection():
        for path in record_files(folder):
            try:
                record = Record.load(path, shared)
                check_date(record)
            except UserError as error:
                notes.append(visible(f"{path} left aside: {str(error).splitlines()[0]}", None))
                continue
            found[path] = trusted(record, marks)
            if found[path].status == UNCHECKED[record.origin] != record.status:
                notes.append(visible(f"{path}: {UNKNOWN_MARK}", None))
    return found, notes


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Let no garbage be looked for among many records that all stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def sound_records(folder: Path | None = None) -> list[Record]:
    """Return the records of a folder, by default the committed ones, that are sound by themselves.

    A verified mark that was not made here counts as none.
    """
    found, marks = [], verifications()
    for path in record_files(folder):
        with contextlib.suppress(UserError):
            found.append(trusted(Record.load(path), marks))
    return found


UNKNOWN_MARK = f"has a status that {MARKS} does not confirm; shown as unchecked"


def trusted(record: Record, marks: Mapping[str, Any]) -> Record:
    """Return a record with the status that it has here.

    Anybody can write a status into a record: one other than claimed counts only if ``marks`` has it
    too, and one that ``marks`` withdraws is withdrawn.

    Args:
        record: sound.
        marks: from ``verifications``.
    """
    mark = marks.get(record.run_id)
    unchecked = UNCHECKED[record.origin]
    if mark is None and record.status == unchecked:
        return record
    checked = record.verification and record.verification.model_dump(mode="json")
    if mark == "withdrawn" != record.status:
        return record.model_copy(update={"status": "withdrawn", "verification": None})
    if record.status == "verified" and mark != checked:
        return record.model_copy(update={"status": unchecked, "verification": None})
    if record.status in ("reproduced", "withdrawn") and mark != record.status:
        return record.model_copy(update={"status": unchecked})
    return record


def verifications() -> dict[str, Any]:
    """Return the verifications made with this leaderboard, by run_id.

    Records come from anybody; ``ltbench leaderboard verify mark=true`` alone writes this file, and
    a mark in a record counts only if it is here too. A run that a maintainer found reproduced, or
    withdrew, has the word ``reproduced`` or ``withdrawn`` instead.

    Raises:
        UserError: the file is damaged.
    """
    path = leaderboard_dir() / MARKS
    try:
        content = read_json(path)
        found: dict[str, Any] = content["verified"]
        found.items()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it") from error
    return found


def note_verification(run_id: str, facts: VerificationFacts | None) -> None:
    """Write that a run was verified, or remove that it was.

    Args:
        run_id: of the run.
        facts: of the verification; ``None`` removes it.

    Raises:
        UserError: the file is damaged, or could not be written.
    """
    before = verifications()
    after = {key: value for key, value in before.items() if key != run_id}
    if facts is not None:
        after[run_id] = facts.model_dump(mode="json")
    if after != before:
        content = {"schema_version": 1, "verified": dict(sorted(after.items()))}
        write_json(leaderboard_dir() / MARKS, content)


def record_files(folder: Path | None = None) -> list[Path]:
    """Return the record files under a folder, by default the committed ones, in order.

    Hidden files, such as what an interrupted write leaves behind, are none.
    """
    found: list[tuple[tuple[str, ...], Path]] = []
    level: list[tuple[tuple[str, ...], str]] = [((), str(folder or records_dir()))]
    for parts, place in level:  # grows while it is read
        try:
            entries = list(os.scandir(place))
        except OSError:
            continue
        for entry in entries:
            here = (*parts, entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                level.append((here, entry.path))
            elif entry.name.endswith(".json") and entry.is_file():
                found.append((here, Path(entry.path)))
    return [path for _, path in sorted(found)]


def records_dir() -> Path:
    """Return the folder of the committed records."""
    return leaderboard_dir() / "records"


def record_path(record: Record) -> str:
    """Return the path of a record in the records' folder: ``<data set>/<run_id>.json``."""
    return f"{record.dataset.name}/{record.run_id}.json"
