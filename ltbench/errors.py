from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

MOST = 120  # characters of a value in a message


class UserError(Exception):
    """Invalid user input: its message is printed without a traceback, exit code 2.

    The message states what was expected, what was found and how to fix it, one line per mistake.
    """


class DivergenceError(UserError):
    """Training that ended in an infinite loss or logits, or in ones that are no numbers."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean `x`?)"`` for the closest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean `{near[0]}`?)" if near else ""


def brief(value: Any, most: int = MOST) -> str:
    """Return the ``repr`` of a value for a message, shortened to ``most`` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, nesting without end
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def visible(text: str, most: int | None = MOST) -> str:
    """Return text with control characters escaped, shortened to ``most`` characters."""
    if most is not None and len(text) > most:
        text = f"{text[: most - 1]}…"
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
