"""The section of a Markdown file that a tool writes, between two marks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ltbench.files import write_atomic


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


def write_or_check(arguments: list[str], file: Path, updated: Callable[[str], str]) -> int:
    """Write a file with its section as it should be, or check it, and return the exit status.

    Args:
        arguments: nothing to write, ``--check`` to compare.
        file: to be written.
        updated: from the text of the file to the text that it should have.
    """
    if arguments not in ([], ["--check"]):
        print(f"expected --check or nothing, found {' '.join(arguments)}")
        return 2
    text = file.read_text(encoding="utf-8")
    wanted = updated(text)
    if arguments:
        if text != wanted:
            print(f"{file}: the marked section is out of date; run this script without --check")
        return int(text != wanted)
    write_atomic(file, wanted.encode())
    return 0
