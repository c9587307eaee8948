"""JSON with bounds: size and nesting are checked before anything is parsed."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltbench.digest import JSON_DEPTH, file_sha256, parse_json, read_json
from ltbench.errors import UserError

values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('ab"\\[]{}\n\u00e9', max_size=6),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text('"\\[{', max_size=3), some),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(values, st.booleans())
def test_every_value_comes_back(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only)) == value


@pytest.mark.parametrize(
    "text",
    [
        "[" * (JSON_DEPTH + 1) + "]" * (JSON_DEPTH + 1),
        "[" * 50_000,
        "[" * 50_000 + "]" * 50_000,
        '{"a":' * 50_000,
        '[{"a":' * 100_000 + "1" + "}]" * 100_000,
        '["\\"", ' + "[" * 100_000 + "]" * 100_001,
        "[]," * 5_000_000,
    ],
)
def test_too_much_is_refused_before_it_is_parsed(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json, "loads", lambda *args, **named: pytest.fail("it was parsed"))
    with pytest.raises(ValueError, match=r"nested more than 64|more than 4,000,000|bytes of JSON"):
        parse_json(text)


def test_bounds(tmp_path: Path) -> None:
    assert parse_json("[" * JSON_DEPTH + "]" * JSON_DEPTH)
    assert parse_json(json.dumps("[" * 1000)) == "[" * 1000
    file = tmp_path / "f.json"
    file.write_text("[1, 2]")
    assert read_json(file, limit=6) == [1, 2]
    with pytest.raises(ValueError, match="more than 5 bytes"):
        read_json(file, limit=5)
    for text in ('{"a": 1, "a": 2}', "NaN", "[-Infinity]"):
        parse_json(text)
        with pytest.raises(ValueError, match=r"given twice|no number"):
            parse_json(text, strict=True)
    for raw in (b"\xff", "[]".encode("utf-16"), b""):
        with pytest.raises(ValueError):  # noqa: PT011 (all that callers rely on)
            parse_json(raw)


def test_no_more_of_a_file_is_read_than_its_limit(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**28)  # sparse
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 9 bytes"):
        read_json(tmp_path / "large", limit=9)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (read_json, file_sha256):
        with pytest.raises(OSError, match="not a regular file"):
            read(tmp_path / "pipe")


def _record(path: Path) -> Any:
    from ltbench.records.record import load_content

    return load_content(path)


def _config(path: Path) -> Any:
    from ltbench.hub.folder import read_config

    return read_config(path)


def _manifest(path: Path) -> Any:
    from ltbench.data.shards.format import parse_manifest

    return parse_manifest(path.read_bytes(), str(path))


def _zoo(path: Path) -> Any:
    from ltbench.hub import zoo

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "INDEX", path.name)
        patch.setattr(zoo, "leaderboard_dir", lambda: path.parent)
        return zoo.read_index()


def _description(path: Path) -> Any:
    from ltbench.methods.weights import read_weights

    path.with_suffix(".safetensors").write_bytes(b"")
    return read_weights(path.with_suffix(".safetensors"))


@pytest.mark.parametrize("reader", [_record, _config, _manifest, _zoo, _description])
@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"a":' * 9999 + "1" + "}" * 9999])
def test_deep_files_are_one_line_everywhere(
    reader: Callable[[Path], Any], text: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        reader(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value) or "file.safetensors" in str(error.value)
