"""The board in a terminal: an overview that fits a screen, tables that break no word."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from ltbench.cli.leaderboard import leaderboard as commands
from ltbench.leaderboard.details import run_details
from ltbench.leaderboard.layout import Column, fitted, line_up, measure, wrap
from ltbench.leaderboard.merged import merged
from ltbench.leaderboard.overview import Overview, overview
from ltbench.leaderboard.settings import SETTINGS
from ltbench.leaderboard.tables import board_rows, select_rows
from ltbench.leaderboard.text import Text, short_sources
from ltbench.records.record import Record
from ltbench.records.store import load_records
from ltbench.records.validation import CandidateFacts, SelectionFacts
from tests.leaderboard import boards
from tests.records.made import made

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        records = boards.confirmed(boards.some_of_everything(), patch)
        plain = [r for r in records if r.recipe.name != "strange"]
        yield boards.write(tmp_path_factory.mktemp("board"), plain)


def printed(thing, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(thing, soft_wrap=True)
    return out.getvalue().splitlines()


def test_the_overview_fits_a_screen_and_ours_come_first(folder):
    rows = board_rows(folder)
    lines = printed(Overview(rows), 80)
    assert len(lines) <= 23
    assert max(map(measure, lines)) <= 80
    places = [line.split("  ")[0] for line in lines if "-LT" in line and "ltbench" not in line]
    assert places[:2] == ["CIFAR-10-LT 100", "CIFAR-100-LT 100"]  # those with runs of ours
    assert len(places) == len(set(places))
    ours = next(line for line in lines if line.startswith("CIFAR-10-LT 100"))
    assert "78.0±0.3" in ours  # MiSLAS + PLOT, in full
    assert "claimed n=3" in ours
    assert "MiSLAS" in ours  # the best printed number of one network, crop and flip
    assert not [line for line in lines if "GLMC" in line]  # a network 16 times as large
    assert any("dataset=cifar10 ratio=100" in line for line in lines)
    second_hand = [line for line in lines if "LIFT" in line or "wizwand" in line]
    assert second_hand == []


def test_a_shortened_run_is_marked_in_the_overview(folder):
    short = [r for r in board_rows(folder) if r.get("records") and r["records"][0].shortened]
    text = "\n".join(line.text for line in overview(short, 80))
    assert "claimed n=1*" in text
    assert "* shortened training" in text


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_no_word_is_cut_or_broken(folder, width):
    rows = merged(select_rows(dataset="cifar*", ratio=100, folder=folder))
    lines = printed(Text(rows), width)
    assert max(map(measure, lines)) <= width
    whole = {word for line in printed(Text(rows, limited=False), 80) for word in line.split()}
    networks = {f"{w}," for w in whole} | {"unless", "another", "is", "named", "1,"}
    words = {word for line in lines for word in line.split() if set(word) != {"─"}}
    numbers = {word for word in words if word.strip("≈").replace(".", "").isdigit()}
    shown = {word.rstrip(",") for word in words - numbers}
    assert shown <= {word.rstrip(",") for word in whole | networks}, shown - whole
    joined = " ".join(line.strip() for line in lines)
    for name in ("plain", "strong", "pretrained", "unknown"):
        heading = SETTINGS[name]
        assert joined.count(f"CIFAR-100-LT, ratio 100, {heading}, as published") == 1, heading


def test_wider_terminals_show_more_columns(folder):
    rows = merged(select_rows(dataset="cifar100", ratio=100, folder=folder))
    heads = {
        w: next(x for x in printed(Text(rows), w) if x.startswith("method")) for w in (80, 120)
    }
    for name in ("overall", "many", "medium", "few", "epochs", "source"):
        assert name in heads[80]
    for name in ("augmentation", "selection"):
        assert name in heads[120]
        assert name not in heads[80]
    wide = printed(Text(rows, limited=False), 80)
    assert sum("cRT+Mixup + PLOT" in line for line in wide) == 1
    assert max(map(len, wide)) > 120


def test_duplicates_are_one_row_with_all_sources(folder):
    rows = select_rows(dataset="cifar10", ratio=100, method="gcl", folder=folder)
    twice = [row for row in rows if row["overall"] == 82.85]
    assert len(twice) == 3
    (one,) = [row for row in merged(rows) if row["overall"] == 82.85]
    assert one["sources"] == [row["source"] for row in twice]
    assert short_sources(one["sources"]) == "PLOT Table 1, 2, app. 4"
    assert short_sources(["PLOT appendix Table 3"]) == "PLOT app. Table 3"


def test_names_are_those_of_the_catalogue_and_the_printed_ones_are_said(folder):
    (row,) = select_rows(dataset="cifar100", ratio=100, method="cRT", folder=folder)
    assert (row["method"], row["printed"], row["overall"]) == ("cRT", "Decouple", 43.3)
    assert row["note"] == "printed as Decouple"
    assert select_rows(dataset="cifar100", ratio=100, method="decouple", folder=folder) == [row]


def test_at_most_so_many_epochs(folder):
    rows = select_rows(dataset="cifar100", ratio=100, max_epochs=200, folder=folder)
    assert {"ProCo", "GLMC (paper)", "CE"} <= {row["method"] for row in rows}
    assert not {"ProCo (400 epochs)", "DeiT-LT", "PaCo"} & {row["method"] for row in rows}


def test_the_commands(monkeypatch):
    def said(*words: str) -> list[str]:
        done = CliRunner().invoke(commands, list(words), catch_exceptions=False)
        assert done.exit_code == 0
        return done.output.splitlines()

    assert len(said()) <= 23
    everything = said("all=true")
    assert len(everything) > 400
    assert not [line for line in everything if line.startswith("[1]")]
    noted = said("dataset=places", "notes=true")
    assert any(line.startswith("[1] Printed as 38.5") for line in noted)
    assert len({line for line in said("dataset=places") if "MiSLAS + PLOT" in line}) == 1


def test_layout():
    columns = [Column("a", "a", least=4), Column("n", "n")]
    rows = [{"a": "some words", "n": "12.5"}, {"a": "unbreakable", "n": "7"}]
    assert fitted(columns, rows, None) == [11, 4]
    assert fitted(columns, rows, 16) == [11, 4]
    assert fitted(columns, rows, 15) is None
    assert line_up(columns, [6, 4], rows[0]) == ["some   12.5", " words"]
    assert wrap("a b", 1) == ["a", "b"]
    assert wrap("x" * 5, 3) == ["xxx", "xx"]  # no other way
    assert measure("漢") == 2


def test_generated_records_are_sound(tmp_path):
    place = ROOT / "tools" / "bench" / "board.py"
    spec = importlib.util.spec_from_file_location("bench_board", place)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    records = list(tool.generated(5, 2))
    assert [record.seed for record in records] == [0, 1, 0, 1, 0]
    for number, record in enumerate(records):
        record.save(tmp_path / f"{number}.json")
        assert Record.load(tmp_path / f"{number}.json") == record
    assert load_records(tmp_path)[1] == []
    ours = [row for row in board_rows(tmp_path, checked=True) if row["origin"] == "reproduced"]
    assert sorted(row["n"] for row in ours) == [1, 2, 2]


def test_a_row_says_that_its_values_were_chosen(tmp_path):
    facts = SelectionFacts(
        metric="balanced",
        search="grid",
        split_sha256="c" * 64,
        val_images=39,
        seeds=(0,),
        candidates=tuple(
            CandidateFacts(values={"lr": lr}, digest="d" * 16, score=s, by_seed=(s,))
            for lr, s in (("0.1", 0.4), ("0.2", 0.5))
        ),
        chosen=1,
        tied=1,
    )
    record = made("lab", 0, [50, 40, 30]).model_copy(update={"selected": facts}).sealed()
    boards.write(tmp_path, [record])
    (row,) = (row for row in board_rows(tmp_path) if row.get("records"))
    choice = "best of 2 on 39 validation images (balanced)"
    assert f"values chosen: {choice}" in row["note"]
    assert ["values chosen", choice] in run_details(row["records"], {})["hardware"]
