"""Records in a data set on the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ltbench.config.schema import NAME
from ltbench.errors import UserError, visible
from ltbench.leaderboard.derived import Run
from ltbench.records.claims import check_date
from ltbench.records.record import LARGEST, UNCHECKED, Record, read_content, validate_record
from ltbench.records.store import UNKNOWN_MARK, record_path, trusted, verifications
from ltbench.remote import hub as client

ASIDE = "left unchanged, and out of all tables"


@dataclass(frozen=True)
class Remote:
    """Content of a repository of records.

    Args:
        head: its commit.
        files: all files by path.
        runs: sound records by path.
        problems: one line for each file that is none.
    """

    head: str
    files: Mapping[str, client.RemoteFile]
    runs: Mapping[str, Run]
    problems: tuple[str, ...]


def read_runs(repo: str, *, only: str = "", known: dict[str, bytes] | None = None) -> Remote:
    """Return the content of a repository of records; files that are no sound record are named.

    Args:
        repo: data set on the Hub.
        only: name of the one data set whose records are wanted.
        known: contents by git's hash, which are not downloaded; new ones are added.

    Raises:
        UserError: there is no such repository, no access, or no answer.
    """
    known = {} if known is None else known
    head = client.resolve(repo, kind="dataset")
    files = client.listing(repo, head, kind="dataset")
    start = f"runs/{only}/" if only else "runs/"
    wanted, problems = [], []
    for path, file in files.items():
        if not (path.startswith(start) and path.endswith(".json")):
            continue
        if not re.fullmatch(rf"runs/{NAME}/[0-9a-f]{{32}}\.json", path):
            reason = "is not named like a record, runs/DATASET/RUN_ID.json"
        elif file.size > LARGEST:
            reason = f"has {file.size:,} bytes, a record has at most {LARGEST:,}"
        else:
            wanted.append(file)
            continue
        problems.append(visible(f"{repo}: {path} {reason}; {ASIDE}", None))

    def get(file: client.RemoteFile) -> bytes:
        if file.blob_id not in known:
            try:
                path = client.download(repo, file.path, head, kind="dataset")
            except client.Missing:
                return b""  # listed, but not there
            known[file.blob_id] = path.read_bytes()
        return known[file.blob_id]

    runs, marks = {}, verifications()
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(get, wanted))
    for file, text in zip(wanted, texts, strict=True):
        record = _read(file.path, text)
        if isinstance(record, Record):
            runs[file.path] = Run(trusted(record, marks), text)
            if runs[file.path].record.status == UNCHECKED[record.origin] != record.status:
                problems.append(f"{repo}: {file.path} {UNKNOWN_MARK}")
        else:
            problems.append(visible(f"{repo}: {file.path} {record}; {ASIDE}", None))
    return Remote(head, files, runs, tuple(problems))


def _read(path: str, text: bytes) -> Record | str:
    """Return the record in a file, or the reason why it is none."""
    try:
        content = read_content(text)
    except ValueError as error:
        return f"is truncated or not JSON ({error})"
    problems = validate_record(content)
    if problems:
        return problems[0]
    record = Record.model_validate(content)
    try:
        check_date(record)
    except UserError as error:
        return str(error)
    place = f"runs/{record_path(record)}"
    return record if place == path else f"holds the record of {place}"
