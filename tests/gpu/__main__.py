"""Count waits of the host and kernels of a training step on a pretended GPU; print a table.

Usage:
  python -m tests.gpu                                         # all methods, toy network
  python -m tests.gpu --methods ce,mixup --updates plain,sam,fast --backbone resnet32_cifar
  python -m tests.gpu --methods ce --updates fast --lines 20  # where kernels and waits come from
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from tests.gpu import runtime

LOADED = "PRETENDED_CUDA"
ROOT = Path(__file__).parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Count what the command line names, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", default="", help="separated by commas; all by default")
    parser.add_argument("--updates", default="plain,sam,fast,exact,certified")
    parser.add_argument("--backbone", default="toy")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--lines", type=int, default=0, help="number of lines with most kernels")
    parser.add_argument("--graphs", action="store_true", help="capture the steps, count a replay")
    parser.add_argument("--json", action="store_true", help="one JSON object a case")
    given = parser.parse_args(argv)
    if LOADED not in os.environ:
        if reason := runtime.missing():
            print(f"python -m tests.gpu {reason}", file=sys.stderr)
            return 2
        words = [sys.executable, "-m", "tests.gpu", *(sys.argv[1:] if argv is None else argv)]
        paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        path = os.pathsep.join(p for p in paths if p)
        os.execve(sys.executable, words, runtime.environment() | {LOADED: "1", "PYTHONPATH": path})
    warnings.filterwarnings("ignore")
    import toys

    from ltbench.errors import UserError
    from tests.gpu.steps import Case, seen

    for method in given.methods.split(",") if given.methods else [*toys.STAGE1, *toys.STAGE2]:
        for update in given.updates.split(","):
            case = Case(
                method,
                update,
                given.backbone,
                given.batch,
                precision=given.precision,
                graphs=given.graphs,
            )
            try:
                found = seen(case)
            except UserError as error:
                if given.json:
                    print(json.dumps({"method": method, "update": update, "refused": str(error)}))
                else:
                    print(f"{method:18} {update:10} refused: {str(error)[:60]}")
                continue
            waits = [[n, *where] for where, n in found.waits.most_common()]
            errors = [[n, *where] for where, n in found.errors.most_common()]
            if given.json:
                facts = {"kernels": found.kernels, "waits": waits, "errors": errors}
                facts |= {"captured": found.captured, "uncaptured": found.uncaptured}
                print(json.dumps({"method": method, "update": update, **facts}), flush=True)
                continue
            phases = " ".join(f"{name} {n}" for name, n in sorted(found.phases.items()))
            total = found.waits.total()
            print(f"{method:18} {update:10} waits {total:3} kernels {found.kernels:5}  {phases}")
            for line in [*found.captured, found.uncaptured] if given.graphs else ():
                print(f"    {line}") if line else None
            for n, what, where in [*waits, *errors]:
                print(f"    {n} x {what}: {where}")
            for line, n in found.lines.most_common(given.lines):
                print(f"    {n:5} kernels  {line}")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
