"""Tables and page beside a record that somebody edited and gave its hashes."""

from __future__ import annotations

import contextlib
import json
import warnings

from hypothesis import strategies as st
from strategies import changed, property_of

from ltbench.leaderboard import render, table
from ltbench.records.sealing import checksums_of, run_id_of
from ltbench.records.store import records_dir


def edited(content, tree, path):
    """Write a record with some fields replaced, and with the hashes of what it says then."""
    tree = dict(tree) if isinstance(tree, dict) else {"recipe": tree}
    record = {**content, **{k: v for k, v in tree.items() if k in content}}
    with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError):
        record["checksums"] = checksums_of(record)
        record["run_id"] = run_id_of(record)
    path.write_text(json.dumps(record))


@property_of(st.data(), few=8, many=300)
def test_a_record_of_any_content_does_not_end_the_table(data, tmp_path):
    sound = next((records_dir() / "digits_lt").glob("*.json"))
    content = json.loads(sound.read_bytes())
    (tmp_path / "a.json").write_bytes(sound.read_bytes())
    edited(content, data.draw(changed(content)), tmp_path / "b.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = table(folder=tmp_path, origin="reproduced")
        render(frame)
    assert "Digits-LT" in set(frame["dataset"])
