"""Check ltbench on a machine with one GPU, in at most 8 minutes: one table, and JSON.

Needs no installation of ltbench and no network, only its packages: PyTorch from 2.8 on and what
pyproject.toml lists for training.

Usage:
  python tools/gpu_check.py                          # all sections; JSON in $OUT, or out=FOLDER
  python tools/gpu_check.py sections=numerics,resume
  python tools/gpu_check.py device=cpu small=true    # what makes sense without a GPU
  python tools/gpu_check.py recipes=ce_cifar10,ce_plot_cifar10 seeds=0,1,2 data.root=DIR_OR_ZIP
  python tools/gpu_check.py pack=cifar10lt_sheets.zip out=cifar10_if100.zip ratio=100

Records and weights of a recipe are left as NAME.tar; further words are those of `ltbench run`.
`pack` writes the training images of one ratio of CIFAR-10-LT (and of higher ones) and the test set
to a zip, of at most 40 MB from ratio 100 on, which `data.root` takes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 470  # seconds of all sections
SECTIONS = {  # module and function, and seconds at most
    "numerics": ("numerics:numerics", 80),
    "waits": ("numerics:waits", 50),
    "steps": ("speed:steps", 75),
    "throughput": ("speed:throughput", 60),
    "recipe": ("runs:recipe", 45),
    "resume": ("runs:resume", 45),
    "compiled": ("speed:compiled", 90),
}
START = 20  # seconds that a section may take beyond its time, to import and to finish a case
KNOWN = ("sections", "device", "small", "out", "recipes", "seeds", "pack", "ratio", "rows")
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the words ask for; return 0, 1 if something is wrong, or 2 if it cannot run."""
    given, rest = _words(sys.argv[1:] if argv is None else argv)
    for path in (ROOT / "tests", ROOT / "tools", ROOT):
        if str(path) not in sys.path:
            sys.path.insert(0, str(path))
    out = Path(given.get("out") or os.environ.get("OUT") or "gpu_check")
    try:
        import torch

        import ltbench.train.run  # noqa: F401
    except ModuleNotFoundError as error:
        return _refuse(f"the package `{error.name}` is missing; install it, e.g. with pip")
    if "pack" in given:
        from gpu_sections.packed import pack

        size = pack(Path(given["pack"]), out, int(given.get("ratio", 100)))
        print(f"{out}: {size / 1e6:.1f} MB")
        return 0
    device = given.get("device", "cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        return _refuse("no GPU found; device=cpu small=true runs what makes sense without one")
    small = given.get("small", "false") == "true"
    if "rows" in given:
        _section(given["sections"], device, small, Path(given["rows"]))
        return 0
    names = given["sections"].split(",") if "sections" in given else list(SECTIONS)
    if "recipes" in given and "sections" not in given:
        names = []
    if unknown := [name for name in names if name not in SECTIONS]:
        return _refuse(f"no section `{unknown[0]}`; there are {', '.join(SECTIONS)}")
    if rest and "recipes" not in given:
        return _refuse(f"`{rest[0]}` is for recipes=NAME,...; own words: {', '.join(KNOWN[:-1])}")
    facts = _machine(torch.device(device))
    _print("machine", facts, None)
    report: Row = {"machine": facts, "sections": {}}
    begin = time.monotonic()
    for name in names:
        left = LIMIT - (time.monotonic() - begin)
        rows = report["sections"][name] = _run(name, device, small, left)
        _show(name, rows)
        _save(out, report)
    if "recipes" in given:
        from gpu_sections.recipes import train

        rows = train(given["recipes"], given.get("seeds", "0"), rest, device, out)
        report["sections"]["recipes"] = rows
        _show("recipes", rows)
        _save(out, report)
    every = [row for rows in report["sections"].values() for row in rows]
    bad = sum(row["ok"] is False for row in every)
    good = sum(row["ok"] is True for row in every)
    print(f"{good} good, {bad} wrong, {len(every) - good - bad} not judged; {out}/gpu_check.json")
    return int(bad > 0)


def _words(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return our own words and those for `ltbench run`; ``--key value`` is ``key=value``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for key in KNOWN:
        parser.add_argument(f"--{key}", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help="key=value, see above")
    parsed = vars(parser.parse_intermixed_args(list(argv)))
    words = [word.partition("=") for word in parsed.pop("words")]
    given = {key: value for key, value in parsed.items() if value is not None}
    given |= {key: value for key, _, value in words if key in KNOWN}
    return given, [f"{key}={value}" for key, _, value in words if key not in KNOWN]


def _refuse(reason: str) -> int:
    print(f"gpu_check: {reason}", file=sys.stderr)
    return 2


def _run(name: str, device: str, small: bool, left: float) -> list[Row]:
    """Run a section in a process of its own, which may crash or hang, and return its rows."""
    seconds = min(SECTIONS[name][1] + START, left)
    if seconds < START:
        return [{"what": f"section {name}", "ok": None, "left out": "no time is left"}]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        words = [f"sections={name}", f"device={device}", f"rows={file}", f"small={small}".lower()]
        command = [sys.executable, str(Path(__file__).resolve()), *words]
        problem, log = "", Path(folder) / "log"
        try:
            with log.open("w") as output:  # not a pipe: it may be left to processes that go on
                done = subprocess.run(command, timeout=seconds, stdout=output, stderr=output)
            if done.returncode:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                problem = f"ended with code {done.returncode}: {''.join(last)}"
        except subprocess.TimeoutExpired:
            problem = f"did not end within {seconds:.0f} s"
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
    rows: list[Row] = [json.loads(line) for line in text.splitlines()]
    if problem:
        rows.append({"what": f"section {name}", "ok": False, "error": problem})
    print(f"-- {name}: {time.monotonic() - start:.0f} s", flush=True)
    return rows


def _section(name: str, device: str, small: bool, file: Path) -> None:
    """Write the rows of a section to a file, each as soon as it is known."""
    import torch
    from gpu_sections.place import Place

    from ltbench.distributed.device import pick_device

    place, seconds = SECTIONS[name]
    module, _, function = place.partition(":")
    with file.open("w", encoding="utf-8") as lines:

        def write(row: Row) -> None:
            lines.write(json.dumps(row) + "\n")
            lines.flush()

        try:
            if device == "cpu":
                torch.set_num_threads(1)
            here = Place(pick_device(device), small, time.monotonic() + seconds)
            found: Iterator[Row] = getattr(
                importlib.import_module(f"gpu_sections.{module}"), function
            )(here)
            for row in found:
                write(row)
            if here.late():
                write({"what": f"section {name}", "ok": None, "left out": "the rest, no time"})
        except Exception as error:
            traceback.print_exc()
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            write({"what": f"section {name}", "ok": False, "error": line, "at": _place(error)})


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if str(ROOT) in f.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


def _machine(device: Any) -> Row:
    import torch

    from ltbench.machine import cores, environment, gpu_name, gpu_numerics

    facts: Row = {"gpu": gpu_name(device), "cores": cores(), **environment()}
    if device.type == "cuda":
        facts |= {
            "memory GB": round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "gpu_numerics": gpu_numerics(device),
        }
    return facts


def _show(name: str, rows: list[Row]) -> None:
    for row in rows:
        values = {key: value for key, value in row.items() if key not in ("what", "ok")}
        _print(row["what"], values, row["ok"])


def _print(what: str, values: Row, ok: bool | None) -> None:
    mark = {True: "good ", False: "WRONG", None: "     "}[ok]
    text = "  ".join(f"{key} {_text(value)}" for key, value in values.items())
    print(textwrap.fill(f"{mark} {what:44} {text}", 150, subsequent_indent=" " * 8), flush=True)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _save(out: Path, report: Row) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
