"""Words for measurements and their uncertainty, for the sentences of diagnostics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ltbench.diagnose.tables import MINUS, number_text

Numbers = Sequence[float] | np.ndarray

LEVEL = 0.05  # two-sided level below which a difference is called one


def interval(share: float, images: int) -> float:
    """Return half the 95 % interval of a share of images, by Agresti and Coull.

    Args:
        share: observed share, in [0, 1].
        images: number of images it was observed on.
    """
    p = (share * images + 2) / (images + 4)
    return float(1.96 * np.sqrt(p * (1 - p) / (images + 4)))


def percent(share: float, error: float | None = None) -> str:
    """Return a share in percent as text, with its error."""
    spread = "" if error is None else f" ± {100 * error:.1f}"
    return f"{100 * share:.1f}{spread} %"


def number(value: float) -> str:
    """Return a number with at most three significant digits as text."""
    if not np.isfinite(value) or value == 0 or not 1e-4 <= abs(value) < 1e15:
        return number_text(value) or "not defined"
    if value == int(value):
        return number_text(value)
    places = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:,.{places}f}".replace("-", MINUS)


def differ(first: Numbers, second: Numbers) -> bool:
    """Return whether the means of two samples differ, by Welch's test at the 5 % level."""
    from scipy.stats import ttest_ind

    a, b = (np.asarray(one, dtype=float) for one in (first, second))
    if min(len(a), len(b)) < 2:
        return False
    if a.std() == b.std() == 0:
        return bool(a.mean() != b.mean())
    return bool(ttest_ind(a, b, equal_var=False).pvalue < LEVEL)


def mean_percent(shares: Numbers) -> str:
    """Return the mean of shares with its standard error, in percent."""
    values = np.asarray(shares, dtype=float)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return percent(float(values.mean()), error)


def change(first: Numbers, second: Numbers) -> str:
    """Return how the mean of shares changed between two samples, as a verb and the numbers."""
    before, after = mean_percent(first), mean_percent(second)
    if np.array_equal(first, second):
        return f"is the same at both, {before}"
    if not differ(first, second):
        return f"did not change beyond the noise ({before}, then {after})"
    verb = "fell" if np.mean(second) < np.mean(first) else "rose"
    return f"{verb} from {before} to {after}"


def listing(items: Sequence[str]) -> str:
    """Return items with commas, and ``and`` before the last one."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
