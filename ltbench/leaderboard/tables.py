"""Table of committed records and published results; torch is never imported here."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ltbench.config.registry import natural
from ltbench.errors import UserError, did_you_mean, visible
from ltbench.leaderboard.recipe_check import OtherVersion, check_recipe, remark
from ltbench.leaderboard.settings import SETTINGS, rank, record_setting, settle
from ltbench.records.aggregate import VALUES, Row, average_seeds, seeds_of_rows
from ltbench.records.claims import initial_weights
from ltbench.records.literature import (
    FACTS,
    UNKNOWN,
    longest_stage,
    marks,
    published,
    same_ratio,
)
from ltbench.records.record import Record, Status
from ltbench.records.store import no_collection, records
from ltbench.records.titles import dataset_names, matches, usual_title

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("dataset", "imbalance_ratio", "setting", "track", "method", "plot", "backbone"),
    *(column for value in VALUES for column in (value, f"{value}_std")),
    *("tie", "n", "epochs", "epochs_from", "augmentation", "augmentation_from"),
    *("selection", "selection_from", "origin", "status", "source", "note", "footnotes"),
)
AUGMENTATIONS = {  # of recipes, in the words of published.csv
    "none": "none",
    "standard": "crop, flip",
    "crop": "crop, flip",
    "inat": "crop, flip",
    "rotate": "crop, flip, rotation",
    "imagenet": "crop, flip, jitter",
    "inat_jitter": "crop, flip, jitter",
    "autoaugment": "AutoAugment",
    "strong": "AutoAugment, Cutout",
    "rand": "RandAugment",
    "inat_rand": "RandAugment",
    **dict.fromkeys(("clip", "half"), "crop, flip"),
    **dict.fromkeys(("clip_minimalist", "half_minimalist"), "crop"),
    "plain": "flip",
    **dict.fromkeys(("sim", "sim_hue"), "SimCLR"),
    "sim_rand": "RandAugment, SimCLR",
}
ORIGINS = ("published", "imported", "reproduced")
AS_PUBLISHED = "as published"  # the track of published rows, whose budgets differ
IMPORTED = "imported"  # the track of models that others trained, whose budgets are not known
CHOICES = {"yes": "best on test", "no": "not on test", "unknown": UNKNOWN}  # of the epoch
UNRESOLVED = 0.5  # points that one run, or a number without a spread, cannot resolve


def table(
    *,
    dataset: str = "",
    ratio: str | float = "",
    backbone: str = "",
    method: str = "",
    setting: str = "",
    track: str = "",
    status: str = "",
    origin: str = "",
    plot: str | bool = "",
    max_epochs: str | int = "",
    sort: str = "",
    folder: Path | None = None,
    checked: bool = False,
) -> pd.DataFrame:
    """Return reproduced and published top-1 results, in percent, one row per recipe or citation.

    Seeds are averaged within one recipe digest and one content of the data, shortened runs apart;
    standard deviations have n - 1 in the denominator and are missing for n = 1. Origins are never
    mixed. Rows are sorted within a data set, ratio, setting (see ``settings.SETTINGS``) and track
    (see ``track_of``), and ``tie`` marks those that tie with the best one there (see ``is_tie``);
    filters do not change it.
    Shot groups of reproduced rows follow the strict rule; published ones, whatever their source
    used.

    Args:
        dataset: shell pattern of a title or registered name, any case, ``-LT`` optional.
        ratio: imbalance ratio.
        backbone: shell pattern.
        method: shell pattern of the literature's or the recipe's name.
        setting: ``plain``, ``strong``, ``pretrained``, ``small`` or ``unknown``, see ``settings``.
        track: shell pattern.
        status: ``paper``, ``imported``, ``claimed``, ``reproduced`` or ``verified``.
        origin: ``published``, ``imported`` or ``reproduced``.
        plot: ``true`` for rows trained with PLOT, ``false`` for the others.
        max_epochs: rows whose longest stage is known to have at most this many epochs.
        sort: column to sort by within each section; by default ``overall``.
        folder: folder of the records, by default the committed ones.
        checked: see ``board_rows``.

    Raises:
        UserError: a filter or the column to sort by is not one of those above.
    """
    import pandas as pd

    rows = select_rows(
        dataset=dataset,
        ratio=ratio,
        backbone=backbone,
        method=method,
        setting=setting,
        track=track,
        status=status,
        origin=origin,
        plot=plot,
        max_epochs=max_epochs,
        sort=sort,
        folder=folder,
        checked=checked,
    )
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    numbers = ["imbalance_ratio", *(c for c in COLUMNS if c.removesuffix("_std") in VALUES)]
    return frame.astype({**dict.fromkeys(numbers, "float64"), "n": "Int64"})


def select_rows(
    *,
    dataset: str = "",
    ratio: str | float = "",
    backbone: str = "",
    method: str = "",
    setting: str = "",
    track: str = "",
    status: str = "",
    origin: str = "",
    plot: str | bool = "",
    max_epochs: str | int = "",
    sort: str = "",
    folder: Path | None = None,
    checked: bool = False,
) -> list[Row]:
    """Return the rows of ``table``, which see, as plain data; ours with their records."""
    if sort and sort not in COLUMNS:
        raise UserError(
            f"unknown column `{sort}`{did_you_mean(sort, COLUMNS)}; sort by one of "
            f"{', '.join(COLUMNS)}"
        )
    statuses = [s for s in get_args(Status) if s != "withdrawn"]
    wanted, with_plot = _number(ratio), _choice("plot", str(plot).lower(), ("true", "false"))
    status, origin = _choice("status", status, statuses), _choice("origin", origin, ORIGINS)
    setting = _choice("setting", setting, [*SETTINGS])
    most = _number(max_epochs, "max_epochs")
    fits = functools.cache(_fits)
    rows = [
        row
        for row in board_rows(folder, checked=checked)
        if (not dataset or fits(dataset, *dataset_names(row["dataset"])))
        and (wanted is None or same_ratio(row["dataset"], row["imbalance_ratio"], wanted))
        and (not backbone or fits(backbone, row["backbone"], row.get("registered", "")))
        and (not method or fits(method, row["method"], row.get("recipe", row.get("printed", ""))))
        and setting in ("", row["setting"])
        and (not track or fits(track, row["track"]))
        and (not with_plot or row["plot"] == (with_plot == "true"))
        and status in ("", row["status"])
        and origin in ("", row["origin"])
        and (most is None or (longest_stage(row["epochs"]) or math.inf) <= most)
    ]
    column = sort or "overall"
    rows.sort(key=lambda row: _order(row, column))
    return rows


def _fits(pattern: str, *names: str) -> bool:
    return matches(pattern, *names)


def board_rows(folder: Path | None = None, *, checked: bool = False) -> list[Row]:
    """Return all rows of the table, ours with the records they were made from.

    Args:
        folder: folder of the records, by default the committed ones.
        checked: leave records aside that are not of the recipe of their name; imports methods.

    Returns:
        Rows with the table's columns; of reproduced ones also ``recipe``, ``registered`` and
        ``records``.
    """
    with no_collection():
        return _board_rows(records(folder), checked=checked)


def _board_rows(found: list[Record], *, checked: bool) -> list[Row]:
    if checked:
        found = _of_their_recipes(found)
    ours = []
    for seeds in seeds_of_rows(found):
        (row,) = average_seeds(seeds)
        chosen = seeds[0].selected
        choice = "" if chosen is None else f"values chosen: {chosen.summary}"
        row["note"] = "; ".join(filter(None, (remark(seeds[0]), row["note"], choice)))
        for column in ("dataset", "method", "backbone", "epochs", "source", "note"):
            row[column] = visible(row[column], None)
        cited = row["origin"] == "published"
        row["track"] = AS_PUBLISHED if cited else track_of(seeds[0])
        row["plot"] = uses_plot(seeds[0])
        row["footnotes"] = ""
        data = seeds[0].recipe.resolved.get("data", {})
        views = [data.get("augment"), *(data.get("augment_views") or ())]
        names = [AUGMENTATIONS.get(str(view), str(view)) for view in views if view]
        row["augmentation"] = visible(", ".join(dict.fromkeys(names)) or UNKNOWN, None)
        row["selection"] = seeds[0].selection
        released = seeds[0].imported
        if released is not None:
            row["augmentation"] = UNKNOWN
            row["selection"] = CHOICES[released.chosen_on_test]
        row.update({f"{fact}_from": UNKNOWN if cited else "record" for fact in FACTS})
        if released is not None:
            row.update({f"{f}_from": UNKNOWN for f in FACTS if row[f] == UNKNOWN})
        name, because = record_setting(seeds[0], row)
        row.update(setting=name, because=because)
        ours.append(row if cited else {**row, "records": seeds})
    printed = [*map(_cited, published())]
    settle(printed)
    rows = [*ours, *printed]
    _mark_ties(rows)
    return rows


def _of_their_recipes(found: Sequence[Record]) -> list[Record]:
    """Return the records but those, named in a warning, that are not of the recipe of their name.

    Records of other versions of ltbench, which cannot tell, and verified ones stay.
    """
    from ltbench.config.files import get_recipe

    get = functools.cache(get_recipe)  # one recipe has many rows
    problems: dict[tuple[Any, ...], str] = {}
    kept = []
    for record in found:
        recipe = record.recipe
        key = (recipe.name, recipe.digest, recipe.overrides, record.shortened)
        if key not in problems and record.origin != "paper":
            problems[key] = ""
            try:
                check_recipe(record, get)
            except OtherVersion:
                pass
            except UserError as error:
                problems[key] = str(error)
        if problems.get(key) and record.status != "verified":
            line = f"run {record.run_id[:12]} left aside: {problems[key]}"
            warnings.warn(visible(line, None), stacklevel=3)
        else:
            kept.append(record)
    return kept


def track_of(record: Record) -> str:
    """Return the track of a record as one line; only results of one track are ranked together.

    It holds the budget (epochs of the longest stage, so that a short second stage does not part
    one-stage from two-stage methods; a stage on stored features does not count beside others), a
    mark if the recipe was shortened, the source of the initial weights, and the content of training
    and test data. Of an imported model budget and start are not known.
    """
    hashes = (record.dataset.train_sha256, record.dataset.test_sha256)
    data = f"data {'/'.join(map(_abbreviated, hashes))}"
    if record.imported is not None:
        return f"{IMPORTED}, {data}"
    resolved = record.recipe.resolved
    steps = resolved.get("run", {}).get("max_steps")
    trained = [s for s in resolved.get("stages", ()) if s.get("features") != "cached"]
    epochs = max((s.get("epochs") or 0 for s in trained), default=0)
    budget = f"{epochs} epochs" if steps is None else f"{steps} steps"
    if epochs == 0:
        budget = "classifiers on stored features"
    start = initial_weights(resolved, named=True)
    begin = "from scratch" if start is None else f"from {_source(start)}"
    return ", ".join([budget, *(["shortened"] if record.shortened else []), begin, data])


def uses_plot(record: Record) -> bool:
    """Return whether a stage of a record's recipe takes PLOT steps."""
    updates = [stage.get("update") or {} for stage in record.recipe.resolved.get("stages", ())]
    return any(update.get("name") == "plot" for update in updates)


