"""Gain of a change over runs with and without it, and a printed gain set against it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ltbench.records.compare import compare_runs
from ltbench.records.contrasts import Contrast, Difference
from ltbench.records.literature import published, same_ratio
from ltbench.records.record import Record
from ltbench.records.runs import Run
from ltbench.records.titles import key, usual_title

NETWORK = "ResNet-32"  # of the printed results on CIFAR
Row = Sequence[Record]  # runs of a recipe that differ in the seed
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
    """Return a printed name with the usual title of its method."""
    base = method.removesuffix(" + PLOT")
    return usual_title(base) + method[len(base) :]


def contrast_of(base: Row, row: Row) -> Contrast | None:
    """Return the paired differences of two rows; None if they share no seed."""
    if not {record.seed for record in base} & {record.seed for record in row}:
        return None
    runs = [Run(record) for record in (*base, *row)]
    return compare_runs(runs, base[0].recipe.digest).contrasts[0]


def time_ratio(base: Row, row: Row) -> float | None:
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
