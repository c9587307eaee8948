"""Parquet tables and data set card derived from the runs of a leaderboard."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ltbench.records.aggregate import percentages
from ltbench.records.claims import choose
from ltbench.records.record import Record, Status, read_content, record_text

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("results", "runs", "per_class", "published")
RUN_COLUMNS = {
    **dict.fromkeys(("run_id", "recipe", "digest", "dataset"), "string"),
    "seed": "int64",
    **dict.fromkeys(("overall", "many", "medium", "few", "ece"), "float64"),
    **dict.fromkeys(("origin", "status", "shortened", "overrides", "date", "code"), "string"),
    **dict.fromkeys(("device", "repository", "revision", "submitted_by", "licence"), "string"),
    "verified_on": "string",
    "wall_seconds": "float64",
}
CLASS_COLUMNS = {
    **dict.fromkeys(("run_id", "recipe", "dataset"), "string"),
    **dict.fromkeys(("seed", "class", "train", "test", "correct"), "int64"),
}


@dataclass(frozen=True)
class Run:
    """A record and the bytes of its file."""

    record: Record
    text: bytes


def weight(run: Run) -> int:
    """Return the rank of a run's status, from paper to withdrawn: each says more than the last."""
    return get_args(Status).index(run.record.status)


def distinct(runs: Iterable[Run]) -> list[Run]:
    """Return the runs that can stand in one table, see ``ltbench.records.claims.choose``."""
    runs = list(runs)
    kept = {id(record) for record in choose([("", run.record) for run in runs])[0]}
    return [run for run in runs if id(run.record) in kept]


def derived(runs: Iterable[Run]) -> dict[str, bytes]:
    """Return the files derived from the runs: one Parquet file per table, and the README."""
    runs = list(runs)
    files = {}
    for name, frame in frames(runs).items():
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False, engine="pyarrow")
        files[f"data/{name}.parquet"] = buffer.getvalue()
    return {**files, "README.md": readme(len(runs)).encode()}


def frames(runs: Iterable[Run]) -> dict[str, pd.DataFrame]:
    """Return the tables by name: rows as printed, runs, results by class, the literature."""
    import pandas as pd

    from ltbench.leaderboard import published, table

    runs = list(runs)
    with tempfile.TemporaryDirectory() as place:
        results = table(folder=write_distinct(runs, Path(place)), checked=True)
    cited = pd.DataFrame(published(None))
    numbers = ["imbalance_ratio", "many", "medium", "few", "overall"]
    cited[numbers] = cited[numbers].apply(pd.to_numeric)
    found = {
        "results": results,
        "runs": pd.DataFrame([_run_row(r.record) for r in runs], columns=list(RUN_COLUMNS)),
        "per_class": pd.DataFrame(
            [row for r in runs for row in _class_rows(r.record)], columns=list(CLASS_COLUMNS)
        ),
        "published": cited,
    }
    found["runs"] = found["runs"].astype(RUN_COLUMNS)
    found["per_class"] = found["per_class"].astype(CLASS_COLUMNS)
    return found


def readme(runs: int) -> str:
    """Return the data set's card, whose configurations the Hub's viewer shows."""
    import yaml

    configs = [
        {"config_name": name, "data_files": f"data/{name}.parquet"}
        | ({"default": True} if name == TABLES[0] else {})
        for name in TABLES
    ]
    head = {
        "pretty_name": "Deep long-tailed recognition: results",
        "tags": ["ltbench", "long-tailed-recognition", "leaderboard"],
        "configs": configs,
    }
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---
# Deep long-tailed recognition: results

`runs/<data set>/<run_id>.json` are the records of {runs:,} runs, each as its run wrote it: recipe,
data, code, hardware and integer counts per class. Everything in `data/` and this page are made
from them by `ltbench leaderboard publish` and must not be edited.

| table | one row is |
|---|---|
| `results` | a recipe, averaged over seeds, or a published number; percent, strict shot groups |
| `runs` | a run |
| `per_class` | a class of a run: training images, test images, correct ones |
| `published` | a number printed in a paper, with its source |

A status is what was checked: `claimed` nothing, `verified` that the published weights, evaluated
again, reproduce the recorded counts. `ltbench leaderboard submit run=PATH repo=...` submits a run,
`ltbench leaderboard verify RUN_ID` checks one.
"""


def write_distinct(runs: Iterable[Run], place: Path) -> Path:
    """Write runs that may stand in one table to a folder, with the status they have here."""
    for run in distinct(runs):
        content = read_content(run.text)
        if content["status"] != run.record.status:
            content.update(status=run.record.status, verification=None)
        (place / f"{run.record.run_id}.json").write_bytes(record_text(content))
    return place


def repeated(runs: Iterable[Run]) -> list[str]:
    """Return a line for each run that is left out of the results for another one."""
    lines = choose([(run.record.run_id, run.record) for run in runs])[1]
    return [f"run {line.removesuffix('left aside')}left out of the results" for line in lines]


def _run_row(record: Record) -> dict[str, object]:
    at, check = record.checkpoint, record.verification
    return {
        "run_id": record.run_id,
        "recipe": record.recipe.name,
        "digest": record.recipe.digest,
        "dataset": record.dataset.name,
        "seed": record.seed,
        **percentages(record),
        "origin": record.origin,
        "status": record.status,
        "shortened": ", ".join(record.shortened),
        "overrides": ", ".join(record.recipe.overrides),
        "date": record.date,
        "code": record.code.commit or record.code.version,
        "device": record.execution.gpu or record.execution.cpu,
        "repository": at.repository if at else None,
        "revision": at.revision if at else None,
        "submitted_by": record.submitted_by,
        "licence": record.licence,
        "verified_on": check.date if check else None,
        "wall_seconds": record.execution.wall_seconds,
    }


def _class_rows(record: Record) -> list[dict[str, object]]:
    m = record.metrics
    return [
        {
            "run_id": record.run_id,
            "recipe": record.recipe.name,
            "dataset": record.dataset.name,
            "seed": record.seed,
            "class": k,
            "train": train,
            "test": test,
            "correct": correct,
        }
        for k, (train, test, correct) in enumerate(
            zip(m.class_counts, m.total, m.correct, strict=True)
        )
    ]
