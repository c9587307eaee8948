"""The section "What was found" of leaderboard/README.md; `python tools/docs.py` writes it."""

from __future__ import annotations

from pathlib import Path

from marked_section import replaced

from ltbench.leaderboard.findings import find
from ltbench.leaderboard.findings_text import section

PAGE = Path(__file__).parent.parent / "leaderboard" / "README.md"
BEGIN, END = "<!-- findings: tools/findings.py -->", "<!-- end of findings -->"


def updated(text: str, folder: Path | None = None) -> str:
    """Return the page with its section as it should be.

    Args:
        text: the page.
        folder: where records lie, by default the committed ones.

    Raises:
        SystemExit: the marks are missing.
    """
    return replaced(text, BEGIN, END, section(find(folder)))
