"""Comparison of methods with a baseline over the seeds that they share.

Example::

    found = ltbench.compare("runs/grid", baseline="ce_cifar10", out="comparison")
    print(found)                      # tables, and in words what is resolved and what is not
    found.contrasts[0].groups[0].estimate.low
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ltbench.data.shots import shot_groups
from ltbench.errors import UserError
from ltbench.evaluation.metrics import Metrics
from ltbench.records.aggregate import VALUES, percentages
from ltbench.records.arms import Arms, check_same_data, notes_on, with_baseline
from ltbench.records.contrasts import Contrast, Contrasts, Difference
from ltbench.records.paired import (
    Estimate,
    holm,
    image_variance,
    mcnemar,
    paired_t,
    with_images,
)
from ltbench.records.runs import Predictions, Run, distinct, find_runs, read_predictions
from ltbench.records.titles import dataset_title

if TYPE_CHECKING:
    import pandas as pd


class Comparison(Contrasts):
    """Comparison of methods with a baseline, which can be printed and written to files."""

    def write(self, out: str | Path) -> list[Path]:
        """Write compare.csv, .md, .tex, .json and .png into a folder, and return their paths.

        Args:
            out: the folder; it is made if need be.

        Raises:
            UserError: they cannot be written.
        """
        from ltbench.records.compare_files import write_comparison

        return write_comparison(self, Path(out))

    def frame(self) -> pd.DataFrame:
        """Return a row per method and value, and per method and class."""
        from ltbench.records.compare_files import frame

        return frame(self)

    def __repr__(self) -> str:
        """Return the tables as text."""
        from ltbench.records.compare_text import text_lines

        return "\n".join(text_lines(self))


def compare(
    runs: str | Path | Sequence[str | Path],
    baseline: str | Path,
    *,
    out: str | Path | None = None,
) -> Comparison:
    """Return the paired differences of methods to a baseline, over the seeds that they share.

    Args:
        runs: folders of runs or grids, record files, patterns of these, or names of committed
            records (``NAME`` or ``NAME.SEED``).
        baseline: name of a recipe among them, or runs given like the others.
        out: folder that the comparison is written to.

    Raises:
        UserError: a run is not found, the images differ, or no seed is shared.
    """
    words = [runs] if isinstance(runs, str | Path) else list(runs)
    found = distinct([run for word in words for run in find_runs(word)])
    result = compare_runs(found, str(baseline))
    if out is not None:
        result.write(out)
    return result


def compare_runs(runs: Sequence[Run], baseline: str) -> Comparison:
    """Return the comparison of runs that were found; arguments and errors as ``compare``."""
    arms, base = with_baseline(runs, baseline)
    others = [label for label in arms if label != base]
    if not others:
        raise UserError(
            f"expected runs of another recipe than the baseline {base}, found none; name them too"
        )
    check_same_data(arms, base)
    notes: list[str] = []
    contrasts = [_contrast(arms, base, label, notes) for label in others]
    first = next(iter(arms[base].values())).record
    return Comparison(
        base,
        dataset_title(first.dataset.name),
        first.metrics.class_counts,
        _corrected(contrasts),
        (*notes, *notes_on(arms)),
    )


def _contrast(arms: Arms, base: str, label: str, notes: list[str]) -> Contrast:
    ours, theirs = arms[label], arms[base]
    seeds = tuple(sorted(set(ours) & set(theirs)))
    if not seeds:
        raise UserError(
            f"{label} and {base} share no seed: expected runs with the same seeds, found "
            f"{_listed(ours)} and {_listed(theirs)}"
        )
    for name, alone in ((label, set(ours) - set(seeds)), (base, set(theirs) - set(seeds))):
        if alone:
            notes.append(
                f"{name}: seeds {', '.join(map(str, sorted(alone)))} left out of the comparison "
                f"of {label} and {base}, which do not share them"
            )
    pairs = [(theirs[s].record, ours[s].record) for s in seeds]
    images = _images([(theirs[s], ours[s]) for s in seeds])
    metrics = pairs[0][0].metrics.with_rule("strict")
    groups = shot_groups(metrics.class_counts, "strict")
    tested = [k for k, total in enumerate(metrics.total) if total]
    values = [(percentages(a), percentages(b)) for a, b in pairs]
    found = []
    for name in VALUES:
        sides = [(a[name], b[name]) for a, b in values]
        numbers = [(x, y) for x, y in sides if x is not None and y is not None]
        if numbers:
            classes = tested if name == "overall" else groups.get(name, [])
            found.append(_difference(name, numbers, images, classes, name != "overall"))
    by_class = [
        _difference(
            str(k),
            [(_recall(a.metrics, k), _recall(b.metrics, k)) for a, b in pairs],
            images,
            [k],
            True,
        )
        for k in tested
    ]
    return Contrast(label, seeds, tuple(found), tuple(by_class))


def _recall(metrics: Metrics, k: int) -> float:
    return 100 * metrics.correct[k] / metrics.total[k]


@dataclass(frozen=True)
class _Images:
    """Test images of a contrast: their classes, and how often each model is right.

    Args:
        labels: class of each image [N].
        gains: right minus right of the baseline, mean over seeds [N].
    """

    labels: np.ndarray
    gains: np.ndarray


def _images(pairs: Sequence[tuple[Run, Run]]) -> _Images | None:
    """Return the predictions of all pairs of runs; None if some are not there."""
    labels: np.ndarray | None = None
    gains = []
    for base, ours in pairs:
        one = read_predictions(base)
        other = None if one is None else read_predictions(ours)
        if one is None or other is None or not _same_images(one, other, labels):
            return None
        labels = one.labels
        gains.append(other.right.astype(float) - one.right)
    return None if labels is None else _Images(labels, np.mean(gains, axis=0))


def _same_images(one: Predictions, other: Predictions, labels: np.ndarray | None) -> bool:
    first = one.labels if labels is None else labels
    return np.array_equal(one.labels, other.labels) and np.array_equal(one.labels, first)


def _difference(
    name: str,
    pairs: Sequence[tuple[float, float]],
    images: _Images | None,
    classes: Sequence[int],
    mean_recall: bool,
) -> Difference:
    """Return the difference of a value; ``classes`` are those that it is computed from."""
    by_seed = tuple(y - x for x, y in pairs)
    estimate, interval = paired_t(by_seed), None
    if images is not None and classes:
        variance, count = image_variance(
            images.gains, images.labels, classes, mean_recall=mean_recall
        )
        interval = with_images(estimate, 1e4 * variance, count)
        if len(pairs) == 1:
            gains = images.gains[np.isin(images.labels, classes)]
            p = mcnemar(int((gains > 0).sum()), int((gains < 0).sum()))
            estimate = Estimate(estimate.mean, None, 1, p=p)
    means = [float(np.mean(side)) for side in zip(*pairs, strict=True)]
    return Difference(name, means[0], means[1], by_seed, estimate, None, interval)


def _corrected(contrasts: Sequence[Contrast]) -> tuple[Contrast, ...]:
    """Return the contrasts with p values corrected over the methods, value by value."""
    adjusted: dict[tuple[int, str], float | None] = {}
    for name in VALUES:
        places = [(i, d) for i, c in enumerate(contrasts) for d in c.groups if d.name == name]
        ps = holm([d.estimate.p for _, d in places])
        adjusted.update({(i, name): p for (i, _), p in zip(places, ps, strict=True)})
    return tuple(
        replace(c, groups=tuple(replace(d, p_holm=adjusted.get((i, d.name))) for d in c.groups))
        for i, c in enumerate(contrasts)
    )


def _listed(seeds: Mapping[int, Run]) -> str:
    return ", ".join(map(str, sorted(seeds)))
