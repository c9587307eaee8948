"""Published results are read from a file that anybody may propose changes to."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from ltbench.errors import UserError
from ltbench.records import literature
from ltbench.records.literature import FIELDS, longest_stage, published, second_hand, short_source

GOOD = {
    **dict.fromkeys(FIELDS, ""),
    "dataset": "CIFAR-10-LT",
    "imbalance_ratio": "100",
    "method": "A",
    "metric": "top1",
    "overall": "85.70",
    "epochs": "200+?",
    "epochs_from": "code",
    "source": "B Table 1",
    "augmentation": "crop, flip",
    "augmentation_from": "printed",
    "selection": "unknown",
    "selection_from": "unknown",
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(literature, "leaderboard_dir", lambda: tmp_path)
    return tmp_path / "published.csv"


def text_of(*rows: dict[str, str], columns: tuple[str, ...] = tuple(FIELDS)) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def test_numbers_stay_as_printed(file: Path):
    file.write_text(text_of(GOOD))
    assert published() == [GOOD]
    published()[0]["overall"] = "0"
    assert published()[0]["overall"] == "85.70"
    file.write_text(text_of(GOOD, {**GOOD, "overall": "1.5"}))
    assert len(published()) == 2  # a changed file is read again


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"overall": "nan"}, "line 3: `overall`"),
        ({"overall": "85,7"}, "line 3: `overall`"),
        ({"overall": "-1"}, "line 3: `overall`"),
        ({"overall": "9" * 400}, "line 3: `overall`"),
        ({"many": "x"}, "line 3: `many`"),
        ({"imbalance_ratio": "1e9"}, "line 3: `imbalance_ratio`"),
        ({"imbalance_ratio": ""}, "line 3: a top1 result without"),
        ({"metric": "top5"}, "line 3: `metric`"),
        ({"method": "\x1b[2J"}, "line 3: `method`"),
        ({"method": "x" * 201}, "line 3: `method`"),
        ({"epochs": "many"}, "line 3: `epochs`"),
        ({"epochs": "unknown"}, "line 3: `epochs_from`: expected unknown exactly where"),
        ({"selection": "best"}, "line 3: `selection`"),
        ({"selection": "last"}, "line 3: `selection_from`: expected unknown exactly where"),
        ({"augmentation_from": "hearsay"}, "line 3: `augmentation_from`"),
    ],
)
def test_a_row_of_another_form_is_refused_in_one_line(file: Path, change, reason):
    file.write_text(text_of(GOOD, {**GOOD, **change}))
    with pytest.raises(UserError, match=reason) as caught:
        published()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (text_of(GOOD, columns=tuple(FIELDS)[:-1]).encode(), "line 1: expected the columns"),
        ((text_of(GOOD).rstrip("\n") + ",more\n").encode(), "line 2: "),
        ((text_of(GOOD).rsplit(",", 1)[0] + "\n").encode(), "line 2: `source`"),
        (text_of(GOOD).encode() + b"\xff", "no CSV file in UTF-8"),
        (b"", "line 1: expected the columns"),
    ],
)
def test_a_file_of_another_form_is_refused(file: Path, raw, reason):
    file.write_bytes(raw)
    with pytest.raises(UserError, match=reason):
        published()


def test_a_missing_file_is_named(file: Path):
    with pytest.raises(UserError, match=r"cannot read .*published\.csv"):
        published()


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        ("200", 200),
        ("200+30", 200),
        ("20+30", 30),
        ("591+?", 591),
        ("unknown", None),
        ("7 steps of 200+10", 200),
        ("", None),
    ],
)
def test_the_longest_stage(text, epochs):
    assert longest_stage(text) == epochs


def test_sources():
    assert second_hand("AGGREGATOR wizwand (paper table not seen)")
    assert not second_hand("dvlab-research/MiSLAS README")
    names = {short_source(row["source"]) for row in published(None)}
    assert max(map(len, names)) < 35
    assert "MiSLAS" in names
    assert not any("AGGREGATOR" in name or "(paper" in name for name in names)


def test_what_is_known_of_a_row_says_where_from():
    rows = published()
    known = [row for row in rows if row["epochs"] != "unknown"]
    assert len(known) > 150
    assert {row["epochs_from"] for row in known} == {"printed", "code"}
    named = {row["method"]: row["epochs"] for row in rows if " epochs)" in row["method"]}
    assert named  # e.g. ProCo (200 epochs)
    assert all(f"({epochs} epochs)" in method for method, epochs in named.items())
