"""A grid's table: rows, marks, layouts, files."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from ltbench.errors import UserError
from ltbench.records.formats import latex_table, markdown_table
from ltbench.records.record import Record
from ltbench.records.results_files import csv_text, latex, markdown, write_results
from ltbench.records.results_table import Entry, legend, marks, table_rows, text_lines
from ltbench.records.runs import find_runs
from tests.records.made import made, saved

LOW, HIGH = [(90, 50, 20), (91, 51, 22), (90, 52, 21)], [(90, 60, 40), (92, 62, 41), (89, 62, 43)]


def entries(name: str, results: list[tuple[int, int, int]], **more) -> list[Entry]:
    records = [made(name, seed, right, **more) for seed, right in enumerate(results)]
    return [entry(record) for record in records]


def entry(record: Record, label: str = "") -> Entry:
    return Entry(label or record.recipe.name, record.recipe.digest, record.seed, record)


def test_a_row_holds_means_and_standard_deviations() -> None:
    (row,) = table_rows(entries("ce", LOW))
    assert (row["recipe"], row["n"], row["seeds"], row["missing"]) == ("ce", 3, [0, 1, 2], {})
    assert (row["medium"], row["medium_std"]) == pytest.approx((51.0, 1.0))
    assert row["overall"] == pytest.approx((160 + 164 + 163) / 9)


def test_rows_keep_their_order_and_their_labels() -> None:
    rows = table_rows(
        [
            *(entry(made("ce", 0, (1, 2, 3), lr=lr), f"ce lr={lr}") for lr in (0.2, 0.1)),
            *entries("a", LOW),
        ]
    )
    assert [row["recipe"] for row in rows] == ["ce lr=0.2", "ce lr=0.1", "a"]


def test_missing_seeds_are_named_with_the_reason() -> None:
    digest = "0" * 16
    rows = table_rows(
        [
            *entries("ce", LOW)[:2],
            Entry("ce", entries("ce", LOW)[0].digest, 2, None, "failed"),
            Entry("none", digest, 0, None, "failed"),
            Entry("none", digest, 1, None, "runs in another process"),
        ]
    )
    assert [(row["recipe"], row["n"]) for row in rows] == [("ce", 2), ("none", 0)]
    assert legend(rows)[-2:] == [
        "ce: no result of seed 2 (failed)",
        "none: no result of seed 0 (failed), seed 1 (runs in another process)",
    ]
    table = pd.read_csv(io.StringIO(csv_text(rows)), dtype={"missing_seeds": str})
    assert list(table["missing_seeds"]) == ["2", "0 1"]
    assert table["overall"].isna().tolist() == [False, True]
    assert "| none | 0 | - | - | - | - | - |  |" in markdown(rows)
    assert r"none & 0 & -- & -- & -- & -- & -- \\" in latex(rows)


def test_the_best_and_what_is_not_resolved_from_it_are_marked() -> None:
    near = [(91, 60, 40), (93, 61, 41), (88, 61, 43)]
    rows = table_rows([*entries("low", LOW), *entries("high", HIGH), *entries("near", near)])
    found = marks(rows)
    overall = [found.get((i, "overall")) for i in range(3)]
    assert overall == [None, "best", "tie"]
    assert [found.get((i, "many")) for i in range(3)] == ["tie", "tie", "best"]
    assert [found.get((i, "few")) for i in range(3)] == [None, "best", "best"]  # 41.33 both
    lines = markdown(rows).splitlines()
    assert lines[3].startswith("| high | 3 | **64.33** ± 0.88 | ≈90.33 ± 1.53 |")
    assert lines[4].startswith("| near | 3 | ≈64.22 ± 0.69 | **90.67** ± 2.52 |")
    tabular = latex(rows).partition(r"\begin{tabular}")[2].splitlines()
    assert tabular[5].startswith(r"high & 3 & \textbf{64.33} $\pm$ 0.88 & 90.33 $\pm$")
    assert r"near & 3 & 64.22 $\pm$ 0.69\rlap{$^{\approx}$} & \textbf{90.67}" in tabular[6]


def test_the_lowest_calibration_error_is_best() -> None:
    rows = table_rows([*entries("low", LOW), *entries("high", HIGH)])
    best = min(range(2), key=lambda i: rows[i]["ece"])
    assert marks(rows)[best, "ece"] == "best"


def test_one_seed_resolves_nothing() -> None:
    found = marks(table_rows([*entries("low", LOW[:1]), *entries("high", HIGH[:1])]))
    assert [found[i, "overall"] for i in range(2)] == ["tie", "best"]


def test_rows_of_other_images_are_not_ranked_together() -> None:
    rows = table_rows([*entries("low", LOW), *entries("high", HIGH, test="c")])
    assert marks(rows) == {}


LONG = "a_recipe_with_a_long_name_plot_cifar100_if50"


@pytest.mark.parametrize("width", [None, 160, 120, 100, 80, 72, 60, 50])
def test_no_width_cuts_a_name_or_a_number(width: int | None) -> None:
    wild = [(100, 0, 0), (0, 100, 100), (100, 0, 100)]  # deviations of five characters
    rows = table_rows([*entries(LONG, wild), *entries("ce", LOW)])
    lines = text_lines(rows, width)
    text = "\n".join(lines)
    assert all(LONG in text and name in text for name in ("overall", "ce", "few"))
    assert "…" not in text
    numbers = re.findall(r"\d+\.\d\d ± \d+\.\d\d", text)
    shown = [v for v in ("overall", "many", "medium", "few", "ECE") if v in lines[0]]
    assert len(numbers) == 2 * len(shown)
    if width is not None:
        assert all(len(line) <= width for line in lines)
    if width is None or width >= 80:
        assert len(shown) == 5
    else:
        assert f"not shown: {'ECE' if width >= 60 else 'ECE, medium'}" in text


def test_a_wide_table_has_one_line_per_recipe() -> None:
    rows = table_rows([*entries(LONG, LOW), *entries("ce", HIGH)])
    lines = text_lines(rows)
    assert len(lines) == 4
    assert lines[2].split()[:3] == [LONG, "3", "54.11"]
    assert lines[0].split() == ["recipe", "n", "overall", "many", "medium", "few", "ECE", "epochs"]


def test_files_are_written_into_a_new_folder(tmp_path: Path) -> None:
    rows = table_rows([*entries("ce", LOW), *entries("high", HIGH)])
    paths = write_results(tmp_path / "new" / "grid", rows)
    assert [path.name for path in paths] == [
        f"results.{ending}" for ending in ("csv", "md", "tex", "json")
    ]
    table = pd.read_csv(paths[0])
    assert table["overall"].tolist() == pytest.approx([r["overall"] for r in rows], rel=1e-14)
    assert table["overall_sd"].tolist() == pytest.approx(
        [r["overall_std"] for r in rows], rel=1e-14
    )
    assert table[["recipe", "n", "seeds", "epochs"]].to_numpy().tolist() == [
        ["ce", 3, "0 1 2", 200],
        ["high", 3, "0 1 2", 200],
    ]
    assert sorted((tmp_path / "new" / "grid").iterdir()) == sorted(paths)


def test_a_grid_without_out_is_found_by_its_results(tmp_path: Path) -> None:
    records = [made("ce", seed, right) for seed, right in enumerate(LOW)]
    folders = [path.parent for path in sorted(saved(tmp_path, *records).rglob("record.json"))]
    listed = [
        Entry(r.recipe.name, r.recipe.digest, r.seed, r, folder=folder)
        for r, folder in zip(records, folders, strict=True)
    ]
    write_results(tmp_path / "grid-1", table_rows(listed))
    found = find_runs(tmp_path / "grid-1")
    assert [(run.record, run.folder) for run in found] == list(zip(records, folders, strict=True))
    (folders[1] / "record.json").unlink()
    with pytest.raises(UserError, match="cannot read the record"):
        find_runs(tmp_path / "grid-1")
    (tmp_path / "grid-1" / "results.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        find_runs(tmp_path / "grid-1")


# Formats ----------------------------------------------------------------------------------------

ODD = "50% & $x$_y #1 {a} ~b^c\\d|*e*\n\x1b[2J"


def test_markdown_shows_names_as_they_are() -> None:
    table = markdown_table(["name", "n"], [[ODD, "**1**"]])
    assert table.splitlines()[1] == "| --- | ---: |"
    row = table.splitlines()[2]
    assert row.endswith("| **1** |")
    assert r"\|\*e\*\\n\\x1b" in row
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_latex_is_a_complete_tabular(tmp_path: Path) -> None:
    text = latex_table(["Name", "n"], [[ODD, r"$\pm$ 1"]], notes=["two\nlines"])
    comments, _, rest = text.partition(r"\begin{tabular}{lr}")
    assert all(line.startswith("%") for line in comments.splitlines())
    body = rest.splitlines()
    assert [line for line in body if line.startswith("\\")] == [
        r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    (row,) = [line for line in body if "50" in line]
    assert row.count("&") == 2  # one of them escaped
    assert row.endswith(r"& $\pm$ 1 \\")
    name = row.rpartition(" & ")[0]
    for special in "%&$_#{}":
        assert not re.search(rf"(?<!\\)\{special}", name)
    compiles(tmp_path, text)


def test_a_grid_compiles(tmp_path: Path) -> None:
    rows = table_rows([*entries("ce_cifar10", LOW), *entries("high", HIGH)])
    text = latex(rows)
    assert text.count(r"\\") == 3
    columns = {line.count("&") for line in text.splitlines() if line.endswith(r"\\")}
    assert columns == {6}
    compiles(tmp_path, text)


def compiles(folder: Path, table: str) -> None:
    """Compile a table with nothing but booktabs, where there is LaTeX."""
    if shutil.which("pdflatex") is None:
        return
    document = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    (folder / "a.tex").write_text(f"{document}{table}\\end{{document}}\n")
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    done = subprocess.run(words, cwd=folder, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
