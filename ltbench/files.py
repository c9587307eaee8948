"""Files written under a temporary name, then renamed: none is ever seen half-written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ltbench.errors import UserError


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Temporary path to write to; renamed to ``path`` at the end, removed after an error."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        flush(partial)
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file.

    Raises:
        UserError: it could not be written; a file that was there before is untouched.
    """
    try:
        with replaced(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise _unwritten(path, error) from error


def write_json(path: Path, content: Any) -> None:
    """Write a file of JSON; errors as ``write_atomic``."""
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def copied(path: Path, target: Path) -> Path:
    """Copy a file, make the folder it goes to, and return where it is.

    Raises:
        UserError: it could not be written; a file that was there before is untouched.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced(target) as partial:
            shutil.copyfile(path, partial)
    except OSError as error:
        raise _unwritten(target, error) from error
    return target


def flush(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: Exception) -> str:
    """Return an error of the file system or of a file's format in a few words."""
    text = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError) else text


def _unwritten(path: Path, error: OSError) -> UserError:
    return UserError(f"could not write {path}: {error.strerror}; make room or pass another folder")
