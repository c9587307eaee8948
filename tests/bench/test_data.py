"""The measurements of images run and say what they should; their figures are not judged here."""

from __future__ import annotations

import json

import pytest

from ltbench.bench import corpus, data_report, loading, shards, workers
from ltbench.bench.rounds import OURS
from ltbench.cli import main
from ltbench.data.samplers import Instance

GOALS = {"T1", "T2", "T3", "T4", "T5", "T6", "T7"}


def test_every_goal_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_samplers", lambda: {"instance": Instance()})
    rows = [
        *loading.loading(tmp_path, images=4, rounds=1),
        *shards.reading(tmp_path, images=8, small=16, rounds=1),
        *loading.memory(images=32, rounds=1),
        *shards.packing(tmp_path, images=4, small=8, rounds=1),
        *shards.index(tmp_path, rounds=1),
    ]
    assert {row["goal"] for row in rows} == GOALS
    for row in rows:
        measured = [row[k] for k in ("images_per_second", "seconds", "ratio") if row.get(k)]
        assert measured
        assert all(value > 0 for value in measured)
    ours = [row for row in rows if row["pipeline"] == OURS and row["goal"] in ("T1", "T2")]
    assert all(row["ratio"] == 1 for row in ours)
    assert {row["pipeline"] for row in rows if row["goal"] == "T1"} > {OURS}
    assert not list(tmp_path.iterdir())  # nothing is left behind


def test_photographs_have_the_size_of_their_kind():
    for case in corpus.CASES.values():
        made = corpus.photographs(case, 4)
        mean = sum(map(len, made)) / len(made)
        assert abs(mean - case.size) < 0.25 * case.size, case


@pytest.mark.slow
def test_memory_of_a_loader_process(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "SIZES", (50, 120))
    monkeypatch.setattr(workers, "IMAGES", 20)
    first, second = workers.workers(tmp_path, steps=1)
    assert (first["case"], second["case"]) == ("50 images", "120 images")
    assert 1 < first["mib"] < 4000
    assert first["ratio"] == 1


def test_the_command_prints_and_writes(tmp_path, capsys):
    main(["bench", "data", "what=memory", "rounds=1", "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {row["goal"] for row in figures["memory"]} == {"T5"}
    assert "T5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["what=lodaing"], "did you mean `loading`"),
        (["rounds=0"], "whole number from 1"),
        (["how=fast"], "unknown word `how`"),
    ],
)
def test_mistakes_are_one_line(words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", "data", *words])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_verdicts():
    row = {"goal": "T1", "case": "c", "pipeline": "p"}
    assert data_report._values({**row, "ratio": 2.5, "least": 2.0})[-1] == "met"
    assert data_report._values({**row, "ratio": 1.5, "least": 2.0})[-1] == "missed"
    assert data_report._values({**row, "images_per_second": 5.0, "least": 9.0})[-1] == "missed"
    assert data_report._values({**row, "seconds": 0.1, "most": 0.5})[-1] == "met"
    assert data_report._values({**row, "ratio": 0.03, "most": 0.02})[-1] == "missed"
    assert data_report._values({**row, "ratio": 2.5})[-1] == ""
