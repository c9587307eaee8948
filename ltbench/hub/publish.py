"""Publication of a run: the difference between folder and repository, and its commit."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ltbench.digest import JSON_BYTES, file_sha256, git_blob, read_json
from ltbench.errors import UserError
from ltbench.hub.export import export
from ltbench.hub.folder import CONFIG, FILES, RESULTS, files_in, is_result
from ltbench.records.record import RECORD, WEIGHTS, Record
from ltbench.remote import hub as client

HUBS_OWN = ".gitattributes"  # the Hub writes it when it makes a repository
TEXT = 256 * 1024  # bytes up to which a changed text is shown as a diff
ATTEMPTS = 3  # at a commit, if others commit in between

State = Literal["new", "changed", "same", "removed", "kept"]


@dataclass(frozen=True)
class Difference:
    """One file, in the publish folder and in the repository.

    Args:
        path: of the file.
        state: effect of publishing; ``kept`` are files that others put there.
        bytes: size, of a removed or kept file that in the repository.
        diff: lines of a unified diff, for a small text that changed.
    """

    path: str
    state: State
    bytes: int
    diff: tuple[str, ...] = ()


@dataclass(frozen=True)
class Published:
    """Outcome of a publication, or of a dry run.

    Args:
        repository: ``org/name``.
        revision: the commit, 40 hex digits; ``None`` after a dry run.
        differences: file by file.
        record: of the published weights.
        folder: the publish folder, if it was kept.
        note: why a dry run compared nothing, if so.
    """

    repository: str
    revision: str | None
    differences: tuple[Difference, ...]
    record: Record
    folder: Path | None
    note: str = ""

    @property
    def changed(self) -> bool:
        """True if the repository had to change."""
        return any(d.state in ("new", "changed", "removed") for d in self.differences)


def publish(
    run: Path,
    repository: str,
    *,
    dry_run: bool = False,
    out: Path | None = None,
    half: bool = False,
    licence: str | None = None,
    private: bool = False,
    apart: bool = False,
) -> Published:
    """Publish a run's weights, configuration, recipe, record and card in one commit.

    A repository holds one recipe and seed. What is there already is not sent again, and where
    nothing differs no commit is made, so that a broken publication is simply repeated.

    Args:
        run: folder of a finished run.
        repository: ``org/name``; made if it does not exist.
        dry_run: write the publish folder and compare, if the Hub answers, but change nothing there.
        out: keep the publish folder here; with ``dry_run`` by default ``publish`` in the run's.
        half: store float16 weights, evaluated again, see ``export``.
        licence: of the weights.
        private: make a new repository private.
        apart: leave out the frozen encoder, see ``export``.

    Raises:
        UserError: the run cannot be published, the repository holds another model, or the Hub
            refuses.
    """
    from huggingface_hub import constants

    if out is None and dry_run:
        out = run / "publish"
    with tempfile.TemporaryDirectory() as temporary:
        target = out or Path(temporary) / "publish"
        folder = export(run, target, repository=repository, half=half, licence=licence, apart=apart)
        record = Record.load(folder / RECORD)
        files = files_of(folder)
        if not dry_run:
            client.create_repo(repository, private=private)
        for attempt in range(ATTEMPTS):
            try:
                head, differences = compare(files, repository, record)
            except client.Unreachable as error:
                if not dry_run:
                    raise
                return Published(repository, None, (), record, out, f"not compared: {error}")
            done = Published(repository, None, differences, record, out)
            if dry_run:
                unasked = head is None and constants.HF_HUB_OFFLINE
                note = "not compared: offline mode is on" if unasked else ""
                return replace(done, note=note)
            if not done.changed and head is not None:
                return Published(repository, head, differences, record, out)
            try:
                committed = _commit(files, done, head)
            except client.Conflict:
                if attempt == ATTEMPTS - 1:
                    raise
                continue
            return Published(repository, committed, differences, record, out)
    raise RuntimeError("the last attempt returns or raises")


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files of a publish folder by their path in the repository.

    Raises:
        UserError: one is missing, or there is anything else.
    """
    found, foreign = files_in(folder)
    missing = [name for name in FILES if name not in found]
    if missing or foreign:
        what = f"lacks {missing[0]}" if missing else f"holds `{foreign[0]}`"
        raise UserError(
            f"{folder} {what}: a publish folder has {', '.join(FILES)} and {RESULTS}/*.yaml and "
            "nothing else; export it again"
        )
    return found


