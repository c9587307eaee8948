"""Files in the cache of the Hub's client: noted commits, checks, removal."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ltbench.digest import file_sha256, git_blob


def folder_of(repo: str, kind: str, cache: Path | None = None) -> Path:
    """Return the folder of a repository in the cache.

    Args:
        repo: ``org/name``.
        kind: ``model``, ``dataset`` or ``space``.
        cache: folder of the cache; by default the Hub's own.
    """
    from huggingface_hub import constants

    return Path(cache or constants.HF_HUB_CACHE) / "--".join((f"{kind}s", *repo.split("/")))


def noted_commit(repo: str, revision: str, kind: str) -> str:
    """Return the noted commit of a branch or tag; empty if there is none."""
    path = folder_of(repo, kind) / "refs" / revision
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            return file.read(100).decode("ascii", "replace").strip()
    except OSError:
        return ""


def note_commit(repo: str, revision: str, kind: str, commit: str) -> None:
    """Note the commit of a branch or tag, if the cache can be written."""
    path = folder_of(repo, kind) / "refs" / revision
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    with contextlib.suppress(OSError):  # a read-only cache is good enough
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, flags, 0o666), "wb") as file:
            file.write(commit.encode())
        partial.replace(path)


def mismatch(path: Path, digest: str | None, size: int | None) -> str:
    """Return the difference between a file and its expected hash and size, or nothing."""
    if size is not None and path.stat().st_size != size:
        return f"expected {size:,} bytes, found {path.stat().st_size:,}"
    if digest is None:
        return ""
    if len(digest) == 64:
        name, found = "SHA-256", file_sha256(path)
    else:
        name, found = "git", git_blob(path.read_bytes())
    if found == digest:
        return ""
    return f"expected {name} hash {digest[:12]}..., found {found[:12]}..."


def blob_of(path: Path) -> Path:
    """Return the file that holds the content of a file in the cache, where it can make links."""
    return Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else path


def discard(path: Path) -> None:
    """Remove a file from the cache together with its content there, never a file elsewhere."""
    homes = [folder.parent for folder in path.parents if folder.name == "snapshots"]
    blob = blob_of(path)
    if homes and blob.parent == homes[0] / "blobs":
        blob.unlink(missing_ok=True)  # if it is a link, what it points to stays
    path.unlink(missing_ok=True)


def drop_incomplete(repo: str, kind: str, cache: Path | None) -> None:
    """Remove unfinished downloads of a repository, which the client would resume."""
    for path in (folder_of(repo, kind, cache) / "blobs").glob("*.incomplete"):
        with contextlib.suppress(OSError):
            path.unlink()
