"""Submission of a run: checks, the committed record, a pull request on the Hub."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ltbench.config import plugins
from ltbench.data.base import place_options
from ltbench.digest import canonical, file_sha256, read_json
from ltbench.errors import UserError
from ltbench.files import AGE, remove_abandoned, write_atomic
from ltbench.leaderboard.recipe_check import check_recipe
from ltbench.leaderboard.steps import (
    Case,
    NotRun,
    check_data,
    check_digest,
    check_listing,
    check_metrics,
    check_pinned,
)
from ltbench.records.aggregate import run_key
from ltbench.records.claims import check_others, check_rank
from ltbench.records.record import (
    RECIPE,
    RECORD,
    UNCHECKED,
    Record,
    load_content,
    record_text,
)
from ltbench.records.store import record_path, records_dir, sound_records
from ltbench.records.validation import VALIDATION


@dataclass(frozen=True)
class Submission:
    """Outcome of a submission.

    Args:
        record: as it was written.
        path: path of its file.
        checks: findings, one line each.
        pull_request: its page on the Hub, if one was opened.
    """

    record: Record
    path: Path
    checks: tuple[str, ...]
    pull_request: str | None = None


def submit(
    run: Path,
    *,
    repo: str = "",
    repository: str = "",
    revision: str = "",
    submitted_by: str = "",
    licence: str = "",
    options: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> Submission:
    """Check a run's record, write it to the leaderboard and, if asked, open a pull request.

    Args:
        run: folder of a run, a publish folder, or a record.
        repo: data set on the Hub that collects records, ``org/name``.
        repository: repository with the published weights, ``org/name``.
        revision: commit of that repository.
        submitted_by: name to show beside the row.
        licence: of the weights.
        options: places of the images, e.g. ``{"root": "images"}``; by default those of the run.
        folder: folder of the records, by default the committed ones.

    Raises:
        UserError: the record is not sound or not of this recipe, is there already, or could not be
            written or offered; nothing was written unless the message says so.
    """
    folder = folder or records_dir()
    file = run / RECORD if run.is_dir() else run
    if run.is_dir() and not file.exists() and (run / VALIDATION).is_file():
        raise UserError(
            f"{run} holds a run that was evaluated on validation images only, so there is no "
            "result to submit; run its recipe with run.evaluate=test"
        )
    given = Record.load(file)
    _check_weights(file, given)
    plugins.load_run(file.parent, given.recipe.resolved)
    content = completed(
        load_content(file),
        {
            "repository": repository,
            "revision": revision,
            "submitted_by": submitted_by,
            "licence": licence,
        },
    )
    others = sound_records(folder)
    case = Case(content, others, {**_places(file), **(options or {})})
    record = Record.model_validate(content)
    if record.origin == "paper":
        raise UserError(
            "the record has origin paper, so there is no run to check; rows of papers are "
            "committed by hand, see leaderboard/README.md"
        )
    try:
        checks = [check_digest(case), check_metrics(case)]
    except NotRun as reason:
        raise UserError(str(reason)) from reason
    target = folder / record_path(record)
    checks.append(check_recipe(record))
    _refuse_twice(record, others, folder)
    check_rank(record, others)
    try:
        checks.append(check_data(case))
    except NotRun as reason:
        checks.append(f"images not compared: {reason}")
    if record.checkpoint and record.checkpoint.repository:
        checks += [check_pinned(case), check_listing(case)]
    if repo:
        from ltbench.leaderboard.repository import read_runs

        there = [run.record for run in read_runs(repo, only=record.dataset.name).runs.values()]
        _refuse_twice(record, there, repo, same_too=True)
        check_rank(record, there)
        check_others(record, there)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {target.parent}: {error.strerror}") from error
    text = record_text(content)
    _sweep(target)
    if all(other.run_id != record.run_id for other in others):  # else it may be verified by now
        try:
            write_atomic(target, text)
        except UserError:
            if not (target.is_file() and target.read_bytes() == text):  # else somebody else did
                raise
    page = _offer(record, text, repo, target) if repo else None
    return Submission(record, target, tuple(checks), page)


def completed(content: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Return a record's content as a claim, with what its submitter adds, sealed anew if need be.

    Args:
        content: of a sound record.
        given: ``repository`` and ``revision`` of the weights, ``submitted_by``, ``licence``; empty
            ones are left as they are.

    Raises:
        UserError: a value is not of the form that a record needs.
    """
    given = {key: value for key, value in given.items() if value}
    if ("repository" in given) != ("revision" in given):
        raise UserError("`repository=` and `revision=` go together: give both or none")
    if not re.fullmatch("[0-9a-f]{40}", given.get("revision", "0" * 40)):
        raise UserError(
            f"`revision`: expected a commit, 40 hex digits, found `{given['revision']}`; a branch "
            "or tag may move"
        )
    claim = {**content, "verification": None}
    claim["status"] = UNCHECKED.get(str(content.get("origin")), "claimed")
    top: dict[str, Any] = {key: given[key] for key in ("submitted_by", "licence") if key in given}
    place = {key: given[key] for key in ("repository", "revision") if key in given}
    if place and content.get("checkpoint") is None:
        raise UserError("the record names no weights; leave `repository=` and `revision=` out")
    if not (top or place):
        return claim
    if place:
        top["checkpoint"] = {**content["checkpoint"], **place}
    try:
        record = Record.model_validate_json(canonical({**claim, **top}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"`{where}`: {first['msg']}, found {first['input']!r:.60}") from error
    return record.sealed().model_dump(mode="json")


def _offer(record: Record, text: bytes, repo: str, written: Path) -> str | None:
    """Open the pull request and return its page.

    Raises:
        UserError: it could not be opened.
    """
    from ltbench.remote import hub as client

    title = f"Add {record.recipe.name}, seed {record.seed}, on {record.dataset.name}"
    files = {f"runs/{record_path(record)}": text}
    try:
        done = client.commit(repo, files, title, parent=None, kind="dataset", pull_request=True)
    except UserError as error:
        raise UserError(f"{error}; the record was written to {written}") from error
    return done.pr_url


def _sweep(target: Path) -> None:
    """Remove what interrupted submissions left beside a record: of this run, or an hour old."""
    remove_abandoned(target)
    for path in target.parent.glob(".partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > AGE:
                path.unlink()


def _refuse_twice(
    record: Record, others: Iterable[Record], where: Path | str, *, same_too: bool = False
) -> None:
    """Refuse a second record of a run; the same record is none, unless ``same_too``.

    Raises:
        UserError: names the record that is there.
    """
    for other in others:
        if run_key(other) == run_key(record) and (same_too or other.run_id != record.run_id):
            raise UserError(
                f"{where} holds {record_path(other)}, which is of the same recipe, data, code and "
                "seed; remove that one to replace it"
            )


def _check_weights(file: Path, record: Record) -> None:
    """Check the weights beside a record, if there are any.

    Raises:
        UserError: they are not those of the record.
    """
    if record.checkpoint is None:
        return
    weights, wanted = file.parent / record.checkpoint.file, record.checkpoint.sha256
    if weights.is_file() and (found := file_sha256(weights)) != wanted:
        raise UserError(
            f"{weights} is not the file that {file.name} describes: its SHA-256 is "
            f"{found[:12]}..., the record says {wanted[:12]}..."
        )


def _places(file: Path) -> dict[str, Any]:
    """Return the places from which the run read its images, as far as its folder names them."""
    from ltbench.data import DATASETS

    try:
        data = read_json(file.parent / RECIPE)["tree"]["data"]
        places = place_options(DATASETS.get(data["name"]))
        return {key: value for key, value in data.items() if key in places and value is not None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        return {}
