from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Invalid user input: its message is printed without a traceback, exit code 2.

    The message states what was expected, what was found and how to fix it, one line per mistake.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean `x`?)"`` for the closest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean `{near[0]}`?)" if near else ""
