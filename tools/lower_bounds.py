"""Run the tests in a fresh environment that has the lower bound of every dependency.

python tools/lower_bounds.py                        versions that would be installed
python tools/lower_bounds.py ENV                    builds ENV and runs the suite there
python tools/lower_bounds.py ENV tests/losses ...   runs these tests instead

ENV is a folder for the environment; one that this script made before is used again. About 7 GB
for the CUDA builds of torch; `LTBENCH_PIP_ARGS="--index-url URL"` installs others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
BOUND = re.compile(r"([\w.-]+(?:\[[\w,-]+\])?)\s*(?:>=|==)\s*([\w.]*\w)")
LEFT_OUT = ("ltbench", "ruff", "mypy", "pandas-stubs", "types-PyYAML")  # itself, and checkers


def lower_bounds() -> list[str]:
    """Return ``name==version`` for the bounds of the package and of its tests.

    Raises:
        ValueError: a dependency has no lower bound.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    found = {}
    for wanted in (*project["dependencies"], *(d for part in extras.values() for d in part)):
        name = re.split(r"[\s<>=!~;\[]", wanted)[0]
        if name in LEFT_OUT:
            continue
        bound = BOUND.match(wanted)
        if bound is None:
            raise ValueError(f"pyproject.toml: expected NAME>=VERSION, found {wanted}")
        found[bound[1]] = bound[2]
    return [f"{name}=={version}" for name, version in found.items()]


def build(env: Path) -> Path:
    """Return the interpreter of an environment with the lower bounds and this checkout."""
    python = env / "bin" / "python"
    if not python.exists():
        venv.create(env, with_pip=True)
    more = os.environ.get("LTBENCH_PIP_ARGS", "").split()
    pip = [str(python), "-m", "pip", "install", "--quiet", *more]
    subprocess.run([*pip, *lower_bounds(), "hatchling", "editables"], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], check=True)
    return python


def main() -> int:
    """Build the environment, print its versions, and return the exit status of the tests."""
    if len(sys.argv) == 1:
        print(*lower_bounds(), sep="\n")
        return 0
    python = build(Path(sys.argv[1]))
    subprocess.run([str(python), "-m", "pip", "list", "--format=freeze"], check=True)
    return subprocess.run([str(python), "-m", "pytest", *sys.argv[2:]], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
