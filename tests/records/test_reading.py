"""Quick reading takes the same records as slow reading, and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ltbench.digest import canonical, parse_json
from ltbench.errors import UserError
from ltbench.records.reading import Shared, as_written
from ltbench.records.record import Record, load_content, record_text, validate_record
from ltbench.records.sealing import checksums_of, run_id_of, texts_of
from ltbench.records.store import load_records, record_files

FILES = record_files()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem[:8])
def test_a_written_file_is_read_as_any_other(path: Path, tmp_path: Path):
    raw = path.read_bytes()
    content = parse_json(raw, strict=True)
    assert as_written(raw) == as_written(raw, Shared()) == (content, texts_of(content))
    again = tmp_path / "indented.json"
    again.write_text(json.dumps(content, indent=2))
    assert as_written(again.read_bytes()) is None
    records = [Record.load(path), Record.load(again), Record.model_validate(content)]
    assert records[0] == records[1] == records[2]
    assert [record_text(r.model_dump(mode="json")) for r in records[1:]] == [
        record_text(records[0].model_dump(mode="json"))
    ] * 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"seed": ', '"seed":  '),
        ('"seed": 0,\n', '"seed": 0,\n"seed": 0,\n'),
        ('"seed": 0', '"seed": 00'),
        ('"seed": 0', '"seed": 0.0e0'),
        ('"seed": 0', '"seed": NaN'),
        ('"notes": ""', '"notes": "\\u0041"'),
        ('"notes": ""', '"notes": "\\ud800"'),
        ('"dataset": {', '"dataset": {"name":"x",'),
        ("{\n", "{ \n"),
    ],
)
def test_what_is_not_in_canonical_form_is_read_slowly(old, new):
    text = next(p for p in FILES if b'"seed": 0,' in p.read_bytes()).read_text()
    assert as_written(text.encode()) is not None
    assert old in text
    assert as_written(text.replace(old, new, 1).encode()) is None


def test_a_known_recipe_spares_no_check(tmp_path: Path):
    content = load_content(FILES[0])
    shared = Shared()
    assert shared.recipe(canonical(content["recipe"])) is not None
    for change in (
        lambda recipe: recipe["resolved"]["run"].update(precision="fp64"),
        lambda recipe: recipe.update(digest="0" * 16),
        lambda recipe: recipe["resolved"].update(stages=[{"epochs": -1}]),
        lambda recipe: recipe.update(more=1),
    ):
        edited = json.loads(json.dumps(content))
        change(edited["recipe"])
        edited["checksums"] = checksums_of(edited)
        edited["run_id"] = run_id_of(edited)
        assert validate_record(edited)
        (tmp_path / "a.json").write_bytes(record_text(edited))
        for reading in (None, shared):
            with pytest.raises(UserError, match="recipe"):
                Record.load(tmp_path / "a.json", reading)
    (tmp_path / "a.json").write_bytes(record_text(content))
    again = Record.load(tmp_path / "a.json", shared)
    assert again.recipe == Record.load(FILES[0]).recipe
    assert again.recipe is Record.load(FILES[0], shared).recipe


def test_a_changed_value_is_read_anew():
    """What a caller does with a record's values does not reach the next reading."""
    for change in (
        lambda: load_content(FILES[0])["recipe"]["resolved"].clear(),
        lambda: Record.load(FILES[0]).recipe.resolved.clear(),
        lambda: load_records()[0][FILES[0]].recipe.resolved.clear(),
    ):
        change()
        assert load_content(FILES[0])["recipe"]["resolved"]
        assert Record.load(FILES[0]).recipe.resolved
        assert load_records()[0][FILES[0]].recipe.resolved


def test_files_are_found_in_order_without_hidden_ones(tmp_path: Path):
    for name in ("b/2.json", "b/1.json", "a.json", ".hidden/3.json", "b/.4.json", "b/5.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    (tmp_path / "folder.json").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in record_files(tmp_path)]
    assert found == ["a.json", "b/1.json", "b/2.json"]
    assert len(load_records(tmp_path)[1]) == 3  # each left aside with a line
    assert record_files(tmp_path / "nothing") == []
