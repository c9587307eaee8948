"""Write the parts of Markdown pages that are made from the code.

python tools/docs.py            writes them
python tools/docs.py --check    exits with 1 and names the pages that are out of date
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import findings
import key_reference
import method_gallery
import readme_table
import recipe_index

from ltbench.files import write_atomic

ROOT = Path(__file__).parent.parent
PAGES: dict[Path, Callable[[str], str]] = {  # to the text of the page as it should be
    readme_table.README: readme_table.updated,
    findings.PAGE: findings.updated,
    recipe_index.PAGE: recipe_index.updated,
    key_reference.PAGE: key_reference.updated,
    method_gallery.PAGE: method_gallery.updated,
}


def stale() -> dict[Path, str]:
    """Return the pages that are out of date, with the text that they should have."""
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    wanted = {page: PAGES[page](text) for page, text in texts.items()}
    return {page: text for page, text in wanted.items() if text != texts[page]}


def main(arguments: list[str]) -> int:
    """Write or check the pages and return the exit status."""
    if arguments not in ([], ["--check"]):
        print(f"expected --check or nothing, found {' '.join(arguments)}")
        return 2
    found = stale()
    for page, text in found.items():
        if not arguments:
            write_atomic(page, text.encode())
        state = "is out of date: run `python tools/docs.py`" if arguments else "written"
        print(f"{page.relative_to(ROOT)} {state}")
    return int(bool(arguments and found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
