"""Files of a grid's results: results.csv, .md, .tex and .json."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ltbench.errors import UserError
from ltbench.files import reason, write_atomic
from ltbench.records.aggregate import VALUES, Row, percentages
from ltbench.records.formats import latex_table, markdown_table, markdown_text
from ltbench.records.record import RECORD
from ltbench.records.results_table import HEADS, Mark, legend, marks

ENDINGS = ("csv", "md", "tex", "json")
SIGN = "≈"
LATEX_SIGN = r"\rlap{$^{\approx}$}"


def write_results(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Write a grid's table as CSV, Markdown and LaTeX, and its runs as JSON; return the paths.

    Args:
        folder: where to; it is made if need be.
        rows: from ``table_rows``.

    Raises:
        UserError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"could not make {folder}: {reason(error)}; use another path") from error
    contents = (csv_text(rows), markdown(rows), latex(rows), json_text(rows, folder))
    paths = [folder / f"results.{ending}" for ending in ENDINGS]
    for path, text in zip(paths, contents, strict=True):
        write_atomic(path, text.encode())
    return paths


def csv_text(rows: Sequence[Row]) -> str:
    """Return a row per recipe: mean and standard deviation of each value in percent, seeds, n."""
    import pandas as pd

    lines = []
    for row in rows:
        numbers = {
            name: row[key] for v in VALUES for name, key in ((v, v), (f"{v}_sd", f"{v}_std"))
        }
        lines.append(
            {
                "recipe": row["recipe"],
                "digest": row["digest"],
                "n": row["n"],
                "seeds": " ".join(map(str, row["seeds"])),
                "missing_seeds": " ".join(map(str, row["missing"])),
                **numbers,
                "epochs": row["epochs"],
                "dataset": row.get("dataset", ""),
                "backbone": row.get("backbone", ""),
                "note": row.get("note", ""),
            }
        )
    text: str = pd.DataFrame(lines).to_csv(index=False, lineterminator="\n")
    return text


def json_text(rows: Sequence[Row], folder: Path) -> str:
    """Return the results of every run in percent, and the paths of their records.

    Args:
        rows: from ``table_rows``.
        folder: that the paths are relative to.
    """
    tree = []
    for row in rows:
        runs = []
        for record in row["records"]:
            place = row["folders"].get(record.seed)
            path = None if place is None else os.path.relpath(place / RECORD, folder)
            facts = {"seed": record.seed, "run_id": record.run_id, "record": path}
            runs.append({**facts, **percentages(record)})
        missing = [{"seed": seed, "reason": text} for seed, text in row["missing"].items()]
        tree.append(
            {"recipe": row["recipe"], "digest": row["digest"], "runs": runs, "missing": missing}
        )
    return json.dumps({"rows": tree}, indent=1, ensure_ascii=False) + "\n"


def markdown(rows: Sequence[Row]) -> str:
    """Return the table as GitHub renders it, the best of each column bold, ties marked with ≈."""
    values, found = _values(rows), marks(rows)
    lines = []
    for i, row in enumerate(rows):
        cells = [_markdown_cell(row, v, found.get((i, v))) for v in values]
        lines.append([row["recipe"], str(row["n"]), *cells, markdown_text(row["epochs"])])
    table = markdown_table(["recipe", "n", *(HEADS[v] for v in values), "epochs"], lines)
    return "\n\n".join([table.rstrip(), *map(markdown_text, legend(rows))]) + "\n"


def _markdown_cell(row: Row, value: str, mark: Mark | None) -> str:
    mean, sd = row[value], row[f"{value}_std"]
    if mean is None:
        return "-"
    number = f"**{mean:.2f}**" if mark == "best" else f"{mean:.2f}"
    return f"{SIGN if mark == 'tie' else ''}{number}{'' if sd is None else f' ± {sd:.2f}'}"


def latex(rows: Sequence[Row]) -> str:
    """Return the table as a ``tabular`` for the package booktabs, marked like ``markdown``."""
    values, found = _values(rows), marks(rows)
    lines = []
    for i, row in enumerate(rows):
        cells = [_latex_cell(row, v, found.get((i, v))) for v in values]
        lines.append([row["recipe"], f"{row['n']}", *cells])
    heads = ["Method", "n", *("ECE" if v == "ece" else v.capitalize() for v in values)]
    return latex_table(heads, lines, notes=legend(rows))


def _latex_cell(row: Row, value: str, mark: Mark | None) -> str:
    mean, sd = row[value], row[f"{value}_std"]
    if mean is None:
        return "--"
    number = rf"\textbf{{{mean:.2f}}}" if mark == "best" else f"{mean:.2f}"
    spread = "" if sd is None else rf" $\pm$ {sd:.2f}"
    return f"{number}{spread}{LATEX_SIGN if mark == 'tie' else ''}"


def _values(rows: Sequence[Row]) -> list[str]:
    return [v for v in VALUES if v == "overall" or any(row[v] is not None for row in rows)]
