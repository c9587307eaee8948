"""Write the digest of every recipe and variant to tests/digests.json: after a change that is meant.

python tools/pin_digests.py            writes it and prints what changed
"""

from __future__ import annotations

import json
from pathlib import Path

from ltbench import get_recipe, list_recipes
from ltbench.config.files import list_variants

PINNED = Path(__file__).parent.parent / "tests" / "digests.json"


def digests() -> dict[str, str]:
    """Return the digest of every recipe, and of each of its variants and ratios."""
    names = [
        f"{name}_{variant}" if variant else name
        for name in list_recipes()
        for variant in ("", *list_variants(name))
    ]
    return {name: get_recipe(name).digest for name in names}


def main() -> None:
    """Write the file."""
    before = json.loads(PINNED.read_text(encoding="utf-8")) if PINNED.is_file() else {}
    now = digests()
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            print(f"{name}: {before.get(name, 'new')} -> {now.get(name, 'gone')}")
    PINNED.write_text(json.dumps(now, indent=0, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
