"""What the committed runs show, in sentences and tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ltbench.leaderboard.findings import Findings, Place, Progress
from ltbench.leaderboard.findings_parts import confounders, ladder, solvers
from ltbench.leaderboard.findings_words import (
    against_zero,
    average,
    cell,
    command,
    estimate,
    is_up,
    listed,
    no_record,
    number,
    seeds_for,
    sentence,
    table,
    verdict_counts,
)
from ltbench.leaderboard.gains import Gain, side
from ltbench.leaderboard.tables import plain_markdown
from ltbench.records.compare_text import title as heading_of
from ltbench.records.paired import ALPHA, holm

VALUES = ("overall", "many", "medium", "few", "ece")
GROUPS = ("many", "medium", "few")
INTRO = (
    "A gain is the accuracy with PLOT minus that without it under the same seed, in points; in "
    "brackets stands its 95 % interval over seeds (paired t), which one seed has not. A printed "
    "gain *holds* if our interval lies on its side of 0, whatever its size. It is *refuted* if our "
    "interval lies on the other side, or excludes a gain of its size without showing one. "
    "Otherwise ours is *within noise*. Of the calibration error, ECE, less is better."
)


# Summary --------------------------------------------------------------------------------------


def summary(findings: Findings) -> list[str]:
    """Return what was found in a few sentences, as plain text.

    Args:
        findings: of the records.
    """
    small = [place for place in findings.places if place.small]
    lines = [_line(place) for place in small]
    known = {place.dataset for place in small}
    for dataset, grid in (("CIFAR-10-LT", "small_cifar10"), ("CIFAR-100-LT", "small_cifar100")):
        if dataset not in known:
            done = next(p for p in findings.progress if p.grid == grid)
            lines.append(
                f"Small track on {dataset}: no method has runs both with and without PLOT yet "
                f"({done.done} of {done.total} runs)."
            )
    return lines + [_line(place) for place in findings.places if not place.small]


def _line(place: Place) -> str:
    gains = place.gains
    if len(gains) == 1:
        gain = gains[0]
        text = f"{gain.title}: PLOT changes overall accuracy by {number(gain.overall)} points"
        text += f", {against_zero(gain.overall)}"
    else:
        up = sum(is_up(gain.overall) for gain in gains)
        mean = average(gain.overall for gain in gains)
        text = f"PLOT raises overall accuracy for {up} of {len(gains)} methods, by "
        text += f"{estimate(mean)} points on average"
        text += f"; {_intervals(gains)}"
    counts = verdict_counts(gains)
    if place.shortened:
        text += "; shortened runs, not set against printed ones"
    elif counts:
        text += f"; printed gains: {counts}"
    return f"{place.heading}: {text}."


def _intervals(gains: Sequence[Gain]) -> str:
    """Return how many intervals lie above and below 0, in words."""
    parts = []
    for sign, word in ((1, "above"), (-1, "below")):
        count = sum(side(gain.overall) == sign for gain in gains)
        parts += [f"{count} interval{' lies' if count == 1 else 's lie'} {word} 0"] * (count > 0)
    return " and ".join(parts) or "no interval excludes 0"


# Section of the page --------------------------------------------------------------------------


def section(findings: Findings) -> str:
    """Return what was found as Markdown, below a heading of the second level.

    Args:
        findings: of the records.
    """
    runs = f"{findings.runs:,} {'run' if findings.runs == 1 else 'runs'}"
    recipes = f"{findings.recipes:,} {'recipe' if findings.recipes == 1 else 'recipes'}"
    parts = [
        f"Made from the records of {runs} of {recipes}; nothing here is typed in.",
        "\n".join(f"- {plain_markdown(line)}" for line in summary(findings)),
        INTRO,
        "### Gain of PLOT",
        *_gains(findings),
        "### Printed gains",
        *_printed(findings),
        "### What contributes",
        *ladder(findings),
        *solvers(findings),
        *confounders(findings),
        "### Calibration and cost",
        *_calibration_and_cost(findings),
        "### What is left",
        _left(findings.progress),
    ]
    return "\n\n".join(parts)


def _gains(findings: Findings) -> list[str]:
    parts = []
    for place in findings.places:
        names = [n for n in VALUES if any(gain.difference(n) is not None for gain in place.gains)]
        heads = [
            "method",
            "seeds",
            "overall alone",
            *(f"gain: {heading_of(name)}" for name in names),
        ]
        rows = [
            [
                plain_markdown(gain.title),
                str(gain.overall.estimate.n),
                f"{gain.overall.baseline:.2f}",
                *(cell(gain.difference(name)) for name in names),
            ]
            for gain in place.gains
        ]
        parts.append(f"**{plain_markdown(place.heading)}**\n\n{table(heads, rows)}")
        sentences = [_together(place.gains, name) for name in ("overall", *GROUPS)]
        shown = [text for text in [*sentences, *_chance(place.gains)] if text]
        parts += ["\n".join(f"- {text}" for text in shown)] * bool(shown)
    if not any(place.small for place in findings.places):
        parts.insert(0, no_record("a pair of the small track, with and without PLOT"))
    return parts


def _together(gains: Sequence[Gain], name: str) -> str:
    """Return a sentence on the gain of a value over several methods, or on that of one."""
    found = [(gain, d) for gain in gains for d in [gain.difference(name)] if d is not None]
    if not found:
        return ""
    what = heading_of(name).capitalize()
    if len(found) == 1:
        d = found[0][1]
        if d.estimate.n == 1:
            return f"{what}: one seed, no interval." if name == "overall" else ""
        return f"{what}: {against_zero(d)}{seeds_for(d, d.estimate.mean)}."
    up = sum(is_up(d) for _, d in found)
    text = f"{what}: {up} of {len(found)} methods gain, {estimate(average(d for _, d in found))} "
    text += "on average (interval over methods)"
    for sign, word in ((1, "above"), (-1, "below")):
        names = [plain_markdown(gain.title) for gain, d in found if side(d) == sign]
        text += f"; {word} 0 for {listed(names)}" if names else ""
    return f"{text}."


def _chance(gains: Sequence[Gain]) -> list[str]:
    """Return what several intervals show by chance, and what stays after a correction for it."""
    tested = [gain for gain in gains if gain.overall.estimate.p is not None]
    if len(tested) < 2:
        return []
    adjusted = holm([gain.overall.estimate.p for gain in tested])
    left = [
        plain_markdown(g.title) for g, p in zip(tested, adjusted, strict=True) if (p or 0.0) < ALPHA
    ]
    kept = f"overall {'those' if left[1:] else 'that'} of {listed(left)}"
    kept = f"{kept} {'are' if left[1:] else 'is'}" if left else "no overall difference is"
    n = len(tested)
    return [
        f"Of {n} such intervals {n * ALPHA:.1f} would miss the truth by chance; after Holm's "
        f"correction for {n} methods {kept} still significant (p < {ALPHA:g})."
    ]


def _printed(findings: Findings) -> list[str]:
    parts = []
    for place in findings.places:
        gains = [gain for gain in place.gains if gain.verdict != "not set against"]
        if not gains:
            continue
        where = " at this size" if place.small else ""
        head = f"**{plain_markdown(place.heading)}**: of {len(gains)} printed "
        head += f"{'gain' if len(gains) == 1 else 'gains'}, {verdict_counts(gains)}{where}."
        order = ["holds", "refuted", "noise", "one seed"]
        gains.sort(key=lambda gain: order.index(gain.verdict))
        parts.append("\n".join([head, "", *(f"- {sentence(gain, where=where)}" for gain in gains)]))
    if not parts:
        return [no_record("a complete pair of which a gain is printed")]
    return parts


# Calibration and cost -------------------------------------------------------------------------


def _calibration_and_cost(findings: Findings) -> list[str]:
    lines = []
    for place in findings.places:
        sentences = [_calibration(place.gains), _cost(place.gains)]
        text = " ".join(filter(None, sentences))
        lines += [f"- {plain_markdown(place.heading)}: {text}"] * bool(text)
    if not lines:
        return [no_record("a pair with and without PLOT")]
    return ["\n".join(lines)]


def _calibration(gains: Sequence[Gain]) -> str:
    found = [(gain, d) for gain in gains for d in [gain.difference("ece")] if d is not None]
    if not found:
        return ""
    if len(found) == 1:
        return f"PLOT changes ECE by {number(found[0][1])} points, {against_zero(found[0][1])}."
    down = sum(d.estimate.mean < 0 for _, d in found)
    text = f"PLOT lowers ECE for {down} of {len(found)} methods, "
    text += f"{estimate(average(d for _, d in found))} points on average"
    for sign, word in ((-1, "below"), (1, "above")):
        names = [plain_markdown(gain.title) for gain, d in found if side(d) == sign]
        text += f"; {word} 0 for {listed(names)}" if names else ""
    return f"{text}."


def _cost(gains: Sequence[Gain]) -> str:
    times = [gain.time for gain in gains if gain.time is not None]
    if not times:
        return ""
    mean = math.exp(statistics.fmean(map(math.log, times)))
    text = f"A run with PLOT takes {mean:.2f} times as long on the same processor"
    if len(times) > 1:
        text += f", {min(times):.2f} to {max(times):.2f} by method"
    return f"{text}; what else the machine did is not in a record."


def _left(progress: Sequence[Progress]) -> str:
    rows = [
        [f"[{p.grid}](../recipes/grids/{p.grid}.yaml)", f"{p.done} of {p.total}"] for p in progress
    ]
    unfinished = next((p.grid for p in progress if p.done < p.total), None)
    parts = [table(("grid", "runs with a record"), rows)]
    if unfinished:
        parts.append(
            f"`{command(unfinished)}` goes on where it stopped; finished runs are not repeated."
        )
    return "\n\n".join(parts)
