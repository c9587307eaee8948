"""Table of a grid: one row per recipe, means and standard deviations over its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ltbench.records.aggregate import (
    VALUES,
    Row,
    average_seeds,
    percentages,
    plus_minus,
    seeds_of_rows,
)
from ltbench.records.paired import ALPHA, holm, paired_t
from ltbench.records.record import Record

HEADS = {v: "ECE" if v == "ece" else v for v in VALUES}
LOWER = ("ece",)  # columns in which less is better
DROPPED = ("ece", "medium", "many", "few")  # columns left out of a narrow table, in this order
Mark = Literal["best", "tie"]


@dataclass(frozen=True)
class Entry:
    """One run of a grid, as its table reads it.

    Args:
        label: what the row is called: the recipe's name, and the values in which it differs.
        digest: of the recipe; entries of one digest make one row.
        seed: of the run.
        record: of a finished run.
        reason: why there is no record, in a few words.
        folder: of the run; None for a committed record.
    """

    label: str
    digest: str
    seed: int
    record: Record | None = None
    reason: str = "not run"
    folder: Path | None = None


def table_rows(entries: Iterable[Entry]) -> list[Row]:
    """Return one row per recipe: means over its seeds in percent, and standard deviations.

    A row holds the columns of ``average_seeds`` (``recipe`` is the label), and ``digest``,
    ``seeds``, ``missing`` (reason by seed), ``records`` and ``folders`` (by seed). Rows that share
    a label, with other images or from files of the same name, are numbered. A recipe without any
    record has a row too.
    """
    given = list(entries)
    labels = {e.digest: e.label for e in reversed(given)}
    order = list(dict.fromkeys(e.digest for e in given))
    found: list[Row] = []
    for seeds in seeds_of_rows(e.record for e in given if e.record is not None):
        (row,) = average_seeds(seeds)
        digest = seeds[0].recipe.digest
        here = {"recipe": labels[digest], "digest": digest, "seeds": [r.seed for r in seeds]}
        folders = {e.seed: e.folder for e in given if e.digest == digest and e.folder is not None}
        found.append({**row, **here, "missing": {}, "records": seeds, "folders": folders})
    have = {row["digest"] for row in found}
    found += [_empty(digest, labels[digest]) for digest in order if digest not in have]
    found.sort(key=lambda row: order.index(row["digest"]))
    for digest in order:
        first = next(row for row in found if row["digest"] == digest)
        first["missing"] = {e.seed: e.reason for e in given if e.digest == digest and not e.record}
    for label in {row["recipe"] for row in found}:
        same = [row for row in found if row["recipe"] == label]
        for number, row in enumerate(same if len(same) > 1 else (), start=1):
            row["recipe"] = f"{label} ({number})"
    return found


def _empty(digest: str, label: str) -> Row:
    numbers = {key: None for v in VALUES for key in (v, f"{v}_std")}
    return {
        **numbers, "recipe": label, "digest": digest, "n": 0, "seeds": [], "epochs": "",
        "missing": {}, "records": [], "folders": {},
    }  # fmt: skip


def marks(rows: Sequence[Row]) -> dict[tuple[int, str], Mark]:
    """Return the best value of each column, and those that are not resolved from it.

    Rows of the same images are compared by a paired t-test over the seeds that they share, with
    Holm's correction within a column; without two shared seeds nothing is resolved.

    Returns:
        Marks by number of the row and name of the value.
    """
    found: dict[tuple[int, str], Mark] = {}
    places: dict[tuple[str, str, str], list[int]] = {}
    for i, row in enumerate(rows):
        if row["records"]:
            data = row["records"][0].dataset
            places.setdefault((data.name, data.train_sha256, data.test_sha256), []).append(i)
    values = {i: {r.seed: percentages(r) for r in rows[i]["records"]} for i in range(len(rows))}
    for v in VALUES:
        for place in places.values():
            here = [i for i in place if rows[i][v] is not None]
            if len(here) < 2:
                continue
            sign = -1 if v in LOWER else 1
            best = max(here, key=lambda i: sign * rows[i][v])
            equal = [i for i in here if f"{rows[i][v]:.2f}" == f"{rows[best][v]:.2f}"]
            others = [i for i in here if i not in equal]
            ps = holm([_p(values[best], values[i], v) for i in others])
            found.update({(i, v): "best" for i in equal})
            for i, p in zip(others, ps, strict=True):
                if p is None or p >= ALPHA:
                    found[i, v] = "tie"
    return found


def _p(one: Mapping[int, Row], other: Mapping[int, Row], value: str) -> float | None:
    shared = sorted(set(one) & set(other))
    return paired_t([one[s][value] - other[s][value] for s in shared]).p if shared else None


def legend(rows: Sequence[Row]) -> list[str]:
    """Return what bold and ≈ mean in a table of several rows, and which seeds are missing."""
    found = marks(rows).values()
    bold = "; bold: best mean of a column" if "best" in found else ""
    lines = [f"Percent, mean ± standard deviation over n seeds{bold}"]
    if "tie" in found:
        lines.append(
            f"≈: not resolved from the best (paired t-test over shared seeds, p ≥ {ALPHA:g} after "
            "Holm's correction within the column, or fewer than two shared seeds)"
        )
    return lines + missing_lines(rows)


def missing_lines(rows: Sequence[Row]) -> list[str]:
    """Return a line for each row with seeds that have no result: which, and why."""
    lines = []
    for row in rows:
        seeds: dict[str, list[int]] = {}
        for seed, reason in row["missing"].items():
            seeds.setdefault(reason, []).append(seed)
        parts = [
            f"{'seed' if len(which) == 1 else 'seeds'} {', '.join(map(str, which))} ({reason})"
            for reason, which in seeds.items()
        ]
        if parts:
            lines.append(f"{row['recipe']}: no result of {', '.join(parts)}")
    return lines


def text_lines(rows: Sequence[Row], width: int | None = None) -> list[str]:
    """Return a grid's table as lines; no name and no number in it is cut.

    If it is wider than the terminal, the name of a recipe stands on a line of its own, above its
    numbers; if that is still too wide, ECE and then shot groups are left out.

    Args:
        rows: from ``table_rows``.
        width: columns of the terminal; None where there is no limit.
    """
    values = [v for v in VALUES if v == "overall" or any(row[v] is not None for row in rows)]
    wide = _wide(rows, values)
    if width is None or max(map(len, wide)) <= width:
        return wide
    left_out = []
    for drop in ("", *DROPPED):
        if drop in values:
            values.remove(drop)
            left_out.append(HEADS[drop])
        lines = _stacked(rows, values, width)
        if len(lines[0]) <= width:
            break
    return [*lines, f"not shown: {', '.join(left_out)}"] if left_out else lines


def _wide(rows: Sequence[Row], values: Sequence[str]) -> list[str]:
    """Return a line per recipe."""
    heads = ("recipe", "n", *(HEADS[v] for v in values), "epochs")
    cells = [(row["recipe"], str(row["n"]), *_cells(row, values), row["epochs"]) for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    lines = [_line(cell, widths) for cell in (heads, *cells)]
    return [lines[0], "-" * len(lines[0]), *lines[1:]]


def _stacked(rows: Sequence[Row], values: Sequence[str], width: int) -> list[str]:
    """Return two or three lines per recipe: its name, its seeds and epochs, and its numbers."""
    cells = [_cells(row, values) for row in rows]
    heads = [HEADS[v] for v in values]
    widths = [0, *(max(map(len, column)) for column in zip(heads, *cells, strict=True))]
    lines = [_line(("", *heads), widths)]
    lines.append("-" * len(lines[0]))
    for row, numbers in zip(rows, cells, strict=True):
        epochs = row["epochs"]
        budget = f", {epochs}{'' if 'steps' in epochs else ' epochs'}" if epochs else ""
        name, facts = row["recipe"], f"n = {row['n']}{budget}"
        fits = len(name) + len(facts) + 2 <= width
        lines += [f"{name}, {facts}"] if fits else [name, facts]
        lines.append(_line(("", *numbers), widths))
    return lines


def _cells(row: Row, values: Sequence[str]) -> list[str]:
    return [plus_minus(row[v], row[f"{v}_std"]) for v in values]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.rjust(width) if i else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join((first, *others))
