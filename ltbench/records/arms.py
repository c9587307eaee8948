"""Runs to compare: grouped by recipe, labelled, and checked to be on the same images."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ltbench.config.tree import leaves
from ltbench.config.value_grid import label as label_of
from ltbench.errors import UserError, brief, did_you_mean, visible
from ltbench.records.aggregate import average_seeds, seeds_of_rows
from ltbench.records.record import Record
from ltbench.records.runs import Run, distinct, find_runs

NAMED = 12  # recipes in a message
SHOWN = 3  # values of a recipe in its label
Arms = Mapping[str, Mapping[int, Run]]  # runs by label and seed


def group_runs(runs: Sequence[Run]) -> Arms:
    """Return the runs of each recipe by seed."""
    order = {run.record.run_id: i for i, run in enumerate(runs)}
    groups = seeds_of_rows(run.record for run in runs)
    groups.sort(key=lambda seeds: min(order[record.run_id] for record in seeds))
    labels = _labels([seeds[0] for seeds in groups])
    return {
        label: {record.seed: runs[order[record.run_id]] for record in seeds}
        for label, seeds in zip(labels, groups, strict=True)
    }


def _labels(records: Sequence[Record]) -> list[str]:
    """Return a label for each recipe: its name, and the values in which recipes of it differ."""
    trees: dict[str, list[dict[str, str]]] = {}
    for record in records:
        values = {key: _text(value) for key, value in leaves(record.recipe.resolved)}
        trees.setdefault(record.recipe.name, []).append(values)
    varied = {name: _varied(same) for name, same in trees.items()}
    labels = []
    for record in records:
        own = trees[record.recipe.name].pop(0)
        keys = [key for key in varied[record.recipe.name] if key in own]
        shown = label_of({key: own[key] for key in keys[:SHOWN]})
        more = "..." if len(keys) > SHOWN else ""
        labels.append(" ".join(filter(None, (record.recipe.name, shown, more))))
    for same_label in set(labels):
        twins = [i for i, other in enumerate(labels) if other == same_label]
        for i in twins if len(twins) > 1 else ():
            digest, data = records[i].recipe.digest, records[i].dataset
            labels[i] = f"{same_label} ({digest[:8]}, {data.name}, {data.train_sha256[-6:]})"
    return labels


def _varied(trees: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys that some trees lack, then those with several values."""
    keys = sorted(set().union(*trees))
    lacking = [key for key in keys if any(key not in tree for tree in trees)]
    several = [key for key in keys if len({tree.get(key) for tree in trees}) > 1]
    return list(dict.fromkeys([*lacking, *several]))


def _text(value: Any) -> str:
    """Return a value of a recipe as it would be typed."""
    return visible(value) if isinstance(value, str) else brief(value)


def with_baseline(runs: Sequence[Run], word: str) -> tuple[Arms, str]:
    """Return the runs of each recipe, those of the baseline among them, and its label."""
    arms = group_runs(runs)
    named = [label for label, seeds in arms.items() if _is_named(label, seeds, word)]
    if not named:
        try:
            more = find_runs(word)
        except UserError as error:
            hint = did_you_mean(word, arms) or f"; the runs hold {_some(arms)}"
            raise UserError(
                f"`baseline`: expected the name of a recipe, or runs, found `{visible(word)}`{hint}"
            ) from error
        arms = group_runs(distinct([*runs, *more]))
        ids = {run.record.run_id for run in more}
        named = [
            label
            for label, seeds in arms.items()
            if any(run.record.run_id in ids for run in seeds.values())
        ]
    if len(named) != 1:
        raise UserError(
            f"`baseline`: expected one recipe, found {len(named)} with `{visible(word)}`: "
            f"{_some(named)}; give one of these"
        )
    return arms, named[0]


def _is_named(label: str, seeds: Mapping[int, Run], word: str) -> bool:
    recipe = next(iter(seeds.values())).record.recipe
    return word in (label, recipe.name, recipe.digest, recipe.digest[:8])


def _some(names: Collection[str]) -> str:
    """Return names, or the first of very many."""
    shown = list(names)[:NAMED]
    return ", ".join(shown) + (", ..." if len(names) > NAMED else "")


def check_same_data(arms: Arms, base: str) -> None:
    """Check that all runs were trained and tested on the images of the baseline.

    Raises:
        UserError: they were not; one line for each recipe.
    """
    first = next(iter(arms[base].values())).record
    problems = []
    for label, seeds in arms.items():
        record = next(iter(seeds.values())).record
        ours, theirs = record.dataset, first.dataset
        differ = [
            f"{what} ({getattr(ours, key)[-8:]}, {getattr(theirs, key)[-8:]})"
            for what, key in (("training images", "train_sha256"), ("test images", "test_sha256"))
            if getattr(ours, key) != getattr(theirs, key)
        ]
        if ours.name != theirs.name:
            differ.insert(0, f"data set ({ours.name}, {theirs.name})")
        if record.metrics.total != first.metrics.total and not differ:
            differ.append("test images of the classes")
        if differ:
            problems.append(
                f"{label} and {base} differ in {', '.join(differ)}: only runs on the same images "
                "can be compared; leave one out"
            )
    if problems:
        raise UserError("\n".join(problems))


def notes_on(arms: Arms) -> list[str]:
    """Return what a reader should know of the runs beside their seeds."""
    notes: list[str] = []
    short: dict[str, list[str]] = {}
    for label, seeds in arms.items():
        keys = sorted({key for run in seeds.values() for key in run.record.shortened})
        if keys:
            short.setdefault(", ".join(keys), []).append(label)
    for shortened, labels in short.items():
        who = "all runs" if len(labels) == len(arms) else ", ".join(labels)
        notes.append(f"{who}: shortened by {shortened}, not comparable with full runs")
    rows = {
        name: average_seeds(run.record for run in seeds.values())[0] for name, seeds in arms.items()
    }
    for what, heading in (("epochs", "epochs differ"), ("backbone", "backbones differ")):
        if len({row[what] for row in rows.values()}) > 1:
            listed = "; ".join(f"{name} {row[what] or '-'}" for name, row in rows.items())
            notes.append(f"{heading}: {listed}")
    records = [run.record for seeds in arms.values() for run in seeds.values()]
    versions = sorted({record.code.version for record in records})
    if len(versions) > 1:
        notes.append(f"the runs are of several versions of ltbench: {', '.join(versions)}")
    return notes