def is_tie(best: Mapping[Any, Any], row: Mapping[Any, Any]) -> bool:
    """Return whether two results are a tie.

    They are where the intervals mean ± standard deviation overlap; where one has no spread, they
    are if they differ by less than half a point, or by no more than the spread of the other.

    Args:
        best: the better row.
        row: the other one.
    """
    behind = round(best["overall"] - row["overall"], 9)
    spreads = [s for s in (best["overall_std"], row["overall_std"]) if s is not None]
    if len(spreads) == 2:
        return bool(behind <= sum(spreads))
    return bool(behind < UNRESOLVED or behind <= sum(spreads))


def plain_markdown(text: str) -> str:
    """Return a text that Markdown shows as it stands, in a cell of a table too."""
    for sign in "\\`*_[]<>|~":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def _mark_ties(rows: Sequence[Row]) -> None:
    """Set ``tie`` for the best row of a track and those that tie with it, if there are any.

    Rows whose setting is not stated are not known to be comparable, and have no ties.
    """
    sections: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        sections.setdefault((place(row), row["setting"], row["track"]), []).append(row)
    for section in sections.values():
        best = max(section, key=lambda row: row["overall"])
        ties = [is_tie(best, row) for row in section]
        tied = [row for row, tie in zip(section, ties, strict=True) if tie]
        printed_once = {(row["method"], row["backbone"], row["overall"]) for row in tied}
        several = len(printed_once) > 1 and best["setting"] != UNKNOWN
        for row, tie in zip(section, ties, strict=True):
            row["tie"] = tie and several


