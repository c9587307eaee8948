from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave us: shown as it stands, without a traceback, exit code 2.

    The message says what was required, what was found and what to do, one line per mistake.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean `x`?)"`` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean `{near[0]}`?)" if near else ""
