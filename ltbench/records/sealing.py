"""Checksums and ID of a record, by which an edited file is noticed."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

from ltbench.digest import canonical, digest_of

OUTSIDE = ("run_id", "status", "verification")  # what is said about a run afterwards
UNSEALED = (*OUTSIDE, "schema_version", "checksums")  # have no checksum of their own


_DIGESTS: dict[bytes, str] = {}  # of resolved recipes, by the SHA-256 of their text
_MOST_DIGESTS = 10_000
_REMEMBERED = 4096  # characters of the longest text whose hash is remembered


def texts_of(content: Mapping[str, Any]) -> dict[str, str]:
    """Return the canonical text of each field of a record's content, in the order of the keys.

    Raises:
        ValueError: a number is not finite.
    """
    return {key: "null" if v is None else canonical(v) for key, v in sorted(content.items())}


def joined(texts: Mapping[str, str]) -> str:
    """Return the canonical text of a content from those of its fields."""
    return f"{{{','.join([f'{_quoted(key)}:{text}' for key, text in texts.items()])}}}"


@functools.lru_cache(maxsize=256)
def _quoted(key: str) -> str:
    return canonical(key)


def checksums_of(
    content: Mapping[str, Any], texts: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return a short hash of each field of a record's content.

    Args:
        content: parsed JSON.
        texts: of ``texts_of``, if they are at hand.
    """
    return {
        key: (_remembered if len(text) <= _REMEMBERED else _short_hash)(text)
        for key, text in (texts or texts_of(content)).items()
        if key not in UNSEALED
    }


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


_remembered = functools.lru_cache(maxsize=4096)(_short_hash)


def run_id_of(content: Mapping[str, Any], texts: Mapping[str, str] | None = None) -> str:
    """Return the name of a run: a hash of the content but itself, status and verification.

    Args:
        content: parsed JSON.
        texts: of ``texts_of``, if they are at hand.
    """
    every = texts or texts_of(content)
    rest = {key: text for key, text in every.items() if key not in OUTSIDE}
    return hashlib.sha256(joined(rest).encode()).hexdigest()[:32]


def recipe_digest(content: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """Return the digest of a record's resolved recipe; seeds of one recipe share its computation.

    Args:
        content: parsed JSON.
        texts: of ``texts_of``.
    """
    key = hashlib.sha256(texts["recipe"].encode()).digest()
    if key not in _DIGESTS:
        if len(_DIGESTS) >= _MOST_DIGESTS:
            _DIGESTS.clear()
        _DIGESTS[key] = digest_of(content["recipe"]["resolved"])
    return _DIGESTS[key]
