"""Hub client: revisions, listings, downloads, repositories, commits."""

from __future__ import annotations

import contextlib
import functools
import re
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ltbench.errors import UserError
from ltbench.remote import cache as cache_files
from ltbench.remote import limits
from ltbench.remote.faults import TRIES, Conflict, Missing, Unreachable, attempt, one_line

__all__ = [
    "Committed",
    "Conflict",
    "Kind",
    "Missing",
    "RemoteFile",
    "Unreachable",
    "attempt",
    "commit",
    "create_repo",
    "download",
    "endpoint",
    "listing",
    "offline_unless_reachable",
    "request",
    "resolve",
]

Kind = Literal["model", "dataset", "space"]
COMMIT = re.compile(r"[0-9a-f]{40}")
FETCHES = 3  # of a file whose content is wrong, before it is refused
PROBE = 5.0  # seconds for an answer that says that there is a network
QUIET = 60.0  # seconds that an upload or a commit may get no answer
UPLOAD, UPLOAD_RATE = 600.0, 2**14  # seconds for a commit, and bytes a second that add to them
PICKLES = (".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository, as the Hub lists it.

    Args:
        path: inside the repository.
        size: in bytes.
        sha256: of the content; None for a small file, which is known by ``blob_id`` only.
        blob_id: its hash in git.
    """

    path: str
    size: int
    sha256: str | None
    blob_id: str


@dataclass(frozen=True)
class Committed:
    """Outcome of a commit.

    Args:
        oid: the commit, or the one before if nothing had to change.
        url: its page.
        pr_url: page of the pull request, if one was asked for and something had to change.
    """

    oid: str
    url: str
    pr_url: str | None = None


def endpoint() -> str:
    """Return the address of the Hub: HF_ENDPOINT, or the public one."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def resolve(repo: str, revision: str = "main", *, kind: Kind = "model") -> str:
    """Return the commit that a branch or tag points at, 40 hex digits.

    If the Hub does not answer, or in offline mode, the last known commit is returned with a
    warning. A commit is returned as it is, without a request.

    Args:
        repo: ``org/name``.
        revision: branch, tag or commit.
        kind: of the repository.

    Raises:
        UserError: there is no such repository or revision, no access, or no answer.
    """
    from huggingface_hub import HfApi, constants

    _check_repo(repo, revision)
    if COMMIT.fullmatch(revision):
        return revision
    known = cache_files.noted_commit(repo, revision, kind)
    if COMMIT.fullmatch(known) and constants.HF_HUB_OFFLINE:
        _say_stale(repo, revision, known, "offline mode is on")
        return known

    def ask() -> str:
        limit = constants.HF_HUB_ETAG_TIMEOUT
        info = HfApi().repo_info(repo, repo_type=kind, revision=revision, timeout=limit)
        return str(info.sha)

    try:
        found = attempt(f"{repo}@{revision}", ask, tries=2 if known else TRIES)
    except Unreachable as error:
        if not COMMIT.fullmatch(known):
            raise
        _say_stale(repo, revision, known, str(error))
        return known
    if not COMMIT.fullmatch(found):
        raise UserError(
            f"{repo}@{revision}: {endpoint()} names no commit of 40 hex digits, but "
            f"{one_line(found)!r:.60}; check HF_ENDPOINT, or try again later"
        )
    if found != known:
        cache_files.note_commit(repo, revision, kind, found)
    return found


def listing(repo: str, revision: str, *, kind: Kind = "model") -> dict[str, RemoteFile]:
    """Return the files of a revision by path.

    Args:
        repo: ``org/name``.
        revision: branch, tag or commit.
        kind: of the repository.

    Raises:
        UserError: there is no such repository or revision, no access, or no answer.
    """
    from huggingface_hub import HfApi, constants

    _check_repo(repo, revision)

    def ask() -> Any:
        limit = constants.HF_HUB_ETAG_TIMEOUT
        return HfApi().repo_info(
            repo, repo_type=kind, revision=revision, timeout=limit, files_metadata=True
        )

    info = attempt(f"files of {repo}@{revision}", ask)
    return {
        f.rfilename: RemoteFile(
            f.rfilename, f.size, f.lfs.sha256 if f.lfs is not None else None, f.blob_id
        )
        for f in info.siblings
    }


def download(
    repo: str,
    file: str,
    revision: str,
    *,
    kind: Kind = "model",
    sha256: str | None = None,
    size: int | None = None,
    limit: int | None = None,
    cache: Path | None = None,
) -> Path:
    """Return a file of a repository, fetched into the cache unless it is there, and checked.

    A copy with the wrong content is removed and fetched again, twice at most. A commit that is in
    the cache needs no network.

    Args:
        repo: ``org/name``.
        file: path inside the repository.
        revision: branch, tag or commit.
        kind: of the repository.
        sha256: of the content; by default what the Hub says of it.
        size: in bytes, if it is known.
        limit: largest size in bytes of a file whose size is not known.
        cache: folder to fetch into; by default the Hub's own cache.

    Raises:
        UserError: there is no such file, no access, no answer, no room, or its content stays wrong.
    """
    from huggingface_hub import hf_hub_download

    _check_repo(repo, revision)
    _check_file(file, kind)
    pinned = resolve(repo, revision, kind=kind)
    what = f"{file} of {repo}@{pinned[:12]}"
    wrong = ""
    meter = limits.Meter(size, limit, quiet=kind != "model")  # other kinds have many files

    def fetch() -> Path:
        return Path(
            hf_hub_download(
                repo, file, repo_type=kind, revision=pinned, cache_dir=cache,
                tqdm_class=meter.bar(),
            )
        )  # fmt: skip

    for _ in range(FETCHES):
        try:
            path = attempt(what, fetch, progress=lambda: meter.received)
        except limits.TooLarge:
            cache_files.drop_incomplete(repo, kind, cache)
            raise
        except UserError as error:
            after = f"; the copy before it was removed: {wrong}" if wrong else ""
            raise type(error)(f"{error}{after}") from None
        expected = sha256 or _announced(path, repo, file, pinned, kind)
        wrong = cache_files.mismatch(path, expected, size)
        if not wrong:
            return path
        cache_files.discard(path)
    raise UserError(
        f"{what}: the content is wrong, also after {FETCHES} downloads: {wrong}; nothing was kept, "
        "tell the owner of the repository"
    )


def request(repo: str, file: str, revision: str, *, kind: Kind = "model") -> urllib.request.Request:
    """Return the request of a file, with the user's token, for readers of byte ranges.

    Args:
        repo: ``org/name``.
        file: path inside the repository.
        revision: branch, tag or commit.
        kind: of the repository.

    Raises:
        Missing: offline mode is on.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    _check_repo(repo, revision)
    _check_file(file, kind)
    if constants.HF_HUB_OFFLINE:
        raise Missing(f"{file} of {repo}@{revision[:12]}: offline mode is on; unset HF_HUB_OFFLINE")
    asked = urllib.request.Request(
        hf_hub_url(repo, file, repo_type=kind, revision=revision, endpoint=endpoint())
    )
    for name, value in build_hf_headers().items():
        asked.add_unredirected_header(name.capitalize(), value)
    return asked


def create_repo(
    repo: str, *, kind: Kind = "model", private: bool = False, space_sdk: str | None = None
) -> None:
    """Make a repository unless it exists.

    Args:
        repo: ``org/name``.
        kind: of the repository.
        private: show a new repository to its owners only.
        space_sdk: ``static`` and the like, for a space.

    Raises:
        UserError: you may not create it, or the Hub does not answer.
    """
    from huggingface_hub import HfApi

    _check_repo(repo, "main")

    def ask() -> None:
        with _limited():
            HfApi().create_repo(
                repo, repo_type=kind, private=private, exist_ok=True, space_sdk=space_sdk
            )

    attempt(f"repository {repo}", ask)


def commit(
    repo: str,
    add: Mapping[str, bytes | Path],
    message: str,
    *,
    parent: str | None,
    kind: Kind = "model",
    delete: Sequence[str] = (),
    pull_request: bool = False,
) -> Committed:
    """Add and delete files on main in one commit, or as a pull request.

    Files that are there already are not sent again; if all are, no commit is made.

    Args:
        repo: ``org/name``.
        add: path inside the repository -> content, or the file that holds it.
        message: first line of the commit.
        parent: the commit it must follow; None is whatever is there.
        kind: of the repository.
        delete: paths to remove.
        pull_request: ask the owners instead. It is sent only once, so that none is opened twice.

    Raises:
        Conflict: someone committed after ``parent``.
        UserError: you may not write, a path is refused, or the Hub does not answer.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    _check_repo(repo, parent or "main")
    for path in (*add, *delete):
        _check_file(path, kind)

    def ask() -> Any:
        added = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in add.items()
        ]
        removed = [CommitOperationDelete(path) for path in delete]
        with _limited():
            return HfApi().create_commit(
                repo,
                [*added, *removed],
                commit_message=message,
                repo_type=kind,
                parent_commit=parent,
                create_pr=pull_request,
            )

    sizes = (len(c) if isinstance(c, bytes) else c.stat().st_size for c in add.values())
    seconds = UPLOAD + sum(sizes) / UPLOAD_RATE
    tries = 1 if pull_request else TRIES
    done = attempt(f"commit to {repo}", ask, tries=tries, seconds=seconds)
    return Committed(done.oid, str(done.commit_url), done.pr_url)


