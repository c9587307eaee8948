"""Tables of diagnostics as text for people: headings in words, numbers without exponents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

ROWS, COLUMNS = 30, 14  # limits of tables shown in the report
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
LONGEST = 60  # characters of a cell
# Shares and probabilities, shown in percent.
PERCENT = {
    *("accuracy", "confidence", "drawn", "drawn_sd", "ece", "known_accepted", "precision"),
    *("neighbour_accuracy", "recall", "share", "unknown_accepted", "fpr95"),
}
HEADINGS = {
    "again_images": "other head images",
    "auroc": "AUROC",
    "brier": "Brier score",
    "conflicts_percent": "conflicts, % of pairs",
    "cosine_mean": "cosine with g₀",
    "count": "training images",
    "dominated_percent": "dominated conflicts, % of pairs",
    "drawn": "mean of drawn subsets",
    "drawn_images": "images of a subset",
    "drawn_sd": "standard deviation of drawn subsets",
    "ece": "ECE",
    "f": "F-measure",
    "fpr95": "FPR95",
    "head_head": "two head samples",
    "head_tail": "head and tail",
    "in_matrix": "shown in the matrix",
    "loss_share": "share of the batch loss",
    "batch_share": "share of the batch",
    "name": "class",
    "nc1": "NC1",
    "duality": "NC3: duality",
    "equiangle": "NC2: equiangle",
    "equinorm": "NC2: equinorm",
    "nll": "NLL, nats",
    "predicted_over_true": "predictions per test image",
    "train_images": "training images",
}


@dataclass(frozen=True)
class Shown:
    """Table as text.

    Args:
        title: what the rows are.
        columns: headings.
        rows: cells.
        numeric: mask of numeric columns.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    numeric: list[bool]


def shown(title: str, table: pd.DataFrame) -> Shown:
    """Return the first rows of a table as text, without columns of files.

    A number of a class is left out beside its name, and the index of a stage beside its label.
    """
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    kept = without_files(table)
    beside = {"class": "name", "stage": "state", "predicted": "predicted_name"}
    kept = kept.drop(columns=[c for c, better in beside.items() if {c, better} <= {*kept.columns}])
    numeric = [is_numeric_dtype(d) and not is_bool_dtype(d) for d in kept.dtypes]
    percent = [name in PERCENT and number for name, number in zip(kept, numeric, strict=True)]
    rows = [
        [
            number_text(100 * v) if scaled else cell_text(v)
            for v, scaled in zip(row, percent, strict=True)
        ]
        for row in kept.head(ROWS + 1).itertuples(index=False)
    ]
    headings = [
        heading(str(name)) + (", %" if scaled else "")
        for name, scaled in zip(kept, percent, strict=True)
    ]
    return Shown(title, headings, rows, numeric)


def heading(column: str) -> str:
    """Return the heading of a column in words."""
    return HEADINGS.get(column, column.replace("_", " "))


def without_files(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table without the columns that hold files, such as images."""
    binary = [c for c in table.columns if table[c].map(lambda v: isinstance(v, bytes)).any()]
    return table.drop(columns=binary)


def cell_text(value: Any) -> str:
    """Return a cell as text, cut if it is long."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return number_text(value)
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def number_text(value: float) -> str:
    """Return a number with four significant digits, whole if it is large, without an exponent.

    Very small ones have a power of ten, written as one.
    """
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    sign, size = (MINUS if value < 0 else ""), abs(value)
    if size == int(size) and size < 1e15:
        return f"{sign if size else ''}{int(size):,}"
    if size >= 1e15 or size < 1e-4:
        digits, _, power = f"{size:.2e}".partition("e")
        return f"{sign}{digits} {TIMES} 10{superscript(int(power))}"
    places = max(0, 3 - math.floor(math.log10(size)))
    return f"{sign}{size:,.{places}f}"


def superscript(number: int) -> str:
    """Return an integer in superscript digits."""
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def title_of(name: str, titles: Mapping[str, str]) -> str:
    """Return the title of a table in words."""
    return titles.get(name, capitalised_words(name))


def capitalised_words(name: str) -> str:
    """Return a name in snake case as words with a capital."""
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]
