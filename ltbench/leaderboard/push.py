"""Publication of the leaderboard on the Hub: runs, derived tables, a static page."""

from __future__ import annotations

import contextlib
import hashlib
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ltbench.digest import git_blob
from ltbench.errors import UserError, visible
from ltbench.leaderboard.derived import Run, derived, repeated, weight, write_distinct
from ltbench.leaderboard.repository import ASIDE, Remote, read_runs
from ltbench.records.claims import check_counts, check_derived
from ltbench.records.record import Record
from ltbench.records.store import load_records, record_path, records_dir
from ltbench.remote import hub as client

T = TypeVar("T")

TRIES = 12  # commits that may come too late, before giving up
PAUSE = 0.2  # seconds at most before the second try, doubled up to LONGEST
LONGEST = 5.0


@dataclass(frozen=True)
class Published:
    """Outcome of a publication.

    Args:
        runs: number of records in the repository.
        added: number of those that were new or have another status.
        url: address of the last commit, or of the repository if nothing changed.
        space_url: the same for the page.
        problems: files and runs that were left aside, one line each.
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
        folder: folder of the local records, by default the committed ones.

    Raises:
        UserError: you may not write, or others committed each time.
    """
    mine, local = read_local(folder or records_dir())
    known = {git_blob(run.text): run.text for run in mine.values()}
    client.create_repo(repo, kind="dataset")
    there, runs, added, url = _repeat(lambda: _push_runs(repo, mine, known))
    sound, refused = admitted(runs, mine)
    problems = [*local, *there.problems, *refused, *repeated(sound)]
    space_url = None
    if space:
        client.create_repo(space, kind="space", space_sdk="static")
        space_url = _repeat(lambda: _push_page(space, repo, mine, known))
    return Published(len(runs), added, url, space_url, tuple(problems))


def read_local(folder: Path) -> tuple[dict[str, Run], list[str]]:
    """Return the records of a folder by their path in a repository, and a line for other files."""
    found, problems = load_records(folder)
    runs = {
        f"runs/{record_path(record)}": Run(record, path.read_bytes())
        for path, record in found.items()
    }
    return runs, problems


def admitted(runs: Mapping[str, Run], mine: Mapping[str, Run]) -> tuple[list[Run], list[str]]:
    """Return the runs that tables may show, and a line for each of the others.

    Args:
        runs: all runs by path.
        mine: those of the local folder, among which rows of papers are allowed.
    """
    reasons = {path: "" if path in mine else _refusal(run.record) for path, run in runs.items()}
    found = [run for path, run in runs.items() if not reasons[path]]
    return found, [visible(f"{p}: {r}; {ASIDE}", None) for p, r in reasons.items() if r]


def _refusal(record: Record) -> str:
    """Return the reason why a table may not show somebody else's record, or nothing."""
    if record.origin == "paper":
        return "is a paper's row, which only the maintainers add"
    try:
        check_derived(record)
        check_counts(record)
    except UserError as error:
        return str(error)
    return ""


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
    """Commit files that are missing or out of date.

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
    add = _changed({**added, **derived(admitted(runs, mine)[0])}, there.files)
    if not add:
        return there, runs, 0, f"{client.endpoint()}/datasets/{repo}"
    title = f"Add {len(added)} runs" if added else "Derive tables anew"
    done = client.commit(repo, add, title, parent=there.head, kind="dataset")
    return there, runs, len(added), done.url


def _push_page(space: str, repo: str, mine: Mapping[str, Run], known: dict[str, bytes]) -> str:
    """Commit the page of the repository's records if it changed.

    Raises:
        Conflict: someone else committed meanwhile.
    """
    from ltbench.leaderboard.page import build_page

    # First the space, then the records: whoever commits last to the space has seen all of them.
    head = client.resolve(space, kind="space")
    files = client.listing(space, head, kind="space")
    runs, _ = admitted(read_runs(repo, known=known).runs, mine)
    with tempfile.TemporaryDirectory() as place:
        page = build_page(write_distinct(runs, Path(place)))
    add = _changed({"index.html": page.encode(), "README.md": space_readme().encode()}, files)
    if not add:
        return f"{client.endpoint()}/spaces/{space}"
    return client.commit(space, add, "Update the page", parent=head, kind="space").url


def _repeat(push: Callable[[], T]) -> T:
    """Return the result of a push, repeated while others commit in between.

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
    """Return the files that a repository lacks, or holds with other content."""

    def same(path: str, content: bytes) -> bool:
        file = there.get(path)
        if file is None:
            return False
        if file.sha256 is not None:
            return file.sha256 == hashlib.sha256(content).hexdigest()
        return file.blob_id == git_blob(content)

    return {path: content for path, content in wanted.items() if not same(path, content)}
