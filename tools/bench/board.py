"""CPU time of the leaderboard's overview, table and page with many records.

Usage:
  python tools/bench/board.py [records=10000] [seeds=5]
"""

from __future__ import annotations

import hashlib
import itertools
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ltbench.config.files import get_recipe, list_recipes
from ltbench.config.resources import leaderboard_dir
from ltbench.evaluation.metrics import BINS, Metrics
from ltbench.records.claims import official_counts
from ltbench.records.making import changes
from ltbench.records.parts import (
    CheckpointFacts,
    CodeFacts,
    DatasetFacts,
    ExecutionFacts,
    RecipeFacts,
)
from ltbench.records.record import Record
from ltbench.records.store import record_path

RATES = tuple(round(0.01 * k, 2) for k in range(1, 100))
COMMANDS = {
    "overview": (),
    "one data set": ("dataset=cifar100", "ratio=100"),
    "whole table": ("all=true",),
    "page": ("build", "out=page.html"),
}
CHILD = """
import sys
from pathlib import Path
from ltbench.config import resources
real, folder = resources._top_level, Path(sys.argv[1])
resources._top_level = lambda name: folder if name == "leaderboard" else real(name)
from ltbench.cli import main
sys.exit(main(["leaderboard", *sys.argv[2:]]))
"""


def generated(count: int, seeds: int) -> Iterator[Record]:
    """Yield sealed records of CIFAR recipes with rates of their own, of several seeds each.

    Args:
        count: how many records.
        seeds: records of one recipe and rate.
    """
    names = [*list_recipes("*_cifar10"), *list_recipes("*_cifar100")]
    rows = ((name, rate) for rate in RATES for name in names)
    for number, (name, rate) in enumerate(itertools.islice(rows, -(-count // seeds))):
        recipe = get_recipe(name, f"stages.0.optim.lr={rate}")
        facts = RecipeFacts(
            name=name,
            digest=recipe.digest,
            resolved=json.loads(json.dumps(recipe.tree(digest_only=True))),
            overrides=tuple(changes(recipe)[0]),
        )
        batches = tuple(stage.batch_size for stage in recipe.stages)
        epochs = sum(stage.epochs or 0 for stage in recipe.stages)
        for seed in range(min(seeds, count - number * seeds)):
            yield _record(facts, number, seed, batches=batches, epoch=epochs)


def _record(recipe: RecipeFacts, number: int, seed: int, *, batches: Any, epoch: int) -> Record:
    """Return a record whose recalls are drawn at random."""
    data = recipe.resolved["data"]
    train, test = official_counts(data["name"], data)
    if train is None or test is None:
        raise SystemExit(f"no official counts of {data['name']}")
    draw = np.random.default_rng([number, seed])
    correct = draw.binomial(test, np.linspace(0.8, 0.3, len(test)) + draw.uniform(-0.1, 0.1))
    hits = int(correct.sum())
    bins = [(0, 0.0, 0)] * BINS
    bins[7] = (sum(test), float(sum(test)) * (0.5 + 1e-6 * draw.uniform(-1, 1)), hits)
    identity = hashlib.sha256(f"{number} {seed}".encode()).hexdigest()
    return Record(
        recipe=recipe,
        dataset=DatasetFacts(
            name=data["name"],
            train_sha256=hashlib.sha256(f"train {data}".encode()).hexdigest(),
            test_sha256=hashlib.sha256(f"test {data['name']}".encode()).hexdigest(),
        ),
        code=CodeFacts(version="0.1.0"),
        seed=seed,
        epoch=epoch,
        execution=ExecutionFacts(
            device="cuda",
            cpu="a processor",
            gpu="a GPU",
            ranks=(1,),
            per_rank_batch=batches,
            precision=recipe.resolved["run"]["precision"],
            deterministic=False,
            libraries={"torch": "2.8.0"},
            wall_seconds=round(float(draw.uniform(600, 6000)), 1),
            peak_memory_bytes=2**30,
        ),
        metrics=Metrics.from_counts(correct.tolist(), test, bins, train),
        checkpoint=CheckpointFacts(file="model.safetensors", sha256=identity, bytes=2**20),
        date="2026-01-01",
    ).sealed()


def board_of(records: Iterator[Record], folder: Path) -> Path:
    """Copy the leaderboard to a folder, with other records."""
    shutil.copytree(
        leaderboard_dir(), folder, ignore=shutil.ignore_patterns("records", "models", "zoo.json")
    )
    for record in records:
        path = folder / "records" / record_path(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        record.save(path)
    return folder


def measure(folder: Path) -> None:
    """Print user and system time of each command on a leaderboard's folder."""
    for name, words in COMMANDS.items():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder), *words],
            cwd=folder.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(done.stderr)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        lines = done.stdout.count("\n")
        print(f"{name:<14}{used:7.1f} s of CPU, {lines} lines, {len(done.stderr)} on stderr")


def main(words: list[str]) -> None:
    """Make the records, then measure."""
    given = dict(word.split("=", 1) for word in words)
    with tempfile.TemporaryDirectory() as place:
        records = generated(int(given.get("records", 10000)), int(given.get("seeds", 5)))
        folder = board_of(records, Path(given.get("out", f"{place}/leaderboard")))
        measure(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
