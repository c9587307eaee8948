"""Hashes by which a record shows that it is what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OUTSIDE = ("run_id", "status", "verification")  # what is said about a run afterwards
UNSEALED = (*OUTSIDE, "schema_version", "checksums")  # have no checksum of their own


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def checksums_of(content: Mapping[str, Any]) -> dict[str, str]:
    """Return a short hash of each field of a record's content."""
    return {
        key: hashlib.sha256(canonical(value).encode()).hexdigest()[:12]
        for key, value in content.items()
        if key not in UNSEALED
    }


def run_id_of(content: Mapping[str, Any]) -> str:
    """Return the name of a run: a hash of the content but itself, status and verification."""
    rest = {k: v for k, v in content.items() if k not in OUTSIDE}
    return hashlib.sha256(canonical(rest).encode()).hexdigest()[:32]


def digest_of(resolved: dict[str, Any]) -> str:
    """Return a recipe's digest from its resolved tree without seed, paths and workers."""
    text = json.dumps(resolved, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
