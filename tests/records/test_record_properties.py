"""Records, changed in any way: as written, sound again, or refused."""

from __future__ import annotations

import contextlib
import functools
import json

import pytest
from hypothesis import strategies as st
from strategies import changed, damaged, json_values, property_of, takes_or_refuses

from ltbench.records.record import Record, validate_record
from ltbench.records.sealing import checksums_of, run_id_of
from ltbench.records.store import records_dir


@functools.cache
def sound():
    return next(p for p in sorted(records_dir().rglob("*.json")) if p.parent != records_dir())


def resealed(content):
    """Give an edited record the hashes of its content, as a forger would."""
    with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError):
        content["checksums"] = checksums_of(content)
        content["run_id"] = run_id_of(content)
    return content


@property_of(st.data())
def test_a_damaged_record_is_refused(data, tmp_path):
    content = sound().read_bytes()
    found = data.draw(damaged(content))
    path = tmp_path / "record.json"
    path.write_bytes(found)
    record, _ = takes_or_refuses(lambda: Record.load(path))
    assert record is None or json.loads(found) == json.loads(content)


@property_of(st.data())
def test_any_edited_record_is_read_or_refused(data, tmp_path):
    tree = data.draw(st.one_of(changed(json.loads(sound().read_bytes())), json_values))
    if isinstance(tree, dict):
        tree = resealed(tree)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(tree))
    record, _ = takes_or_refuses(lambda: Record.load(path))
    problems, _ = takes_or_refuses(lambda: validate_record(json.loads(path.read_text())))
    assert record is None or problems == []


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_a_mistake(number):
    (line,) = validate_record({**json.loads(sound().read_bytes()), "notes": number})
    assert "is not JSON" in line
