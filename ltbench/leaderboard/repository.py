"""Records in a data set on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ltbench.errors import UserError
from ltbench.leaderboard.derived import Run
from ltbench.records.record import Record, read_content, validate_record
from ltbench.records.store import record_path
from ltbench.remote import hub as client

LARGEST = 16 * 2**20  # bytes of a record; one of 10,000 classes has 300,000


@dataclass(frozen=True)
class Remote:
    """What a repository holds.

    Args:
        head: the commit.
        files: all files by path.
        runs: sound records by path.
        problems: one line for each file that is none.
    """

    head: str
    files: Mapping[str, client.RemoteFile]
    runs: Mapping[str, Run]
    problems: tuple[str, ...]


def read_runs(repo: str, *, only: str = "", known: dict[str, bytes] | None = None) -> Remote:
    """Return what a repository of records holds; what is no sound record is named, not an error.

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
    wanted = [f for p, f in files.items() if p.startswith(start) and p.endswith(".json")]
    problems = [
        f"{repo}: {f.path} has {f.size:,} bytes, no record; left as it is"
        for f in wanted
        if f.size > LARGEST
    ]
    wanted = [f for f in wanted if f.size <= LARGEST]

    def get(file: client.RemoteFile) -> bytes:
        if file.blob_id not in known:
            path = client.download(repo, file.path, head, kind="dataset")
            known[file.blob_id] = path.read_bytes()
        return known[file.blob_id]

    runs = {}
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(get, wanted))
    for file, text in zip(wanted, texts, strict=True):
        record = _read(file.path, text)
        if isinstance(record, Record):
            runs[file.path] = Run(record, text)
        else:
            problems.append(f"{repo}: {file.path} {record}; left as it is and out of all tables")
    return Remote(head, files, runs, tuple(problems))


def _read(path: str, text: bytes) -> Record | str:
    """Return the record that a file holds, or what is wrong with it."""
    try:
        content = read_content(text)
    except ValueError as error:
        return f"is truncated or not JSON ({error})"
    problems = validate_record(content)
    if problems:
        return problems[0]
    record = Record.model_validate(content)
    try:
        place = f"runs/{record_path(record)}"
    except UserError as error:
        return str(error)
    return record if place == path else f"holds the record of {place}"
