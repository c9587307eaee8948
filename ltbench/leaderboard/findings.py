"""What the committed runs show: gains of PLOT, printed gains set against them, and what makes them.

Example::

    from ltbench.leaderboard.findings import find

    for place in find().places:
        print(place.heading, [gain.title for gain in place.gains])

``ltbench.leaderboard.findings_text`` writes it out. Nothing but records enters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from ltbench.config.resources import recipes_dir
from ltbench.config.yaml_text import read_yaml_file
from ltbench.digest import canonical
from ltbench.leaderboard.reproduce import changed
from ltbench.leaderboard.settings import is_small
from ltbench.leaderboard.tables import track_of
from ltbench.records.aggregate import imbalance_ratio, seeds_of_rows
from ltbench.records.compare import compare_runs
from ltbench.records.contrasts import Contrast, Difference
from ltbench.records.literature import published, same_ratio
from ltbench.records.record import Record
from ltbench.records.runs import Run
from ltbench.records.store import records
from ltbench.records.titles import dataset_title, key, method_title, network_title, usual_title

PLOT = re.compile(r"_plot(?=_|$)")  # such a recipe's baseline is the one without
NETWORK = "ResNet-32"  # of the printed results on CIFAR
ENDINGS = {"_small": "small track", "": "ratio 100", "_if200": "ratio 200", "_if50": "ratio 50"}
"""Endings of the recipes that a contribution is looked for in, and what they mean."""
GRIDS = (
    *("small_cifar10", "small_table4_ladder", "small_table1_solvers", "small_confounders"),
    "small_cifar100",
)
LADDER = (  # name, recipes without and with it, the printed rungs
    (
        "window: the classes are objectives in the first epochs",
        ("crt_mixup_cifar10", ""),
        ("crt_mixup_moo_cifar10", "_paper"),
        ("cRT+Mixup", "cRT+Mixup + temporal design"),
    ),
    (
        "climb: the gradients are those after an ascent step",
        ("crt_mixup_moo_cifar10", "_paper"),
        ("crt_mixup_moo_sam_cifar10", ""),
        (
            "cRT+Mixup + temporal design",
            "cRT+Mixup + temporal design + anticipated worst case",
        ),
    ),
    (
        "collapse term: the variance of each class's losses",
        ("crt_mixup_moo_sam_cifar10", ""),
        ("crt_mixup_plot_cifar10", ""),
        (
            "cRT+Mixup + temporal design + anticipated worst case",
            "cRT+Mixup + temporal design + anticipated worst case + variability collapse",
        ),
    ),
)
CONFOUNDERS = (  # name, recipes without and with it
    (
        "un-mixed labels in the first epochs, nothing else of PLOT",
        ("crt_mixup_cifar10", ""),
        ("plot_official_cifar10", "_unmixed_only_plain_crt"),
    ),
    (
        "the released stage 2 in the place of cRT's",
        ("plot_official_cifar10", "_plain_crt"),
        ("plot_official_cifar10", ""),
    ),
    (
        "both of these, nothing else of PLOT",
        ("crt_mixup_cifar10", ""),
        ("plot_official_cifar10", "_unmixed_only"),
    ),
    (
        "objectives, climb and collapse term, both of these on either side",
        ("plot_official_cifar10", "_unmixed_only"),
        ("plot_official_cifar10", ""),
    ),
    (
        "all that the released code changes",
        ("crt_mixup_cifar10", ""),
        ("plot_official_cifar10", ""),
    ),
)
SOLVED = ("crt_mixup", "ldam_drw", "balanced_softmax", "m2m", "mislas", "gcl")
SOLVERS = (  # name, variant of the recipe, words of the printed row
    ("EPO throughout", "_epo_naive", "w/ EPO (naive, no early stop)"),
    ("MGDA throughout", "_mgda_naive", "w/ MGDA (naive, no early stop)"),
    ("CAGrad throughout", "_cagrad_naive", "w/ CAGrad (naive, no early stop)"),
    ("EPO, early stop", "_epo", "w/ EPO (early stop)"),
    ("MGDA, early stop", "_mgda", "w/ MGDA (early stop)"),
    ("CAGrad, early stop", "", "w/ CAGrad (early stop)"),
)

Verdict = Literal["holds", "noise", "refuted", "one seed", "not set against"]


class Printed(NamedTuple):
    """A gain that a paper prints.

    Args:
        value: in points.
        ratio: imbalance ratio that it is printed at.
        source: the table.
    """

    value: float
    ratio: float
    source: str


@dataclass(frozen=True)
class Gain:
    """What one change does, over the seeds that runs with and without it share.

    Args:
        title: of the method, or of the change.
        contrast: paired differences, in points.
        printed: what is printed of the same change; None if nothing is, or nothing comparable.
        time: time of a run with the change over that without, mean over seeds; None if the
            hardware differs or the record does not say.
        ratio: imbalance ratio.
    """

    title: str
    contrast: Contrast
    printed: Printed | None = None
    time: float | None = None
    ratio: float = 100.0

    def difference(self, name: str) -> Difference | None:
        """Return the difference in overall, many, medium, few or ece; None if there is none."""
        return next((d for d in self.contrast.groups if d.name == name), None)

    @property
    def overall(self) -> Difference:
        """Difference in overall accuracy."""
        return next(d for d in self.contrast.groups if d.name == "overall")

    @property
    def verdict(self) -> Verdict:
        """Whether the printed gain holds, see ``verdict``."""
        return verdict(self.overall, None if self.printed is None else self.printed.value)


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


def verdict(difference: Difference, printed: float | None) -> Verdict:
    """Return whether a printed gain holds, by the 95 % interval of ours over seeds.

    It holds if the interval lies on its side of 0. It is refuted if the interval lies on the other
    side, or if it excludes a gain as large as the printed one and shows none; else ours is within
    noise.

    Args:
        difference: ours.
        printed: in points; None if nothing is printed, or nothing comparable.
    """
    if printed is None:
        return "not set against"
    e = difference.estimate
    if e.n == 1:
        return "one seed"
    if e.low is None or e.high is None:
        return "noise"
    low, high = (e.low, e.high) if printed >= 0 else (-e.high, -e.low)
    if low > 0:
        return "holds"
    return "refuted" if high < abs(printed) else "noise"


def side(difference: Difference) -> int:
    """Return 1 or -1 if the interval over seeds lies above or below 0, else 0."""
    e = difference.estimate
    if e.low is None or e.high is None:
        return 0
    return int(e.low > 0) - int(e.high < 0)


def printed_gain(
    dataset: str, ratio: float, base: str, method: str, network: str = NETWORK
) -> Printed | None:
    """Return the gain of a printed row over another one of the same table.

    Of several tables at one ratio that differ, the smallest gain is taken: what refutes it refutes
    them all. If there is none at the ratio, the one at the nearest ratio is taken.

    Args:
        dataset: title.
        ratio: imbalance ratio.
        base: printed name of the row without the change.
        method: printed name of the row with it.
        network: title of the backbone.
    """
    tables: dict[tuple[str, float], dict[str, float]] = {}
    for row in published():
        if row["dataset"] == dataset and row["backbone"] == network:
            for name in {row["method"], _usual(row["method"])}:
                place = (row["source"], float(row["imbalance_ratio"]))
                tables.setdefault(place, {}).setdefault(key(name), float(row["overall"]))
    gains = [
        Printed(round(table[key(method)] - table[key(base)], 4), at, source)
        for (source, at), table in tables.items()
        if key(method) in table and key(base) in table
    ]
    if not gains:
        return None
    here = [gain for gain in gains if same_ratio(dataset, gain.ratio, ratio)]
    if not here:
        nearest = min(abs(math.log(gain.ratio / ratio)) for gain in gains)
        here = [g for g in gains if abs(math.log(g.ratio / ratio)) <= nearest + 1e-9]
    return min(here, key=lambda gain: abs(gain.value))


def _usual(method: str) -> str:
    base = method.removesuffix(" + PLOT")
    return usual_title(base) + method[len(base) :]


Row = Sequence[Record]


def _places(rows: Sequence[Row]) -> list[Place]:
    """Return the gains of PLOT by table: the small track first, shortened runs last."""
    named = {_identity(row[0]): row for row in rows}
    found: dict[tuple[int, str, str, str], list[Gain]] = {}
    for row in rows:
        first = row[0]
        if not PLOT.search(first.recipe.name):
            continue
        base = named.get(_identity(first, PLOT.sub("", first.recipe.name, count=1)))
        contrast = None if base is None else _contrast(base, row)
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
        gain = Gain(title, contrast, printed, _time(base, row), ratio)
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
        contrast = None if without is None else _contrast(without, row)
        if without is not None and contrast is not None:
            yield Gain(title, contrast, None, _time(without, row), imbalance_ratio(row[0]))
            return


def _contrast(base: Row, row: Row) -> Contrast | None:
    """Return the paired differences of two rows; None if they share no seed."""
    if not {record.seed for record in base} & {record.seed for record in row}:
        return None
    runs = [Run(record) for record in (*base, *row)]
    return compare_runs(runs, base[0].recipe.digest).contrasts[0]


def _time(base: Row, row: Row) -> float | None:
    """Return the time of a run over that of its baseline, the geometric mean over shared seeds."""
    others = {record.seed: record.execution for record in base}
    ratios = []
    for record in row:
        ours, theirs = record.execution, others.get(record.seed)
        if theirs is None:
            continue
        same = all(
            getattr(ours, k) == getattr(theirs, k)
            for k in ("device", "cpu", "gpu", "ranks", "threads", "precision")
        )
        if not same or min(ours.wall_seconds, theirs.wall_seconds) <= 0:
            return None
        ratios.append(math.log(ours.wall_seconds / theirs.wall_seconds))
    return math.exp(sum(ratios) / len(ratios)) if ratios else None


def _progress(rows: Iterable[Row]) -> list[Progress]:
    done = {(record.recipe.name, record.seed) for row in rows for record in row}
    found = []
    for name in GRIDS:
        grid = read_yaml_file(recipes_dir() / "grids" / f"{name}.yaml")
        cells = {(recipe, seed) for recipe in grid["recipes"] for seed in grid["seeds"]}
        found.append(Progress(name, len(cells & done), len(cells)))
    return found
