"""Comparison of methods over seeds: pairing, refusals, what is said, and the files."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import ltbench
from ltbench.cli import app
from ltbench.errors import UserError
from ltbench.records.compare import compare_runs
from ltbench.records.compare_text import sentences, text_lines
from ltbench.records.record import Record
from ltbench.records.runs import Run, find_runs, read_predictions
from tests.records.made import TOTAL, made, predict, saved

BASE = [(90, 60, 30), (91, 61, 30), (90, 62, 31)]
GAIN = [(88, 66, 41), (90, 66, 43), (87, 68, 42)]  # +4, +5, +4 and a third points overall


def arm(name: str, results: list[tuple[int, int, int]], first: int = 0, **more) -> list[Record]:
    return [made(name, seed, right, **more) for seed, right in enumerate(results, start=first)]


def runs(*records: Record) -> list[Run]:
    return [Run(record) for record in records]


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    return saved(tmp_path / "grid", *arm("ce", BASE), *arm("plus", GAIN))


def test_differences_are_paired_by_seed(grid: Path) -> None:
    found = ltbench.compare(grid, "ce")
    (contrast,) = found.contrasts
    overall, many, medium, few, ece = contrast.groups
    assert (found.baseline, contrast.label, contrast.seeds) == ("ce", "plus", (0, 1, 2))
    assert overall.by_seed == pytest.approx((5.0, 17 / 3, 14 / 3))
    assert [many.by_seed, medium.by_seed, few.by_seed] == [
        pytest.approx((-2.0, -1.0, -3.0)),
        pytest.approx((6.0, 5.0, 6.0)),
        pytest.approx((11.0, 13.0, 11.0)),
    ]
    assert (few.baseline, few.mean) == pytest.approx((91 / 3, 42.0))
    assert [d.name for d in contrast.classes] == ["0", "1", "2"]
    assert contrast.classes[2].by_seed == pytest.approx(few.by_seed)
    assert ece.name == "ece"


def test_the_order_of_runs_and_other_seeds_do_not_matter() -> None:
    ce, plus = arm("ce", BASE), arm("plus", GAIN)
    alone = made("plus", 9, (0, 0, 0))
    one = compare_runs(runs(*ce, *plus), "ce")
    other = compare_runs(runs(*reversed(plus), alone, *reversed(ce)), "ce")
    assert one.contrasts == other.contrasts
    assert any("seeds 9 left out" in note or "seed 9 left out" in note for note in other.notes)


def test_swapping_method_and_baseline_flips_the_sign() -> None:
    all_runs = runs(*arm("ce", BASE), *arm("plus", GAIN))
    (one,) = compare_runs(all_runs, "ce").contrasts
    (other,) = compare_runs(all_runs, "plus").contrasts
    for d, flipped in zip(one.groups, other.groups, strict=True):
        assert flipped.by_seed == pytest.approx([-x for x in d.by_seed])
        assert flipped.estimate.p == d.estimate.p
        if d.estimate.low is not None:
            assert flipped.estimate.high == pytest.approx(-d.estimate.low)


def test_what_is_resolved_is_said_in_words() -> None:
    near = [(90, 62, 31), (91, 60, 33), (90, 63, 30)]
    same = arm("same", BASE)
    found = compare_runs(
        runs(*arm("ce", BASE), *arm("plus", GAIN), *arm("near", near), *same), "ce"
    )
    said = {c.label: sentences(c, 3) for c in found.contrasts}
    assert said["plus"][0] == "overall: resolved, higher (better) than the baseline"
    assert "not resolved: " in said["plus"][1]
    assert said["near"][0].startswith("overall: not resolved: +0.56 ± 0.51 at n = 3; about ")
    assert said["near"][0].endswith(" seeds would be needed")
    assert set(said["same"]) == {
        f"{name}: equal with all 3 seeds" for name in ("overall", "many", "medium", "few", "ECE")
    }


def test_p_values_are_corrected_for_the_number_of_methods() -> None:
    ce, plus, other = arm("ce", BASE), arm("plus", GAIN), arm("other", [(1, 2, 3)] * 3)
    alone = compare_runs(runs(*ce, *plus), "ce").contrasts[0].groups[0]
    beside = compare_runs(runs(*ce, *plus, *other), "ce").contrasts[0].groups[0]
    assert alone.p_holm == alone.estimate.p == beside.estimate.p
    assert beside.p_holm is not None
    assert alone.p_holm is not None
    assert alone.p_holm <= beside.p_holm <= 2 * alone.p_holm


def test_one_seed_has_no_interval_without_predictions() -> None:
    found = compare_runs(runs(*arm("ce", BASE[:1]), *arm("plus", GAIN[:1])), "ce")
    lines = text_lines(found)
    assert any("one seed: no interval (+5.00)" in line for line in lines)
    assert any("ltbench eval model=RUN out=RUN/eval" in line for line in lines)
    assert not any(" to " in line for line in lines if line.startswith("overall  "))


@pytest.mark.parametrize(
    "more",
    [{"train": "c"}, {"test": "c"}, {"total": (100, 100, 99)}],
    ids=["train", "test", "total"],
)
def test_other_images_are_refused_with_one_line(more: dict) -> None:
    with pytest.raises(UserError, match=r"plus and ce differ in .*only runs on the same") as caught:
        compare_runs(runs(*arm("ce", BASE), *arm("plus", GAIN, **more)), "ce")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("baseline", "line"),
    [
        ("plsu", "expected the name of a recipe, or runs, found `plsu` .did you mean `plus`"),
        ("two", "found 2 with `two`: two lr=0.1, two lr=0.2"),
    ],
)
def test_an_unclear_baseline_is_one_line(baseline: str, line: str) -> None:
    two = [*arm("two", GAIN, lr=0.1), *arm("two", BASE, lr=0.2)]
    with pytest.raises(UserError, match=line) as caught:
        compare_runs(runs(*arm("plus", BASE), *two), baseline)
    assert len(str(caught.value).splitlines()) == 1


def test_other_faults_are_one_line(tmp_path: Path) -> None:
    ce = arm("ce", BASE)
    with pytest.raises(UserError, match="another recipe than the baseline ce"):
        compare_runs(runs(*ce), "ce")
    with pytest.raises(UserError, match=r"share no seed: .* found 5, 6, 7 and 0, 1, 2"):
        compare_runs(runs(*ce, *arm("plus", GAIN, first=5)), "ce")
    with pytest.raises(UserError, match="no run is `nowhere`"):
        ltbench.compare("nowhere", "ce")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"expected finished runs in .*found no record\.json"):
        ltbench.compare(tmp_path / "empty", "ce")


def test_recipes_of_one_name_are_told_apart_by_their_values() -> None:
    low, high = arm("ce", BASE, optim={"lr": 0.1, "wd": 0}), arm("ce", GAIN, optim={"lr": 0.2})
    found = compare_runs(runs(*low, *high), "ce lr=0.2")
    assert [c.label for c in found.contrasts] == ["ce wd=0 lr=0.1"]


def test_runs_are_found_by_folder_file_pattern_and_name(
    grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = {(run.record.recipe.name, run.record.seed) for run in find_runs(grid)}
    assert len(everything) == 6
    folder = next(grid.glob("plus-*/seed1"))
    for what in (folder, folder / "record.json", f"{grid}/plus-*/seed1"):
        (run,) = find_runs(what)
        assert (run.record.recipe.name, run.record.seed, run.folder) == ("plus", 1, folder)
    committed = [*arm("ce", BASE), *arm("plus", GAIN)]
    monkeypatch.setattr("ltbench.records.runs.sound_records", lambda: committed)
    assert [run.record.seed for run in find_runs("plus")] == [0, 1, 2]
    assert [run.record.seed for run in find_runs("plus.2")] == [2]
    assert len(find_runs("*s")) == 3
    found = ltbench.compare("plus", "ce")  # runs of the baseline need not be named twice
    assert (found.baseline, found.contrasts[0].label) == ("ce", "plus")


def test_a_baseline_may_be_a_folder(grid: Path) -> None:
    base = next(grid.glob("ce-*"))
    others = next(grid.glob("plus-*"))
    assert ltbench.compare(others, base).contrasts == ltbench.compare(grid, "ce").contrasts


def test_what_else_differs_is_noted() -> None:
    short = arm("plus", GAIN, shortened=["epochs"], stages=[{"epochs": 20}], version="2.0")
    found = compare_runs(runs(*arm("ce", BASE, backbone={"name": "resnet32_cifar"}), *short), "ce")
    assert found.notes == (
        "plus: shortened by epochs, not comparable with full runs",
        "epochs differ: ce 200; plus 20",
        "backbones differ: ce ResNet-32; plus -",
        "the runs are of several versions of ltbench: 1.0, 2.0",
    )


# Predictions ------------------------------------------------------------------------------------


def with_predictions(grid: Path, order: np.random.Generator) -> None:
    """Write predictions of all runs that agree with their records, images in any order."""
    labels = np.repeat(np.arange(3), TOTAL)
    for run in find_runs(grid):
        assert run.folder is not None
        right = np.concatenate([np.arange(100) < k for k in run.record.metrics.correct])
        predict(run.folder / "eval" / "predictions.csv", labels, right, order.permutation(300))


def test_predictions_give_one_seed_an_interval_over_images(tmp_path: Path) -> None:
    grid = saved(tmp_path, *arm("ce", BASE[:1]), *arm("plus", GAIN[:1]))
    with_predictions(grid, np.random.default_rng(0))
    overall, many, *_ = ltbench.compare(grid, "ce").contrasts[0].groups
    # Of 300 images, 17 are right only with `plus` and 2 only with `ce`.
    gains = np.repeat([1.0, -1.0, 0.0], [17, 2, 281])
    parts = [np.repeat([-1.0, 0.0], [2, 98]), np.repeat([1.0, 0.0], [6, 94])]
    parts.append(np.repeat([1.0, 0.0], [11, 89]))
    error = 100 * np.sqrt(sum(part.var(ddof=1) / 100 for part in parts)) / 3
    assert gains.mean() * 100 == pytest.approx(overall.estimate.mean)
    assert overall.images == pytest.approx((5 - 1.968 * error, 5 + 1.968 * error), rel=1e-3)
    assert overall.estimate.p == pytest.approx(0.000729, rel=1e-2)  # 19 images, 2 of them worse
    assert many.estimate.p == pytest.approx(0.5)
    said = sentences(ltbench.compare(grid, "ce").contrasts[0])
    assert said[1].startswith(
        "many: one seed: the two models are not told apart on these images (p"
    )
    assert said[0].startswith(
        "overall: one seed: the two models differ on these images (p < 0.001)"
    )


def test_predictions_widen_the_interval_of_several_seeds(grid: Path) -> None:
    before = ltbench.compare(grid, "ce").contrasts[0]
    with_predictions(grid, np.random.default_rng(1))
    after = ltbench.compare(grid, "ce").contrasts[0]
    for one, other in zip(before.groups, after.groups, strict=True):
        assert one.images is None
        assert one.estimate == other.estimate
        if other.name != "ece" and other.estimate.low is not None:
            assert other.images is not None
            assert other.estimate.high is not None
    overall = after.groups[0]
    assert overall.images is not None
    assert overall.images[0] < overall.estimate.mean < overall.images[1]


def test_predictions_that_contradict_the_record_are_not_used(tmp_path: Path) -> None:
    grid = saved(tmp_path, *arm("ce", BASE[:1]))
    (run,) = find_runs(grid)
    assert run.folder is not None
    labels = np.repeat(np.arange(3), TOTAL)
    wrong = np.concatenate([np.arange(100) < k for k in (30, 60, 90)])
    predict(run.folder / "predictions.csv", labels, wrong, np.arange(300))
    assert read_predictions(run) is None
    (run.folder / "predictions.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="expected a table of predictions"):
        read_predictions(run)


# Files ------------------------------------------------------------------------------------------


def test_the_files_hold_the_comparison(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "comparison"
    found = ltbench.compare(grid, "ce", out=out)
    assert sorted(p.name for p in out.iterdir()) == [
        f"compare.{ending}" for ending in ("csv", "json", "md", "png", "tex")
    ]
    table = pd.read_csv(out / "compare.csv")
    assert list(table["value"]) == [d.name for d in found.contrasts[0].groups] + ["class"] * 3
    overall = found.contrasts[0].groups[0]
    first = table.iloc[0]
    ends = (overall.estimate.mean, overall.estimate.low)
    assert (first["difference"], first["low"]) == pytest.approx(ends, rel=1e-14)
    assert (first["n"], first["seeds"]) == (3, "0 1 2")
    assert table[table["value"] == "class"]["class"].tolist() == [0, 1, 2]
    assert found.frame()["difference"].tolist() == pytest.approx(table["difference"].tolist())
    tree = json.loads((out / "compare.json").read_text())
    assert tree["contrasts"][0]["values"][0]["by_seed"] == list(overall.by_seed)
    assert tree["contrasts"][0]["values"][0]["resolved"] is True
    markdown = (out / "compare.md").read_text()
    row = "| plus | 3 | overall | 60.56 | 65.67 | **+5.11 ± 0.51** | "
    assert row in markdown
    latex = (out / "compare.tex").read_text()
    assert r"plus & 3 & $\mathbf{+5.11}$ {\scriptsize $[+3.85, +6.38]$} & $-2.00$" in latex
    picture = Image.open(io.BytesIO((out / "compare.png").read_bytes()))
    assert picture.size[0] == 1200  # 6 inches of 200 pixels


def test_the_picture_shows_whether_a_difference_is_there(tmp_path: Path) -> None:
    ce = arm("ce", BASE)
    one = compare_runs(runs(*ce, *arm("x", GAIN)), "ce").write(tmp_path / "one")
    other = compare_runs(runs(*ce, *arm("x", BASE)), "ce").write(tmp_path / "other")
    again = compare_runs(runs(*ce, *arm("x", BASE)), "ce").write(tmp_path / "again")
    pictures = [paths[-1].read_bytes() for paths in (one, other, again)]
    assert pictures[0] != pictures[1] == pictures[2]


def test_names_of_others_do_not_break_the_files(tmp_path: Path) -> None:
    odd = arm("a_b", GAIN, note="50% & $x$ | #1 {~^\\}"), arm("a_b", BASE, note="plain")
    found = compare_runs(runs(*arm("ce", BASE), *odd[0], *odd[1]), "ce")
    found.write(tmp_path)
    latex = (tmp_path / "compare.tex").read_text().partition(r"\begin{tabular}")[2]
    assert r"a\_b note=50\% \& \$x\$ | \#1 \{" in latex
    lines = (tmp_path / "compare.md").read_text().splitlines()
    rows = [line.replace(r"\|", "") for line in lines if line.startswith("|")]
    assert {row.count("|") for row in rows} == {9}


def test_the_command_prints_and_writes(grid: Path, tmp_path: Path) -> None:
    words = ["compare", str(grid), "baseline=ce", f"out={tmp_path / 'out'}"]
    done = CliRunner().invoke(app.cli, words)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert "overall: resolved, higher (better) than the baseline" in lines
    tables = [line for line in lines if line.startswith(("overall  ", "many  ", "few  ", "ECE  "))]
    assert len(tables) == 4
    assert all(len(line) <= 80 for line in tables)
    assert lines[-1] == f"written {tmp_path / 'out'}/compare.csv, .md, .tex, .json, .png"
    assert (tmp_path / "out" / "compare.png").is_file()