def compare(
    files: Mapping[str, Path], repository: str, record: Record
) -> tuple[str | None, tuple[Difference, ...]]:
    """Return the head of a repository and how the publish folder differs from it.

    Args:
        files: path in the repository to local file.
        repository: ``org/name``; if it does not exist, all files are new.
        record: of the weights to publish.

    Raises:
        UserError: the repository holds another model, or the Hub does not answer.
    """
    try:
        head = client.resolve(repository)
        remote = client.listing(repository, head)
    except client.Missing:
        head, remote = None, {}
    if head is not None:
        _check_same_model(repository, head, remote, record)
    differences = []
    for path, file in files.items():
        there = remote.get(path)
        state: State = "new" if there is None else "same" if _agrees(file, there) else "changed"
        diff: tuple[str, ...] = ()
        if there is not None and head is not None and state == "changed":
            diff = _diff(repository, head, there, file)
        differences.append(Difference(path, state, file.stat().st_size, diff))
    for path, there in sorted(remote.items()):
        if path not in files and path != HUBS_OWN:
            state = "removed" if is_result(path) else "kept"
            differences.append(Difference(path, state, there.size))
    return head, tuple(differences)


def zoo_entry(published: Published) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the entry of a published model for `models` in `leaderboard/zoo.json`.

    Args:
        published: by ``publish``, not as a dry run.
    """
    weights = published.record.checkpoint
    if weights is None or published.revision is None:
        raise ValueError("only published weights have an entry")
    entry = {
        "repository": published.repository,
        "revision": published.revision,
        "folder": "",
        "sha256": weights.sha256,
        "bytes": weights.bytes,
        "embedded": None,
    }
    return {published.record.recipe.name: {str(published.record.seed): entry}}


def _commit(files: Mapping[str, Path], planned: Published, head: str | None) -> str:
    """Commit what differs, and return the new head."""
    states = {d.path: d.state for d in planned.differences}
    add: dict[str, bytes | Path] = {
        path: file if path == WEIGHTS else file.read_bytes()
        for path, file in files.items()
        if states[path] != "same"
    }
    record = planned.record
    return client.commit(
        planned.repository,
        add,
        f"{record.recipe.name}, seed {record.seed}, digest {record.recipe.digest}",
        parent=head,
        delete=[path for path, state in states.items() if state == "removed"],
    ).oid


def _agrees(file: Path, remote: client.RemoteFile) -> bool:
    if file.stat().st_size != remote.size:
        return False
    if remote.sha256 is not None:
        return file_sha256(file) == remote.sha256
    return git_blob(file.read_bytes()) == remote.blob_id


def _check_same_model(
    repository: str, head: str, remote: Mapping[str, client.RemoteFile], record: Record
) -> None:
    """Refuse to write over anything but the same recipe and seed, or beside a pickle."""
    pickles = [path for path in remote if path.lower().endswith(client.PICKLES)]
    if pickles:
        raise UserError(
            f"{repository} holds `{pickles[0]}`, and such files may run code when read; delete it "
            "there, or publish to another repository"
        )
    if CONFIG not in remote and WEIGHTS not in remote:
        return
    what = "files that ltbench did not write"
    if CONFIG in remote:
        try:
            content = read_json(client.download(repository, CONFIG, head, limit=JSON_BYTES))
            found = content["ltbench"]
            if (found["digest"], found["seed"]) == (record.recipe.digest, record.seed):
                return
            what = f"digest {found['digest']}, seed {found['seed']}"
        except (ValueError, KeyError, TypeError):
            pass
    raise UserError(
        f"{repository} holds another model ({what}; this is {record.recipe.name}, digest "
        f"{record.recipe.digest}, seed {record.seed}); publish each recipe and seed to a "
        f"repository of its own, e.g. {repository.partition('/')[0]}/"
        f"{record.recipe.name}-seed{record.seed}"
    )


def _diff(repository: str, head: str, remote: client.RemoteFile, file: Path) -> tuple[str, ...]:
    if remote.path == WEIGHTS or max(remote.size, file.stat().st_size) > TEXT:
        return ()
    there = client.download(repository, remote.path, head)
    before, after = (p.read_text("utf-8", errors="replace").splitlines() for p in (there, file))
    return tuple(difflib.unified_diff(before, after, "there", "here", lineterm="", n=1))