def _check_repo(repo: str, revision: str) -> None:
    part = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
    if not re.fullmatch(f"{part}/{part}", repo) or "--" in repo or ".." in repo:
        raise UserError(f"`{repo}` is no repository; expected org/name, e.g. my-lab/ce_cifar10")
    if not re.fullmatch(r"[A-Za-z0-9_][\w./-]*", revision) or ".." in revision:
        raise UserError(f"`{revision}` is no revision of {repo}; expected a branch, tag or commit")


def _check_file(path: str, kind: Kind) -> None:
    parts = path.split("/")
    if re.search(r"[\\:\0]", path) or any(part in ("", ".", "..", ".git") for part in parts):
        raise UserError(f"`{path}` is refused as the path of a file: it may leave its folder")
    arrays = kind == "dataset" and path.lower().endswith(".npy")  # read without pickles
    if path.lower().endswith(PICKLES) and not arrays:
        raise UserError(
            f"`{path}` is refused: such files may run code when read; only .safetensors weights "
            "are published and loaded"
        )


def _announced(path: Path, repo: str, file: str, pinned: str, kind: Kind) -> str | None:
    """Return the hash of a file by the Hub: SHA-256, or git's for a small file."""
    from huggingface_hub import constants

    kept = cache_files.blob_of(path).name  # a hash, if the cache can make links
    if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", kept):
        return kept
    if constants.HF_HUB_OFFLINE:
        return None  # it was checked when it was downloaded
    remote = _listed(endpoint(), repo, pinned, kind).get(file)
    if remote is None:
        raise Missing(f"{file} of {repo}@{pinned[:12]}: the repository lists no such file")
    return remote.sha256 or remote.blob_id


