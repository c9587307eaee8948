"""Write the JSON schema of a run's record to leaderboard/schema.json."""

from __future__ import annotations

import json

from ltbench.config.resources import leaderboard_dir
from ltbench.files import write_atomic
from ltbench.records.record import Record


def schema() -> str:
    """Return the schema as the text of the file."""
    return json.dumps(Record.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    write_atomic(leaderboard_dir() / "schema.json", schema().encode())
