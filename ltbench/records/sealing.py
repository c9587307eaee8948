"""Checksums and ID of a record, by which an edited file is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ltbench.digest import canonical

OUTSIDE = ("run_id", "status", "verification")  # what is said about a run afterwards
UNSEALED = (*OUTSIDE, "schema_version", "checksums")  # have no checksum of their own


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
