"""The leaderboard on the Hub: runs as they are, what follows from all of them, a static page."""

from __future__ import annotations

import contextlib
import hashlib
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ltbench.errors import UserError
from ltbench.hub import client
from ltbench.leaderboard.derived import Run, derived, repeated, weight, write_distinct
from ltbench.leaderboard.submit import record_path
from ltbench.record import Record, read_content, validate_record
from ltbench.resources import leaderboard_dir

T = TypeVar("T")

TRIES = 12  # commits that may come too late, before giving up
PAUSE = 0.2  # seconds at most before the second try, doubled up to LONGEST
LONGEST = 5.0
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


@dataclass(frozen=True)
class Published:
    """What became of a publication.

    Args:
        runs: records that the repository holds now.
        added: those of them that were new or have another status.
        url: the last commit, or the repository where nothing changed.
        space_url: the same of the page.
        problems: what was left aside, one line each.
    """

    runs: int
    added: int
    url: str
    space_url: str | None
    problems: tuple[str, ...]


def publish(repo: str, *, space: str = "", folder: Path | None = None) -> Published:
    """Bring local records to the Hub and derive tables and page from all that are there then.

    Whoever else commits meanwhile loses nothing: the commit is refused, and repeated on top.

    Args:
        repo: data set on the Hub, made if it is new.
        space: static space for the page, made if it is new; by default none.
        folder: where local records lie, by default the committed ones.

    Raises:
        UserError: a local record cannot be trusted, you may not write, or others committed each
            time.
    """
    mine = read_local(folder or leaderboard_dir() / "records")
    known = {_blob_id(run.text): run.text for run in mine.values()}
    client.create_repo(repo, kind="dataset")
    there, runs, added, url = _repeat(lambda: _push_runs(repo, mine, known))
    problems = [*there.problems, *repeated(runs.values())]
    space_url = None
    if space:
        client.create_repo(space, kind="space", space_sdk="static")
        space_url = _repeat(lambda: _push_page(space, repo, known))
    return Published(len(runs), added, url, space_url, tuple(problems))


def read_local(folder: Path) -> dict[str, Run]:
    """Return the records of a folder by their path in a repository.

    Raises:
        UserError: one cannot be trusted.
    """
    found = {}
    for path in sorted(folder.rglob("*.json")):
        record = Record.load(path)
        found[f"runs/{record_path(record)}"] = Run(record, path.read_bytes())
    return found


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


def union(theirs: Mapping[str, Run], mine: Mapping[str, Run]) -> dict[str, Run]:
    """Return all runs of both; of a run in both, the one whose status says more.

    Withdrawn says most, then verified, reproduced, claimed: the result does not depend on who
    publishes first.
    """
    merged = dict(theirs)
    for path, run in mine.items():
        if path not in merged or weight(run) > weight(merged[path]):
            merged[path] = run
    return dict(sorted(merged.items()))


def space_readme() -> str:
    """Return the card of the static space."""
    return """---
title: Deep long-tailed recognition
sdk: static
app_file: index.html
pinned: false
---
The leaderboard of ltbench as one page; made by `ltbench leaderboard publish`.
"""


def _push_runs(
    repo: str, mine: Mapping[str, Run], known: dict[str, bytes]
) -> tuple[Remote, dict[str, Run], int, str]:
    """Commit what is missing or out of date.

    Raises:
        Conflict: someone else committed meanwhile.
    """
    there = read_runs(repo, known=known)
    runs = union(there.runs, mine)
    added = {
        path: run.text
        for path, run in runs.items()
        if path not in there.runs or there.runs[path] is not run
    }
    add = _changed({**added, **derived(runs.values())}, there.files)
    if not add:
        return there, runs, 0, f"{client.endpoint()}/datasets/{repo}"
    title = f"Add {len(added)} runs" if added else "Derive tables anew"
    done = client.commit(repo, add, title, parent=there.head, kind="dataset")
    return there, runs, len(added), done.url


def _push_page(space: str, repo: str, known: dict[str, bytes]) -> str:
    """Commit the page of what the repository of records holds, if it is another one.

    Raises:
        Conflict: someone else committed meanwhile.
    """
    from ltbench.leaderboard.page import build_page

    # First the space, then the records: whoever commits last to the space has seen all of them.
    head = client.resolve(space, kind="space")
    files = client.listing(space, head, kind="space")
    runs = read_runs(repo, known=known).runs
    with tempfile.TemporaryDirectory() as place:
        page = build_page(write_distinct(runs.values(), Path(place)))
    add = _changed({"index.html": page.encode(), "README.md": space_readme().encode()}, files)
    if not add:
        return f"{client.endpoint()}/spaces/{space}"
    return client.commit(space, add, "Update the page", parent=head, kind="space").url


def _repeat(push: Callable[[], T]) -> T:
    """Return what a push returns, repeated while others commit in between.

    Raises:
        UserError: they did so each time.
    """
    for number in range(TRIES):
        with contextlib.suppress(client.Conflict):
            return push()
        time.sleep(random.uniform(0, min(PAUSE * 2**number, LONGEST)))
    raise UserError(f"others committed before each of {TRIES} tries; run the same command again")


def _changed(
    wanted: Mapping[str, bytes], there: Mapping[str, client.RemoteFile]
) -> dict[str, bytes]:
    """Return the files that a repository lacks or has with other content."""

    def same(path: str, content: bytes) -> bool:
        file = there.get(path)
        if file is None:
            return False
        if file.sha256 is not None:
            return file.sha256 == hashlib.sha256(content).hexdigest()
        return file.blob_id == _blob_id(content)

    return {path: content for path, content in wanted.items() if not same(path, content)}


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


def _blob_id(content: bytes) -> str:
    """Return git's hash of a small file."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
