"""What unfolds below a row of the page, as plain data that its script shows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ltbench.data.shots import GROUPS, shot_groups
from ltbench.leaderboard import figures, reproduce
from ltbench.leaderboard.settings import SETTINGS
from ltbench.records.aggregate import Row, percentages
from ltbench.records.claims import initial_weights
from ltbench.records.literature import FACTS
from ltbench.records.record import Record

if TYPE_CHECKING:
    from ltbench.hub.zoo import Entry

ORIGINS = {
    "printed": "as printed",
    "code": "from the authors' code",
    "record": "from the record",
    "unknown": "not stated",
}
MOST_CLASSES = 200  # whose recalls still make a picture
PLOT_PAPER = "https://iclr.cc/virtual/2024/poster/18344"
Zoo = Mapping[str, Mapping[int, "Entry"]]


def details(
    row: Row, paper: dict[str, str] | None, recipes: Sequence[str], zoo: Zoo
) -> dict[str, Any]:
    """Return the details of a row.

    Args:
        row: of ``board_rows``, merged.
        paper: of its method: ``text`` and ``link``.
        recipes: recipes of the method on this data, for a published row.
        zoo: index of the trained models.
    """
    if row.get("records"):
        found = run_details(row["records"], zoo)
        more: dict[str, Any] = {"track": row["track"], "backbone": row["backbone"]}
    else:
        notes = [m for m in f"{row['footnotes']},{row.get('table_marks', '')}".split(",") if m]
        found = {"sources": [source_link(s) for s in row.get("sources", [row["source"]])]}
        more = {
            "facts": [[fact, row[fact], ORIGINS[row[f"{fact}_from"]]] for fact in FACTS],
            "commands": [f"ltbench run recipe={name} data.root=DIR" for name in recipes],
            "note": row["note"],
            "notes": list(dict.fromkeys(notes)),
        }
    more["setting"] = setting_text(row)
    return {**found, **more, **({"paper": paper} if paper else {})}


def setting_text(row: Mapping[str, Any]) -> str:
    """Return the setting of a row and what decided it, as one line."""
    because = f" ({row['because']})" if row["because"] else ""
    return f"{SETTINGS[row['setting']]}{because}"


def run_details(seeds: Sequence[Record], zoo: Zoo) -> dict[str, Any]:
    """Return the details of a row of ours.

    Args:
        seeds: its records.
        zoo: index of the trained models.
    """
    first = seeds[-1]
    execution = first.execution
    changed = reproduce.changed(first)
    hours = sum(record.execution.wall_seconds for record in seeds) / len(seeds) / 3600
    memory = size_text(execution.peak_memory_bytes)
    precision = f"{execution.precision}{', deterministic' if execution.deterministic else ''}"
    hardware = dict.fromkeys(_hardware(record) for record in seeds)
    return {
        "command": reproduce.command(seeds, changed),
        "recipe": first.recipe.name,
        "digest": first.recipe.digest,
        "changed": ", ".join(f"{k}={v}" for k, v in changed.items()),
        "resolved": first.recipe.resolved,
        "start": initial_weights(first.recipe.resolved) or "",
        "code": "; ".join(dict.fromkeys(_code(record) for record in seeds)),
        "hardware": [
            ["device", "; ".join(hardware)],
            ["wall time", f"{figures.duration(hours)} per seed"],
            ["memory", f"{memory} at most"],
            ["precision", precision],
            ["libraries", ", ".join(f"{k} {v}" for k, v in execution.libraries.items())],
            *([["values chosen", first.selected.summary]] if first.selected else []),
        ],
        "data": [first.dataset.train_sha256, first.dataset.test_sha256],
        "classes": _classes(seeds),
        "seeds": [_seed(record, zoo) for record in seeds],
    }


def modified(record: Record) -> int:
    """Return the number of changed options, without the data's and those that follow a budget."""
    keys = reproduce.changed(record).keys() - set(record.shortened)
    follow = (".schedule.", ".epochs") if record.shortened else ()
    return sum(not key.startswith("data.") and not any(f in key for f in follow) for key in keys)


def source_link(source: str) -> dict[str, str]:
    """Return a source and the address of a repository, or of the PLOT paper."""
    from ltbench.records.literature import short_source

    repository = re.match(r"[\w.-]+/[\w.-]+(?= )", source)
    link = f"https://github.com/{repository[0]}" if repository else ""
    if source.startswith("PLOT "):
        link = PLOT_PAPER
    return {"text": source, "short": short_source(source), "link": link}


def size_text(count: int) -> str:
    """Return a number of bytes as a reader would say it."""
    power = min(int(math.log(max(count, 1), 1024)), 3)
    return f"{count / 1024**power:.{1 if power else 0}f} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


def _seed(record: Record, zoo: Zoo) -> dict[str, Any]:
    """Return the line of a seed."""
    weights, check = record.checkpoint, record.verification
    load = _load(record, zoo)
    verified = check and (
        f"{check.date}, ltbench {check.code.version}, {check.device}: {check.differing} "
        "predictions differ"
    )
    return {
        "seed": record.seed,
        "values": ["" if v is None else f"{v:.2f}" for v in percentages(record).values()],
        "status": record.status,
        "weights": weights.sha256 if weights else "",
        "size": size_text(weights.bytes) + ("" if load else ", not published") if weights else "",
        "load": load or "",
        "verified": verified or "",
        "run": record.run_id,
        "date": record.date,
        "by": record.submitted_by or "",
        "notes": record.notes,
    }


def _load(record: Record, zoo: Zoo) -> str | None:
    """Return the code that loads the weights of a record; ``None`` if they were not published."""
    facts, name = record.checkpoint, record.recipe.name
    if facts is None:
        return None
    known = zoo.get(name, {}).get(record.seed)
    if known is not None and known.sha256 == facts.sha256:
        return f'ltbench.load("{name}", seed={record.seed})'
    if facts.repository is None or facts.revision is None:
        return None
    return f'ltbench.load("hf-hub:{facts.repository}@{facts.revision}")'


def _classes(seeds: Sequence[Record]) -> dict[str, list[Any]]:
    """Return count, shot group and mean recall of the classes, largest class first."""
    counts = seeds[0].metrics.class_counts
    if len(counts) > MOST_CLASSES:
        return {}
    groups = shot_groups(counts)
    group_of = {k: group for group in GROUPS for k in groups[group]}
    recalls = [0.0] * len(counts)
    for record in seeds:
        pairs = zip(record.metrics.correct, record.metrics.total, strict=True)
        for k, (correct, total) in enumerate(pairs):
            recalls[k] += correct / max(total, 1)
    order = sorted(range(len(counts)), key=lambda k: -counts[k])
    return {
        "count": [counts[k] for k in order],
        "group": [group_of[k] for k in order],
        "recall": [round(100 * recalls[k] / len(seeds), 1) for k in order],
    }


def _hardware(record: Record) -> str:
    execution = record.execution
    device = execution.gpu or f"{execution.cpu} (CPU)"
    return f"{execution.ranks[-1]} \N{MULTIPLICATION SIGN} {device}"


def _code(record: Record) -> str:
    code = record.code
    commit = f", commit {code.commit[:12]}" if code.commit else ""
    return f"ltbench {code.version}{commit}{' with changes' if code.dirty else ''}"