def _cited(row: Row) -> Row:
    """Return a published row with the columns of the table."""
    base, plot = row["method"].removesuffix(" + PLOT"), row["method"].endswith(" + PLOT")
    title = usual_title(base)
    return {
        **{c: row[c] for c in ("dataset", "backbone", "source")},
        **{c: row[c] for fact in FACTS for c in (fact, f"{fact}_from")},
        "method": f"{title} + PLOT" if plot else title,
        "printed": row["method"],
        "imbalance_ratio": float(row["imbalance_ratio"]),
        **{v: float(row[v]) if row.get(v) else None for v in VALUES},
        **{f"{v}_std": None for v in VALUES},
        "track": AS_PUBLISHED,
        "plot": plot,
        "n": None,
        "origin": "published",
        "status": "paper",
        "note": "" if title == base else f"printed as {base}",
        "footnotes": ",".join(marks(row)),
        "table_marks": ",".join(marks(row, "table")),
    }


def _choice(name: str, value: str, known: Sequence[str]) -> str:
    if value and value not in known:
        raise UserError(
            f"`{name}`: expected {' or '.join(known)}, found `{value}`{did_you_mean(value, known)}"
        )
    return value


def _number(value: str | float, name: str = "ratio") -> float | None:
    try:
        return float(value) if value != "" else None
    except ValueError as error:
        raise UserError(f"`{name}`: expected a number such as 100, found `{value}`") from error


