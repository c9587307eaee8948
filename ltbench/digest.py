"""Hashes of trees and files, canonical JSON, and a JSON reader with bounds."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

JSON_BYTES = 16 * 2**20  # of a JSON text, unless its reader expects more
JSON_DEPTH = 64  # nested lists and mappings; a recipe has about ten
JSON_PARTS = 4_000_000  # lists and mappings of a text
_MARKS = b'"[]{}'
_OTHERS = bytes(set(range(256)) - set(_MARKS))
_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def parse_json(text: bytes | str, *, limit: int = JSON_BYTES, strict: bool = False) -> Any:
    """Return the value of a JSON text whose size and nesting are bounded.

    Both bounds are checked before the parser sees the text, so that a hostile one costs neither
    memory nor the interpreter's stack.

    Args:
        text: JSON in UTF-8.
        limit: largest size in bytes.
        strict: refuse keys given twice, NaN and infinity as well.

    Raises:
        ValueError: the text is too long, nested too deeply, or not JSON.
    """
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(raw) > limit:
        raise ValueError(f"more than {limit:,} bytes of JSON")
    text = raw.decode("utf-8", "surrogatepass")  # no other encoding, in which marks would hide
    marks = raw.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _OTHERS)
    marks = re.sub(rb'"[^"]*"', b"", marks)  # brackets in strings do not nest
    if marks.count(b"[") + marks.count(b"{") > JSON_PARTS:
        raise ValueError(f"more than {JSON_PARTS:,} lists and mappings")
    for _ in range(JSON_DEPTH):  # each pass removes the innermost level
        if not marks:
            break
        marks = marks.replace(b"[]", b"").replace(b"{}", b"")
    if b"[" in marks or b"{" in marks:
        raise ValueError(f"not closed, or nested more than {JSON_DEPTH} deep")
    if not strict:
        return json.loads(text)
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_each_once)


def read_json(path: Path, *, limit: int = JSON_BYTES, strict: bool = False) -> Any:
    """Return the value of a JSON file, of which no more than ``limit`` bytes are read.

    Args:
        path: of the file.
        limit: see ``parse_json``.
        strict: see ``parse_json``.

    Raises:
        OSError: it cannot be read.
        ValueError: as ``parse_json``.
    """
    return parse_json(read_regular(path, limit), limit=limit, strict=strict)


def read_regular(path: Path, limit: int) -> bytes:
    """Return the bytes of a file, of which no more than ``limit + 1`` are read.

    Args:
        path: of the file.
        limit: largest size in bytes that the reader takes; one byte more shows that it is larger.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with open(open_regular(path), "rb", buffering=0) as file:
        text = file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
        while len(text) <= limit and (more := file.read(min(2**20, limit + 1 - len(text)))):
            text += more
    return text


def open_regular(path: str | Path) -> int:
    """Return a descriptor of a file, without ever waiting for the writer of a pipe.

    Raises:
        OSError: it cannot be opened, or is a folder, pipe, socket or device.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN."""
    return _CANONICAL.encode(value)


def digest_of(resolved: dict[str, Any]) -> str:
    """Return a recipe's digest from its resolved tree without seed, paths and workers."""
    text = json.dumps(resolved, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path, tick: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file.

    Args:
        path: of the file.
        tick: called after each block with the number of bytes read so far.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    digest, done = hashlib.sha256(), 0
    with open(open_regular(path), "rb", buffering=0) as file:
        while block := file.read(2**20):
            digest.update(block)
            done += len(block)
            if tick is not None:
                tick(done)
    return digest.hexdigest()


def git_blob(content: bytes) -> str:
    """Return the hash by which git, and so the Hub, knows a small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for number, key in enumerate(keys) if key in keys[:number])
        raise ValueError(f"`{twice}` is given twice")
    return found
