"""The section of a Markdown file that a tool writes, between two marks, and its tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence


def replaced(text: str, begin: str, end: str, content: str) -> str:
    """Return a text with other content between two marks.

    Args:
        text: of the file.
        begin: mark before the section.
        end: mark after it.
        content: of the section.

    Raises:
        SystemExit: a mark is missing.
    """
    before, found, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not found or not last:
        raise SystemExit(f"the file lacks the marks `{begin}` and `{end}`, each on its own line")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return a table in Markdown.

    Args:
        heads: of the columns.
        rows: of cells, escaped.
        right: positions of the columns of numbers.
    """
    rule = ["---:" if i in right else "---" for i in range(len(heads))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *rows])


def cell(text: str) -> str:
    """Return a text as a cell of a table: on one line, bars and what looks like HTML escaped."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    parts[::2] = [re.sub(r"<(?=\w)", r"\\<", part) for part in parts[::2]]  # outside of code
    return "`".join(parts)


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to the first heading of this text on a page."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(headings: Iterable[str]) -> list[str]:
    """Return the anchors that GitHub gives to the headings of a page, in their order."""
    seen: Counter[str] = Counter()
    found = []
    for text in map(anchor, headings):
        found.append(f"{text}-{seen[text]}" if seen[text] else text)
        seen[text] += 1
    return found
