"""Commit the small model of a run with the leaderboard, so that it loads without a network.

python tools/embed_model.py RUN [RUN ...] [licence=mit]

Writes leaderboard/models/<recipe>-seed<n> (float16 weights, evaluated anew), the record of those
weights under leaderboard/records, and the entry in leaderboard/zoo.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ltbench.config.resources import leaderboard_dir
from ltbench.errors import UserError
from ltbench.files import write_atomic
from ltbench.hub.export import export
from ltbench.hub.zoo import INDEX, Entry, Index, read_index
from ltbench.leaderboard.submit import submit
from ltbench.records.record import Record

LIMIT = 10 * 2**20  # bytes of all committed weights together


def embed(run: Path, licence: str) -> Path:
    """Embed the model of one run and return its folder.

    Raises:
        UserError: the run is not finished, or there is no room left for its weights.
    """
    about = Record.load(run / "record.json")
    place = f"models/{about.recipe.name}-seed{about.seed}"
    folder = export(run, leaderboard_dir() / place, half=True, licence=licence)
    done = submit(folder)
    weights = done.record.checkpoint
    if weights is None:
        raise UserError(f"{run} has no weights")
    models = read_index()
    models.setdefault(about.recipe.name, {})[about.seed] = Entry(
        sha256=weights.sha256, bytes=weights.bytes, embedded=place
    )
    used = sum(e.bytes for seeds in models.values() for e in seeds.values() if e.embedded)
    if used > LIMIT:
        raise UserError(f"committed weights would take {used:,} bytes, the limit is {LIMIT:,}")
    index = Index(schema_version=1, models=models).model_dump(mode="json")
    write_atomic(leaderboard_dir() / INDEX, (json.dumps(index, indent=1) + "\n").encode())
    return folder


def main(words: list[str]) -> None:
    """Embed the runs that are named."""
    licence = next((w.partition("=")[2] for w in words if w.startswith("licence=")), "mit")
    for run in (w for w in words if "=" not in w):
        print(embed(Path(run), licence))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
