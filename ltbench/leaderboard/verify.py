"""Verification of records: find, check in seven steps, mark as verified."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltbench.config.paths import expanded
from ltbench.errors import UserError
from ltbench.files import write_atomic
from ltbench.leaderboard.steps import STEPS, Case, NotRun, NoWeights, State, Step
from ltbench.records.parts import VerificationFacts
from ltbench.records.record import RECORD, UNCHECKED, Record, load_content, record_text
from ltbench.records.store import (
    note_verification,
    record_files,
    records_dir,
    sound_records,
    verifications,
)
from ltbench.remote.faults import Unreachable

MARKABLE = ("imported", "claimed", "reproduced", "verified")


@dataclass(frozen=True)
class Verification:
    """Outcome of a verification.

    Args:
        steps: those that were reached, in order; after one that failed, and without weights, there
            are none.
        facts: for the record, if all passed.
        mark: change of the record's status, in words; empty if it stays.
        answered: False if the Hub gave no answer, which says nothing about the record.
    """

    steps: tuple[Step, ...]
    facts: VerificationFacts | None = None
    mark: str = ""
    answered: bool = True

    @property
    def passed(self) -> bool:
        """True if all seven steps passed."""
        return self.facts is not None

    @property
    def failed(self) -> Step | None:
        """Step that failed, or ``None``."""
        return next((step for step in self.steps if step.state == "failed"), None)


def verify(
    content: Any,
    *,
    others: Sequence[Record] | None = None,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Verification:
    """Return the outcome of the seven steps for one record; the first failure ends them.

    Args:
        content: parsed JSON of the record.
        others: records that it must not contradict, by default the committed ones.
        options: places of the images, e.g. ``{"root": "images"}``; those unknown to the record's
            data set are left aside, since rows of several data sets may be verified at once.
        device: ``auto``, ``cpu`` or ``cuda``.
    """
    others = sound_records() if others is None else others
    case = Case(content, others, options or {}, device)
    steps: list[Step] = []
    answered, unpublished = True, False
    for number, (name, check) in enumerate(STEPS, start=1):
        state: State = "passed"
        try:
            text = check(case)
        except NotRun as reason:
            state, text = "not run", str(reason)
            unpublished = isinstance(reason, NoWeights)
        except UserError as error:
            state, text = "failed", str(error).splitlines()[0]
            answered = not isinstance(error, Unreachable)
        steps.append(Step(number, name, state, text))
        if state == "failed" or unpublished:
            break
    complete = all(step.state == "passed" for step in steps)
    return Verification(tuple(steps), case.facts if complete else None, answered=answered)


def verify_file(
    path: Path,
    *,
    others: Sequence[Record] | None = None,
    options: Mapping[str, Any] | None = None,
    device: str = "auto",
    mark: bool = True,
) -> Verification:
    """Verify the record in a file and mark it as verified if all steps pass.

    The mark stands in the record and in ``verified.json`` of the leaderboard; one without the other
    counts as none. A record that fails, or whose mark was not made here, is unchecked again.

    Args:
        path: path of the record.
        others: see ``verify``.
        options: see ``verify``.
        device: see ``verify``.
        mark: write the outcome to the two files; otherwise nothing is written.

    Raises:
        UserError: the mark cannot be written.
    """
    try:
        content = load_content(path)
    except UserError as error:
        return Verification((Step(1, "digest", "failed", str(error)),))
    done = verify(content, others=others, options=options, device=device)
    if not mark or not isinstance(content, dict) or content.get("status") not in MARKABLE:
        return done
    known = verifications().get(str(content.get("run_id")))
    if known == "withdrawn":
        return done
    if done.facts is not None:
        note_verification(content["run_id"], done.facts)
        write_atomic(path, record_text(marked(content, done.facts)))
        return replace(done, mark="marked as verified")
    ours = known is not None and known == content.get("verification")
    if content["status"] != "verified" or (ours and (done.failed is None or not done.answered)):
        return done
    if ours:
        note_verification(content["run_id"], None)
    status = UNCHECKED[content["origin"]]
    write_atomic(path, record_text({**content, "status": status, "verification": None}))
    return replace(done, mark="no longer marked as verified")


def marked(content: Mapping[str, Any], facts: VerificationFacts) -> dict[str, Any]:
    """Return a record's content with status verified; what is sealed stays as it was."""
    return {**content, "status": "verified", "verification": facts.model_dump(mode="json")}


def find_rows(what: str, folder: Path | None = None) -> list[Path]:
    """Return the files of the records that a word stands for.

    Args:
        what: ``all`` (but papers' rows, which have no weights), a file, a folder with a
            ``record.json``, the beginning of a run_id (8 digits or more), or the name of a recipe,
            of all seeds or with ``.SEED``.
        folder: folder of the records, by default the committed ones.

    Raises:
        UserError: there is no such record.
    """
    path = expanded(what)
    if path.is_file() or (path / RECORD).is_file():
        return [path if path.is_file() else path / RECORD]
    folder = folder or records_dir()
    files = record_files(folder)
    wanted = [file for file in files if _is(what, file)]
    if not wanted:
        raise UserError(
            f"no record is `{what}`; expected all, a file, a run_id or a recipe's name of the "
            f"{len(files)} records in {folder}"
        )
    return wanted


def _is(what: str, path: Path) -> bool:
    """Return whether a word stands for the record in a file."""
    if re.fullmatch("[0-9a-f]{8,32}", what) and path.stem.startswith(what):
        return True
    try:
        content = load_content(path)
        name, seed, origin = content["recipe"]["name"], content["seed"], content["origin"]
    except (UserError, KeyError, TypeError):
        return what == "all"
    return what in (name, f"{name}.{seed}") or (what == "all" and origin != "paper")
