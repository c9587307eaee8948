"""Averages of records over seeds, as rows of a table."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from ltbench.config import plugins
from ltbench.data.shots import shot_groups
from ltbench.records.parts import MEMORISED
from ltbench.records.record import Record
from ltbench.records.titles import dataset_title, method_title, network_title

VALUES = ("overall", "many", "medium", "few", "ece")
RANKS = (
    "paper",
    "imported",
    "claimed",
    "reproduced",
    "verified",
)  # a row is as good as its weakest seed
ORIGINS = {"paper": "published", "imported": "imported", "reproduced": "reproduced"}  # of rows
UNKNOWN = "unknown"  # what no source says
Row = dict[str, Any]


def percentages(record: Record) -> dict[str, float | None]:
    """Return overall, many, medium, few (strict rule) and ECE of a record in percent."""
    m = record.metrics
    recalls = [c / n if n else None for c, n in zip(m.correct, m.total, strict=True)]
    found: dict[str, float | None] = {"overall": 100 * m.top1}
    for group, classes in _groups(m.class_counts):
        known = [r for r in map(recalls.__getitem__, classes) if r is not None]
        found[group] = 100 * (sum(known) / len(known)) if known else None
    return {**found, "ece": 100 * m.ece}


@functools.lru_cache(maxsize=64)
def _groups(counts: tuple[int, ...]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the classes of each shot group by the strict rule."""
    return tuple((group, tuple(classes)) for group, classes in shot_groups(counts).items())


def seed_group(record: Record) -> tuple[Any, ...]:
    """Return the values that all seeds of one row have in common."""
    data = record.dataset
    content = (data.name, data.train_sha256, data.test_sha256)
    file = () if record.imported is None else (record.imported.sha256,)  # each is a row of its own
    return (record.origin, record.recipe.digest, *content, record.shortened, *file)


def run_key(record: Record) -> tuple[Any, ...]:
    """Return the key of a run: recipe, data, code and seed."""
    code = (record.code.version, record.code.commit, record.code.dirty)
    return (*seed_group(record), code, record.seed)


def seeds_of_rows(records: Iterable[Record]) -> list[list[Record]]:
    """Return the records of each row of a table; withdrawn ones are left out.

    A later run of a seed (by other code) replaces an earlier one unless that one has a better
    status: it is no further sample.
    """
    groups: dict[tuple[Any, ...], dict[int, Record]] = {}
    shown = [record for record in records if record.status != "withdrawn"]
    for record in sorted(shown, key=lambda r: (RANKS.index(r.status), r.date, r.run_id)):
        groups.setdefault(seed_group(record), {})[record.seed] = record
    return [[seeds[k] for k in sorted(seeds)] for seeds in groups.values()]


def average_seeds(records: Iterable[Record]) -> list[Row]:
    """Return one row per group of seeds, see ``seeds_of_rows``."""
    return [_row(seeds) for seeds in seeds_of_rows(records)]


def imbalance_ratio(record: Record) -> float:
    """Return the imbalance ratio in the recipe, else largest over smallest class."""
    asked = record.recipe.resolved.get("data", {}).get("imbalance_ratio")
    if asked is not None:
        return float(asked)
    counts = [n for n in record.metrics.class_counts if n]
    return round(max(counts) / min(counts), 1) if counts else 1.0


def plus_minus(mean: float | None, spread: float | None, missing: str = "-") -> str:
    """Return a mean and its standard deviation, if there is one, as text."""
    if mean is None:
        return missing
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def _row(seeds: Sequence[Record]) -> Row:
    first = seeds[0]
    backbone = first.recipe.resolved.get("backbone", {})
    row: Row = {
        "dataset": dataset_title(first.dataset.name),
        "imbalance_ratio": imbalance_ratio(first),
        "method": method_title(first.recipe.name),
        "backbone": network_title(backbone),
        "n": len(seeds),
        "epochs": _budget(first) if first.imported is None else UNKNOWN,
        "origin": ORIGINS[first.origin],
        "status": min((r.status for r in seeds), key=RANKS.index),
        "source": _source(first),
        "note": _note(first),
        "recipe": first.recipe.name,
        "registered": str(backbone.get("name", "")),
    }
    results = [percentages(record) for record in seeds]
    for name in VALUES:
        values = [v for v in (result[name] for result in results) if v is not None]
        mean = statistics.fmean(values) if values else None
        row[name] = mean
        row[f"{name}_std"] = _deviation(values, mean) if mean is not None else None
    return row


def _deviation(values: Sequence[float], mean: float) -> float | None:
    """Return the standard deviation with n - 1 in the denominator; ``None`` for one value."""
    if len(values) < 2:
        return None
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _budget(record: Record) -> str:
    resolved = record.recipe.resolved
    full = "+".join(str(s["epochs"]) for s in resolved.get("stages", ()) if s.get("epochs"))
    steps = resolved.get("run", {}).get("max_steps")
    return full if steps is None else f"{steps} steps of {full}"


def _source(record: Record) -> str:
    if record.imported is not None:
        return record.imported.source
    return record.citation or f"{record.recipe.name} {record.recipe.digest[:8]}"


def _released(record: Record) -> str:
    """Return what a table says of an imported model, or nothing."""
    facts = record.imported
    if facts is None:
        return ""
    claimed = "" if facts.claimed is None else f", its authors print {facts.claimed:g}"
    chosen = {"yes": ", epoch chosen on the test images", "no": ""}
    trained = facts.training_images
    other = "" if trained is None or trained.gap >= MEMORISED else f", {trained.verdict}"
    unknown = ", choice of the epoch unknown"
    what = "imported" if facts.release is None else f"release {facts.release}"
    return f"{what}{claimed}{chosen.get(facts.chosen_on_test, unknown)}{other}"


def _note(record: Record) -> str:
    follow = (".schedule.", ".epochs") if record.shortened else ()  # they follow a budget
    changed = [
        "backbone" if key.startswith("backbone.") else key  # of which the row shows the rest
        for key in record.recipe.overrides
        if not key.startswith("data.") and key not in record.shortened
        if not any(part in key for part in follow)
    ]
    parts = (
        ("outside code", tuple(map(plugins.title, plugins.marks(record.recipe.resolved)))),
        ("shortened", record.shortened),
        ("modified", tuple(dict.fromkeys(changed))),
    )
    notes = [f"{what} {', '.join(keys)}" for what, keys in parts if keys]
    return "; ".join(filter(None, (_released(record), *notes)))
