"""Paths as users type them."""

from __future__ import annotations

import os
from pathlib import Path

from ltbench.errors import UserError, visible


def expanded(path: str | Path) -> Path:
    """Return a path with ``~/`` at its front as the home folder; ``~`` alone is a name.

    Raises:
        UserError: no file system has such a path.
    """
    text = str(path)
    longest = max(len(os.fsencode(part)) for part in text.split("/"))
    if "\0" in text or longest > 255 or len(os.fsencode(text)) > 4095:
        raise UserError(
            f"expected a path with names of at most 255 bytes, found `{visible(text)}`; shorten it"
        )
    return Path(os.path.expanduser(text)) if text.startswith("~/") else Path(text)  # noqa: PTH111


def cache_base() -> Path:
    """Return the folder of all caches: $LTBENCH_CACHE, or in the user's cache folder."""
    own = os.environ.get("LTBENCH_CACHE")
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(own or f"{users}/ltbench")
