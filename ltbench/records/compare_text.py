"""Comparison of methods as text: tables, and what is resolved in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ltbench.data.shots import shot_bounds, shot_groups
from ltbench.records.contrasts import Contrast, Contrasts, Difference
from ltbench.records.paired import ALPHA, MOST_SEEDS, seeds_needed

HEADS = {"ece": "ECE"}
LOWER = ("ece",)  # values of which less is better
COLUMNS = ("", "baseline", "method", "difference", "95 % interval", "p")


def text_lines(comparison: Contrasts) -> list[str]:
    """Return tables and sentences, one line each."""
    several = len(comparison.contrasts) > 1
    lines = [f"{comparison.dataset}, percentage points against the baseline {comparison.baseline}"]
    for contrast in comparison.contrasts:
        table = [[*COLUMNS[:-1], "p Holm" if several else "p"]]
        for d in contrast.groups:
            numbers = [f"{d.baseline:.2f}", f"{d.mean:.2f}", spread(d), interval(d)]
            table.append([title(d.name), *numbers, p_text(d.p_holm)])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += ["", f"{contrast.label}, {seeds_text(contrast)}"]
        lines += [_line(cells, widths) for cells in table]
        lines += sentences(contrast, len(comparison.contrasts))
    lines += ["", *legend(comparison), *comparison.notes]
    return lines


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])


def title(name: str) -> str:
    """Return the heading of a value."""
    return HEADS.get(name, name)


def seeds_text(contrast: Contrast) -> str:
    """Return number and list of the seeds of a contrast."""
    seeds = ", ".join(map(str, contrast.seeds))
    return f"n = {len(contrast.seeds)} ({'seed' if len(contrast.seeds) == 1 else 'seeds'} {seeds})"


def spread(difference: Difference) -> str:
    """Return mean and standard deviation of a difference."""
    e = difference.estimate
    return f"{e.mean:+.2f}" if e.sd is None else f"{e.mean:+.2f} ± {e.sd:.2f}"


def interval(difference: Difference) -> str:
    """Return the interval of a difference, that for new images if there is one seed."""
    ends = bounds(difference)
    return "-" if ends is None else f"{ends[0]:+.2f} to {ends[1]:+.2f}"


def bounds(difference: Difference) -> tuple[float, float] | None:
    """Return the interval over seeds; with one seed, that over test images, if there is one."""
    e = difference.estimate
    if e.low is None or e.high is None:
        return difference.images if e.n == 1 else None
    return e.low, e.high


def p_text(p: float | None) -> str:
    """Return a p value with two or three digits."""
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def resolved(difference: Difference) -> bool:
    """Return whether several seeds show a difference, after Holm's correction."""
    p = difference.p_holm
    return difference.estimate.n > 1 and p is not None and p < ALPHA


def sentences(contrast: Contrast, comparisons: int = 1) -> list[str]:
    """Return what is resolved and what is not, a sentence for each value.

    Args:
        contrast: of one method with the baseline.
        comparisons: number of methods compared.
    """
    lines = [f"{title(d.name)}: {verdict(d, comparisons)}" for d in contrast.groups]
    both = [d for d in contrast.groups if d.images is not None and d.estimate.n > 1]
    lines += [
        f"{title(d.name)}, for new test images too: {d.images[0]:+.2f} to {d.images[1]:+.2f}"
        for d in both
        if d.images is not None
    ]
    return lines


def verdict(difference: Difference, comparisons: int = 1) -> str:
    """Return in words whether a difference is resolved, and if not, how many seeds it would take.

    The number of seeds is that with which a paired t-test finds a difference of the observed size
    with 80 % power, at 0.05 over the number of comparisons.

    Args:
        difference: of one value.
        comparisons: number of methods compared.
    """
    e = difference.estimate
    if e.n == 1:
        return _one_seed(difference)
    if e.sd == 0:
        if e.mean == 0:
            return f"equal with all {e.n} seeds"
        return (
            f"not resolved: {e.mean:+.2f} with all {e.n} seeds, which shows no spread to test it by"
        )
    if resolved(difference):
        word = "lower" if e.mean < 0 else "higher"
        good = (e.mean < 0) == (difference.name in LOWER)
        return f"resolved, {word} ({'better' if good else 'worse'}) than the baseline"
    text = f"not resolved: {spread(difference)} at n = {e.n}"
    if e.p is not None and e.p < ALPHA:
        text += f", {_p_equals(e.p)} before the correction for {comparisons} comparisons"
    if abs(e.mean) < 0.005:  # shown as 0.00
        return text
    needed = seeds_needed(e.mean, e.sd or 0.0, ALPHA / comparisons)
    if needed is None:
        return f"{text}; more than {MOST_SEEDS:,} seeds would be needed"
    return f"{text}; about {max(needed, e.n + 1)} seeds would be needed"


def _one_seed(difference: Difference) -> str:
    e = difference.estimate
    if difference.images is None:
        return f"one seed: no interval ({e.mean:+.2f})"
    p = difference.p_holm
    word = "differ" if p is not None and p < ALPHA else "are not told apart"
    return (
        f"one seed: the two models {word} on these images ({_p_equals(p)}); training not repeated"
    )


def _p_equals(p: float | None) -> str:
    text = p_text(p)
    return f"p {text[0]} {text[1:]}" if text.startswith("<") else f"p = {text}"


def legend(comparison: Contrasts) -> list[str]:
    """Return how the numbers were computed, and what the shot groups are."""
    return [*_method(comparison), _groups(comparison)]


def _method(comparison: Contrasts) -> Iterator[str]:
    differences = [d for c in comparison.contrasts for d in c.groups]
    if any(d.estimate.n > 1 for d in differences):
        text = "paired t-test over seeds, n - 1 degrees of freedom; ±: standard deviation of the "
        text += f"differences; resolved: p < {ALPHA:g}"
        if len(comparison.contrasts) > 1:
            count = len(comparison.contrasts)
            text += f" after Holm's correction for {count} methods, value by value"
        yield text
        yield "seeds needed: to find a difference of the observed size with 80 % power"
    if any(d.images is not None and d.estimate.n > 1 for d in differences):
        yield "for new test images too: the half widths over seeds and over images, root of squares"
    alone = [d for d in differences if d.estimate.n == 1 and d.name != "ece"]
    if any(d.images is not None for d in alone):
        yield (
            "one seed: McNemar's test and an interval over test images are for these two models; "
            "training again may change the difference by more"
        )
    if any(d.images is None for d in alone):
        yield (
            "with predictions (`ltbench eval model=RUN out=RUN/eval`) one seed has an interval "
            "over test images"
        )


def _groups(comparison: Contrasts) -> str:
    low, high = shot_bounds("strict")
    groups = shot_groups(comparison.class_counts, "strict")
    sizes = " / ".join(f"{len(classes):,}" for classes in groups.values())
    return f"many > {high}, medium {low}-{high}, few < {low} training images: {sizes} classes"