@functools.lru_cache(maxsize=32)
def _listed(_endpoint: str, repo: str, pinned: str, kind: Kind) -> dict[str, RemoteFile]:
    return listing(repo, pinned, kind=kind)  # that of a commit never changes


def _say_stale(repo: str, revision: str, known: str, why: str) -> None:
    warnings.warn(
        f"{why}; using what `{revision}` of {repo} was when last asked: {known}", stacklevel=3
    )


@contextlib.contextmanager
def offline_unless_reachable(seconds: float = PROBE) -> Iterator[bool]:
    """Let the Hub's client read its cache only, unless the Hub answers at once.

    The client alone repeats every request for half a minute before it says that there is no
    network.

    Args:
        seconds: time for the answer.

    Yields:
        True if the Hub answers, or if offline mode was on already.
    """
    from huggingface_hub import constants, get_session

    before, reachable = constants.HF_HUB_OFFLINE, True
    if not before:
        try:
            get_session().head(constants.ENDPOINT, timeout=seconds)
        except Exception:  # of its HTTP library, which may change
            constants.HF_HUB_OFFLINE, reachable = True, False
    try:
        yield reachable
    finally:
        constants.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Give a limit to requests of the client that have none of their own."""
    from huggingface_hub import get_session

    session = get_session()
    before = session.timeout
    session.timeout = QUIET
    try:
        yield
    finally:
        session.timeout = before
