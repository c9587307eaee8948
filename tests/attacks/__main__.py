"""Attack everything, print a table, and end with 1 if anything was silently wrong, or worse.

Usage:
  python -m tests.attacks                    # all rows, half an hour
  python -m tests.attacks --rows shards      # rows whose name has this text
  python -m tests.attacks --share 0.1 --seed 7
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.attacks.engine import TRACEBACK, Count, Row, run_row, table


def all_rows() -> list[Row]:
    """Return the rows of all rooms."""
    from tests.attacks import data_rows, run_rows

    return [*data_rows.ROWS, *run_rows.ROWS]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rows that the command line names, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--rows", default="", help="text in the names of the rows to run")
    parser.add_argument("--skip", default=None, help="text in the names of rows to leave out")
    parser.add_argument("--share", type=float, default=1.0, help="of each row's attacks")
    parser.add_argument("--seed", type=int, default=0, help="of the attacks")
    given = parser.parse_args(argv)
    counts: list[Count] = []
    for row in all_rows():
        if given.rows not in row.name or (given.skip and given.skip in row.name):
            continue
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            tries = max(1, round(row.tries * given.share))
            try:
                counts.append(run_row(row, tries, given.seed, Path(scratch)))
            except RuntimeError as error:
                counts.append(Count(row.name, 1, Counter({TRACEBACK: 1}), [str(error)]))
        found = counts[-1]
        print(f"{time.monotonic() - start:6.1f} s  {row.name}: {dict(found.outcomes)}", flush=True)
        for line in found.examples:
            print(f"         {line}", flush=True)
    print("\n" + table(counts))
    return int(any(count.bad for count in counts))


if __name__ == "__main__":
    sys.exit(main())
