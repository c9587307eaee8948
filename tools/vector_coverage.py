"""Run the tests that use test vectors; exit 1 unless they pass and ask for every vector."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Return the exit status."""
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    files = [str(p.relative_to(ROOT)) for p in tests if "vector(" in p.read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "--vectors", *files]
    found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    print(found.stdout, end="")
    counts = re.search(r"^vectors: (\d+)/(\d+)$", found.stdout, re.MULTILINE)
    return int(found.returncode != 0 or counts is None or counts[1] != counts[2])


if __name__ == "__main__":
    sys.exit(main())