def _order(row: Row, column: str) -> tuple[Any, ...]:
    """Sort by section, then by a column: best first, missing values last."""
    return (*section_order(row), *_worth(row, column), *_worth(row, "overall"))


def section_order(row: Row) -> tuple[Any, ...]:
    """Return a section's sort key: data set, ratio, setting, ours in full, shortened, published."""
    where = (tuple(natural(row["dataset"].lower())), row["imbalance_ratio"], rank(row["setting"]))
    track = row["track"]
    return (*where, track == AS_PUBLISHED, ", shortened" in track, tuple(natural(track)))


def _worth(row: Row, column: str) -> tuple[Any, ...]:
    value = row.get(column)
    if value in (None, ""):
        return (1,)
    if isinstance(value, str):
        return (0, natural(value.lower()))
    rising = column in ("ece", "imbalance_ratio") or column.endswith("_std")
    return (0, value if rising else -value)


def _abbreviated(digest: str) -> str:
    """Return the beginning of a hash, which may follow the name of its kind and a colon."""
    return digest.rpartition(":")[2][:6]


def _source(start: str) -> str:
    """Return a source of weights, of a hash its beginning, after the name if there is one."""
    if start.startswith("sha256:"):
        digest, _, name = start.partition(" ")
        return f"{name.strip('()') or 'weights'} {_abbreviated(digest)}"
    return start[:8] if len(start) >= 32 and ":" not in start else start


def place(row: Mapping[Any, Any]) -> str:
    """Return the data set and ratio of a row as a heading."""
    return f"{row['dataset']}, ratio {row['imbalance_ratio']:g}"
