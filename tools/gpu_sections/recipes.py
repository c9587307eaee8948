"""Named recipes trained for several seeds at once; records and weights collected as they end."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from gpu_sections.packed import unpack
from gpu_sections.place import Row
from ltbench.files import write_atomic
from ltbench.machine import cores
from ltbench.records.record import RECORD, WEIGHTS, Record

KEPT = (RECORD, WEIGHTS, "recipe.json", "curves.csv", "metrics.json")
ROOT = Path(__file__).parents[2]


def train(recipes: str, seeds: str, words: Sequence[str], device: str, out: Path) -> list[Row]:
    """Run a grid and return a row for each finished run; ``out`` gets one tar for each recipe.

    Args:
        recipes: names with commas between.
        seeds: numbers with commas between.
        words: further words of `ltbench run`; a zip as ``data.root`` is unpacked first.
        device: cuda, cuda:N or cpu.
        out: folder of the tars.
    """
    count = len(recipes.split(",")) * len(seeds.split(","))
    with tempfile.TemporaryDirectory() as kept:
        work = Path(kept)
        command = [sys.executable, "-m", "ltbench", "run", f"recipe={recipes}", f"seed={seeds}"]
        command += [_unpacked(word, work) for word in words]
        command += [f"run.device={device}", f"out={work / 'runs'}"]
        if count > 1 and not any(word.startswith("jobs=") for word in words):
            command.append(f"jobs={min(count, cores())}")
        print("$ " + shlex.join(command[1:]), flush=True)
        path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
        start = time.monotonic()
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path})
        found: list[Path] = []
        try:
            while process.poll() is None:
                time.sleep(1)
                found = _collected(work / "runs", out, found)
        finally:
            process.kill()
            process.wait()
        found = _collected(work / "runs", out, found)
        rows = [_row(Record.load(folder / RECORD)) for folder in found]
    left = count - len(rows)
    seconds = round(time.monotonic() - start, 1)
    total = {"what": f"{count} runs at once", "ok": not left, "finished": len(rows), "s": seconds}
    return [*rows, total]


def _unpacked(word: str, work: Path) -> str:
    key, _, value = word.partition("=")
    if key == "data.root" and value.endswith(".zip"):
        return f"{key}={unpack(Path(value), work / 'images')}"
    return word


def _collected(runs: Path, out: Path, known: list[Path]) -> list[Path]:
    """Return the folders of finished runs; if there are new ones, write their recipe's tar anew."""
    found = sorted(path.parent for path in runs.rglob(RECORD))
    if found == known:
        return found
    out.mkdir(parents=True, exist_ok=True)
    by_recipe: dict[str, list[tuple[str, Path]]] = {}
    for folder in found:
        record = Record.load(folder / RECORD)
        by_recipe.setdefault(record.recipe.name, []).append((f"seed{record.seed}", folder))
    for name, own in by_recipe.items():
        if all(folder in known for _, folder in own):
            continue
        part = out / f"{name}.tar.part"
        with tarfile.open(part, "w") as tar:
            for seed, folder in own:
                for file in KEPT:
                    if (folder / file).is_file():
                        tar.add(folder / file, f"{name}/{seed}/{file}")
        write_atomic(out / f"{name}.tar", part.read_bytes())
        part.unlink()
    return found


def _row(record: Record) -> Row:
    metrics, execution = record.metrics, record.execution
    return {
        "what": f"{record.recipe.name}, seed {record.seed}",
        "ok": record.complete or None,
        "top1": round(100 * metrics.top1, 2),
        **{shot: _percent(getattr(metrics, shot)) for shot in ("many", "medium", "few")},
        "s": round(execution.wall_seconds, 1),
        "precision": execution.precision,
    }


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 2)
