"""Hashes of trees and files, and the canonical JSON they are taken of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_of(resolved: dict[str, Any]) -> str:
    """Return a recipe's digest from its resolved tree without seed, paths and workers."""
    text = json.dumps(resolved, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path, tick: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file.

    Args:
        path: of the file.
        tick: told after each block how many bytes were read.
    """
    digest, done = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(2**20):
            digest.update(block)
            done += len(block)
            if tick is not None:
                tick(done)
    return digest.hexdigest()


def git_blob(content: bytes) -> str:
    """Return the hash by which git, and so the Hub, knows a small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
