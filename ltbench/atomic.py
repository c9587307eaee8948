from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ltbench.errors import UserError


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it: it is never seen half-written.

    Raises:
        UserError: it could not be written; a file that was there before is untouched.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(
            f"could not write {path}: {error.strerror}; make room or pass another folder"
        ) from error
