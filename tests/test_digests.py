"""No recipe comes to compute something else by accident."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

TOOL = Path(__file__).parent.parent / "tools" / "pin_digests.py"


def test_every_digest_is_the_pinned_one():
    tool = runpy.run_path(str(TOOL))
    pinned = json.loads(tool["PINNED"].read_text(encoding="utf-8"))
    now = tool["digests"]()
    changed = [name for name in pinned.keys() | now.keys() if pinned.get(name) != now.get(name)]
    assert not changed, (
        f"digests changed: {sorted(changed)}; if that is meant, run `python tools/pin_digests.py` "
        "and say in CHANGELOG.md why"
    )
