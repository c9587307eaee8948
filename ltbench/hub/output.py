"""Files that users name: checked before long work begins, never a part of something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ltbench.config.paths import expanded
from ltbench.errors import UserError, visible


def check_output(
    out: Path, endings: Mapping[str, Callable[[Path], bool]], what: str = "such a file"
) -> Path:
    """Return where to write a file, its folder made.

    Args:
        out: file to write.
        endings: allowed endings, each with a test of whether an existing file may be replaced.
        what: noun for a file that may be replaced.

    Raises:
        UserError: another ending, a folder, a file that must not be replaced, or a place that
            cannot be written.
    """
    path = expanded(out)
    shown = visible(str(path))
    if path.suffix not in endings:
        raise UserError(f"`out`: expected a file ending in {' or '.join(endings)}, found {shown}")
    try:
        if path.is_dir():
            raise UserError(f"`out`: {shown} is a folder; add the name of a file")
        if path.exists() and not endings[path.suffix](path):
            raise UserError(f"`out`: {shown} exists and is not {what}; pass another `out=`")
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {shown}: {error.strerror}; pass another `out=`") from error
    return path
