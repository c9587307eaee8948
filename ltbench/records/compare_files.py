"""Files of a comparison: compare.csv, .md, .tex, .json and .png."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.config.paths import expanded
from ltbench.errors import UserError
from ltbench.files import reason, write_atomic
from ltbench.records.compare_picture import draw_comparison
from ltbench.records.compare_text import (
    bounds,
    interval,
    legend,
    p_text,
    resolved,
    sentences,
    spread,
    title,
)
from ltbench.records.contrasts import Contrast, Contrasts, Difference
from ltbench.records.formats import latex_table, markdown_table, markdown_text

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = ("sd", "low", "high", "p", "p_holm", "low_with_images", "high_with_images")


def write_comparison(comparison: Contrasts, folder: Path) -> list[Path]:
    """Write the five files and return their paths.

    Args:
        comparison: what is written.
        folder: where to; it is made if need be.

    Raises:
        UserError: they cannot be written.
    """
    folder = expanded(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"could not make {folder}: {reason(error)}; use another path") from error
    contents = {
        "csv": frame(comparison).to_csv(index=False, lineterminator="\n").encode(),
        "md": markdown(comparison).encode(),
        "tex": latex(comparison).encode(),
        "json": (json.dumps(tree(comparison), indent=1, ensure_ascii=False) + "\n").encode(),
        "png": draw_comparison(comparison),
    }
    paths = []
    for ending, content in contents.items():
        paths.append(folder / f"compare.{ending}")
        write_atomic(paths[-1], content)
    return paths


def frame(comparison: Contrasts) -> pd.DataFrame:
    """Return a row per method and value, those of single classes last, in full precision."""
    import pandas as pd

    counts = comparison.class_counts
    rows = []
    for c in comparison.contrasts:
        rows += [_row(comparison, c, d, d.name, None, None) for d in c.groups]
        rows += [_row(comparison, c, d, "class", d.name, counts[int(d.name)]) for d in c.classes]
    table = pd.DataFrame(rows)
    whole = dict.fromkeys(("class", "train_images"), "Int64")
    return table.astype({**whole, **dict.fromkeys(NUMBERS, "float64")})


def _row(
    comparison: Contrasts,
    c: Contrast,
    d: Difference,
    value: str,
    label: str | None,
    images: int | None,
) -> dict[str, Any]:
    e = d.estimate
    low, high = d.images or (None, None)
    return {
        "method": c.label,
        "baseline": comparison.baseline,
        "value": value,
        "class": None if label is None else int(label),
        "train_images": images,
        "n": e.n,
        "seeds": " ".join(map(str, c.seeds)),
        "baseline_mean": d.baseline,
        "method_mean": d.mean,
        "difference": e.mean,
        "sd": e.sd,
        "low": e.low,
        "high": e.high,
        "p": e.p,
        "p_holm": d.p_holm,
        "low_with_images": low,
        "high_with_images": high,
    }


def tree(comparison: Contrasts) -> dict[str, Any]:
    """Return a comparison as plain data: every number, and the sentences."""
    return {
        "dataset": comparison.dataset,
        "baseline": comparison.baseline,
        "unit": "percentage points",
        "contrasts": [
            {
                "method": c.label,
                "seeds": list(c.seeds),
                "values": [_tree_of(d) for d in c.groups],
                "classes": [_tree_of(d) for d in c.classes],
                "in_words": sentences(c, len(comparison.contrasts)),
            }
            for c in comparison.contrasts
        ],
        "how": legend(comparison),
        "notes": list(comparison.notes),
    }


def _tree_of(d: Difference) -> dict[str, Any]:
    e = d.estimate
    return {
        "name": d.name, "baseline": d.baseline, "method": d.mean, "difference": e.mean,
        "by_seed": list(d.by_seed), "sd": e.sd, "n": e.n,
        "interval": None if e.low is None else [e.low, e.high], "p": e.p, "p_holm": d.p_holm,
        "interval_with_images": None if d.images is None else list(d.images),
        "resolved": resolved(d),
    }  # fmt: skip


def markdown(comparison: Contrasts) -> str:
    """Return a table of differences as GitHub renders it, resolved ones bold, and sentences."""
    heads = ["method", "n", "value", "baseline", "mean", "difference", "95 % interval", "p"]
    rows = []
    for c in comparison.contrasts:
        for d in c.groups:
            difference = f"**{spread(d)}**" if resolved(d) else spread(d)
            numbers = [f"{d.baseline:.2f}", f"{d.mean:.2f}", difference, interval(d)]
            p = p_text(d.p_holm).replace("<", "&lt;")
            rows.append([c.label, str(len(c.seeds)), title(d.name), *numbers, p])
    said = [
        f"- {markdown_text(c.label)}, {markdown_text(line)}"
        for c in comparison.contrasts
        for line in sentences(c, len(comparison.contrasts))
    ]
    top = f"{comparison.dataset}, percentage points against {comparison.baseline}; bold: resolved"
    below = [markdown_text(line) for line in (*legend(comparison), *comparison.notes)]
    parts = [markdown_text(top), markdown_table(heads, rows, (0, 2)).rstrip(), "\n".join(said)]
    return "\n\n".join([*parts, *below]) + "\n"


def latex(comparison: Contrasts) -> str:
    """Return a ``tabular`` for booktabs: a row per method, differences with their intervals."""
    names = list(dict.fromkeys(d.name for c in comparison.contrasts for d in c.groups))
    rows = []
    for c in comparison.contrasts:
        cells = {d.name: _latex_cell(d) for d in c.groups}
        rows.append([c.label, f"{len(c.seeds)}", *(cells.get(name, "--") for name in names)])
    heads = ["Method", "n", *("ECE" if n == "ece" else n.capitalize() for n in names)]
    top = (
        f"{comparison.dataset}: difference to {comparison.baseline} in percentage points, with its "
        "95 % interval; bold: resolved."
    )
    return latex_table(heads, rows, notes=[top, *_comments(comparison)])


def _comments(comparison: Contrasts) -> Iterator[str]:
    yield from legend(comparison)
    yield from comparison.notes


def _latex_cell(d: Difference) -> str:
    number = f"{d.estimate.mean:+.2f}"
    shown = rf"$\mathbf{{{number}}}$" if resolved(d) else f"${number}$"
    ends = bounds(d)
    if ends is None:
        return shown
    return rf"{shown} {{\scriptsize $[{ends[0]:+.2f}, {ends[1]:+.2f}]$}}"
