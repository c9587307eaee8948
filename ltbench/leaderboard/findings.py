"""What the committed runs show: gains of PLOT, printed gains set against them, and what makes them.

Example::

    from ltbench.leaderboard.findings import find

    for place in find().places:
        print(place.heading, [gain.title for gain in place.gains])

``ltbench.leaderboard.findings_text`` writes it out. Nothing but records enters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ltbench.config.resources import recipes_dir
from ltbench.config.yaml_text import read_yaml_file
from ltbench.digest import canonical
from ltbench.leaderboard.comparisons import CONFOUNDERS, ENDINGS, GRIDS, LADDER, SOLVED, SOLVERS
from ltbench.leaderboard.gains import NETWORK, Gain, Row, contrast_of, printed_gain, time_ratio
from ltbench.leaderboard.reproduce import changed
from ltbench.leaderboard.settings import is_small
from ltbench.leaderboard.tables import track_of
from ltbench.records.aggregate import imbalance_ratio, seeds_of_rows
from ltbench.records.literature import same_ratio
from ltbench.records.record import Record
from ltbench.records.store import records
from ltbench.records.titles import dataset_title, method_title, network_title

PLOT = re.compile(r"_plot(?=_|$)")  # such a recipe's baseline is the one without


@dataclass(frozen=True)
class Place:
    """Gains of PLOT in one table: a data set, a network, a budget.

    Args:
        heading: what they have in common.
        dataset: title.
        small: they are of the small track.
        shortened: they are of shortened runs, which are not set against printed numbers.
        gains: by method.
    """

    heading: str
    dataset: str
    small: bool
    shortened: bool
    gains: tuple[Gain, ...]


@dataclass(frozen=True)
class Solvers:
    """Gains of the solvers on several methods.

    Args:
        ending: of the recipes, a key of ``ENDINGS``.
        gains: by name in ``SOLVERS``, one for each method that has runs.
    """

    ending: str
    gains: dict[str, tuple[Gain, ...]]


@dataclass(frozen=True)
class Progress:
    """Runs of a grid that have a record.

    Args:
        grid: its name.
        done: number of runs with a record.
        total: number of its runs.
    """

    grid: str
    done: int
    total: int


@dataclass(frozen=True)
class Findings:
    """What the records show.

    Args:
        runs: number of records.
        recipes: number of their recipes.
        places: gains of PLOT.
        ladder: contributions of the parts of PLOT, by ending of the recipes.
        solvers: gains of the solvers.
        confounders: contributions of what the released code changes, by ending of the recipes.
        progress: of the grids of the small track.
    """

    runs: int
    recipes: int
    places: tuple[Place, ...]
    ladder: dict[str, tuple[Gain, ...]]
    solvers: tuple[Solvers, ...]
    confounders: dict[str, tuple[Gain, ...]]
    progress: tuple[Progress, ...]


def find(folder: Path | None = None) -> Findings:
    """Return what the records of a folder show, by default the committed ones.

    Args:
        folder: of records.
    """
    return findings(records(folder))


def findings(found: Iterable[Record]) -> Findings:
    """Return what some records show; imported models and numbers of papers are left out.

    Args:
        found: sound records.
    """
    rows = seeds_of_rows(record for record in found if record.origin == "reproduced")
    whole = {
        (row[0].recipe.name, row[0].dataset.train_sha256): row
        for row in rows
        if not row[0].shortened and not row[0].recipe.overrides
    }
    ladder = {end: tuple(_ladder(whole, end)) for end in ENDINGS}
    confounders = {end: tuple(_confounders(whole, end)) for end in ENDINGS}
    solvers = [Solvers(end, _solvers(whole, end)) for end in ENDINGS]
    return Findings(
        runs=sum(map(len, rows)),
        recipes=len({row[0].recipe.digest for row in rows}),
        places=tuple(_places(rows)),
        ladder={end: gains for end, gains in ladder.items() if gains},
        solvers=tuple(part for part in solvers if part.gains),
        confounders={end: gains for end, gains in confounders.items() if gains},
        progress=tuple(_progress(whole.values())),
    )


def _places(rows: Sequence[Row]) -> list[Place]:
    """Return the gains of PLOT by table: the small track first, shortened runs last."""
    named = {_identity(row[0]): row for row in rows}
    found: dict[tuple[int, str, str, str], list[Gain]] = {}
    for row in rows:
        first = row[0]
        if not PLOT.search(first.recipe.name):
            continue
        base = named.get(_identity(first, PLOT.sub("", first.recipe.name, count=1)))
        contrast = None if base is None else contrast_of(base, row)
        if base is None or contrast is None:
            continue
        dataset, ratio = dataset_title(first.dataset.name), imbalance_ratio(first)
        network = network_title(first.recipe.resolved.get("backbone", {}))
        title = method_title(base[0].recipe.name)
        small = is_small(first)
        comparable = small or (not first.shortened and network == NETWORK)
        printed = printed_gain(dataset, ratio, title, f"{title} + PLOT") if comparable else None
        if printed is not None and not same_ratio(dataset, printed.ratio, ratio):
            printed = None
        kind = 0 if small else 2 if first.shortened else 1
        track, _, data = track_of(first).rpartition(", data ")
        what = "small track" if small else f"{network}, {track}"
        place = (kind, f"{dataset}, ratio {ratio:g}, {what}", dataset, data)
        gain = Gain(title, contrast, printed, time_ratio(base, row), ratio)
        found.setdefault(place, []).append(gain)
    headings = [heading for _, heading, _, _ in found]
    return [
        Place(
            heading if headings.count(heading) == 1 else f"{heading}, data {data}",
            dataset,
            small=kind == 0,
            shortened=kind == 2,
            gains=tuple(sorted(gains, key=_order)),
        )
        for (kind, heading, dataset, data), gains in sorted(found.items())
    ]


def _order(gain: Gain) -> tuple[float, str]:
    return (-gain.overall.estimate.mean, gain.title)


def _identity(record: Record, name: str = "") -> tuple[str, ...]:
    """Return what a run and its baseline have in common: all but the update."""
    options = {k: v for k, v in changed(record).items() if ".update." not in k}
    data = record.dataset
    return (
        name or record.recipe.name,
        *(data.name, data.train_sha256, data.test_sha256),
        canonical(list(record.shortened)),
        canonical(options),
    )


Whole = Mapping[tuple[str, str], Row]  # rows of unchanged recipes, by name and training images


def _ladder(whole: Whole, end: str) -> Iterable[Gain]:
    for title, base, other, names in LADDER:
        for gain in _between(whole, title, _name(base, end), _name(other, end)):
            printed = printed_gain("CIFAR-10-LT", gain.ratio, *names)
            yield Gain(title, gain.contrast, printed, gain.time, gain.ratio)


def _confounders(whole: Whole, end: str) -> Iterable[Gain]:
    for title, base, other in CONFOUNDERS:
        yield from _between(whole, title, _name(base, end), _name(other, end))


def _solvers(whole: Whole, end: str) -> dict[str, tuple[Gain, ...]]:
    """Return the gains of each solver that has runs, by its name."""
    found = {}
    for name, variant, words in SOLVERS:
        gains = []
        for method in SOLVED:
            base, other = f"{method}_cifar10{end}", f"{method}_moo_cifar10{variant}{end}"
            for gain in _between(whole, method_title(base), base, other):
                row = f"{gain.title} {words}"
                printed = printed_gain("CIFAR-10-LT", gain.ratio, gain.title, row)
                gains.append(Gain(gain.title, gain.contrast, printed, gain.time, gain.ratio))
        if gains:
            found[name] = tuple(gains)
    return found


def _name(recipe: tuple[str, str], end: str) -> str:
    stem, variant = recipe
    return f"{stem}{variant}{end}"


def _between(whole: Whole, title: str, base: str, other: str) -> Iterable[Gain]:
    """Yield the gain of a recipe over another one on each content of the data, the first only."""
    for (name, images), row in whole.items():
        without = whole.get((base, images)) if name == other else None
        contrast = None if without is None else contrast_of(without, row)
        if without is not None and contrast is not None:
            yield Gain(title, contrast, None, time_ratio(without, row), imbalance_ratio(row[0]))
            return


def _progress(rows: Iterable[Row]) -> list[Progress]:
    done = {(record.recipe.name, record.seed) for row in rows for record in row}
    found = []
    for name in GRIDS:
        grid = read_yaml_file(recipes_dir() / "grids" / f"{name}.yaml")
        cells = {(recipe, seed) for recipe in grid["recipes"] for seed in grid["seeds"]}
        found.append(Progress(name, len(cells & done), len(cells)))
    return found
