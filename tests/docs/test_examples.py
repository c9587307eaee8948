"""The tutorials in `tools/examples`: each runs from an empty folder and leaves what it promises."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import readme_picture
from doc_commands import ROOT, command_lines

FOLDER = ROOT / "tools" / "examples"


def run_script(folder: str, path: str) -> None:
    """Run a script with two seeds and three steps for each training."""
    source = Path(path).read_text(encoding="utf-8")
    source, cut = re.subn(r",\s+out=", ", run__max_steps=3, out=", source)
    assert cut
    source = source.replace("range(3)", "range(2)")
    os.chdir(folder)
    exec(compile(source, path, "exec"), {"__name__": "__main__", "__file__": path})


@pytest.mark.parametrize(
    ("script", "left"),
    [
        ("own_images.py", ("runs/shapes/record.json", "predictions.csv")),
        ("own_method.py", ("runs/ce/seed1/record.json", "runs/tail_margin/seed1/record.json")),
    ],
)
def test_a_script_runs(script, left, tmp_path, fork):
    process = fork(run_script, str(tmp_path), str(FOLDER / script))
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert [file for file in left if not (tmp_path / file).is_file()] == []
    if script == "own_method.py":
        assert "tail_margin, n = 2 (seeds 0, 1)" in out
        recipe = json.loads((tmp_path / "runs/tail_margin/seed0/recipe.json").read_text())
        assert recipe["tree"]["stages"][0]["method"]["plugin"].startswith("tail_margin.py@")
    else:
        assert len(pd.read_csv(tmp_path / "predictions.csv")) == 6


def run_commands(folder: str, lines: list[str]) -> None:
    """Run commands one after the other, trainings for two steps and two seeds."""
    from ltbench.cli import main

    os.chdir(folder)
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] == "run":
            given = {"seed=0,1,2": "seed=0,1", "jobs=2": "run.max_steps=2"}
            words = [given.get(word, word) for word in words]
        main(words)


def test_the_table_and_the_picture_of_a_paper_are_made(tmp_path, fork, monkeypatch, capsys):
    lines = list(command_lines("tools/examples/paper_table.sh"))
    assert [line.split()[1] for line in lines] == ["run", "compare", "show"]
    process = fork(run_commands, str(tmp_path), lines)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    check_table(tmp_path, out, seeds=2)
    monkeypatch.setattr(readme_picture, "FOLDER", tmp_path)
    assert readme_picture.main([str(tmp_path / "runs/table")]) == 0
    light, dark = (
        (tmp_path / f"paper_table_{theme}.svg").read_text() for theme in ("light", "dark")
    )
    assert light.startswith("<?xml")
    assert readme_picture.THEMES["light"][0] in light
    assert readme_picture.THEMES["light"][0] not in dark
    assert readme_picture.main([str(tmp_path / "comparison")]) == 1
    assert "expected two seeds or more of ce, balanced_softmax" in capsys.readouterr().out


def check_table(folder: Path, out: str, seeds: int) -> None:
    rows = pd.read_csv(folder / "runs/table/results.csv")
    assert rows["recipe"].tolist() == ["ce", "balanced_softmax", "balanced_softmax_plot"]
    assert rows["n"].tolist() == [seeds] * 3
    assert r"\begin{tabular}" in (folder / "runs/table/results.tex").read_text()
    assert (folder / "comparison/compare.png").read_bytes().startswith(b"\x89PNG")
    assert f"balanced_softmax_plot, n = {seeds}" in out


# As they stand ----------------------------------------------------------------------------------


def result_of(script: str, folder: Path) -> str:
    """Run a script as a reader would, and return what it prints."""
    scripts = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, script] if script.endswith(".py") else ["bash", script]
    done = subprocess.run(
        [command[0], str(FOLDER / script)],
        cwd=folder,
        env={**os.environ, "PATH": scripts},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_own_images_as_it_stands(tmp_path):
    out = result_of("own_images.py", tmp_path)
    assert float(re.search(r"test, % +([\d.]+)", out)[1]) > 80


@pytest.mark.slow
def test_own_method_as_it_stands(tmp_path):
    out = result_of("own_method.py", tmp_path)
    assert "few: resolved, higher (better) than the baseline" in out


@pytest.mark.slow
def test_paper_table_as_it_stands(tmp_path):
    out = result_of("paper_table.sh", tmp_path)
    check_table(tmp_path, out, seeds=3)
    assert "few: resolved, higher (better) than the baseline" in out


@pytest.mark.slow
def test_many_nodes_as_it_stands(tmp_path):
    assert "processes (2,) images each (32, 32)" in result_of("many_nodes.sh", tmp_path)
    record = json.loads((tmp_path / "runs/one_node/record.json").read_text())
    assert record["execution"]["ranks"] == [1]
