"""What the committed runs show, in sentences and tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from ltbench.leaderboard.findings import (
    CONFOUNDERS,
    ENDINGS,
    LADDER,
    SOLVERS,
    Findings,
    Gain,
    Place,
    Progress,
    Solvers,
    Verdict,
    side,
)
from ltbench.leaderboard.tables import plain_markdown
from ltbench.records.compare_text import title as heading_of
from ltbench.records.contrasts import Difference
from ltbench.records.literature import short_source
from ltbench.records.paired import ALPHA, Estimate, holm, paired_t, seeds_needed

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
        text = f"{gain.title}: PLOT changes overall accuracy by {_number(gain.overall)} points"
        text += f", {_told(gain.overall)}"
    else:
        up = sum(_up(gain.overall) for gain in gains)
        mean = _mean(gain.overall for gain in gains)
        text = f"PLOT raises overall accuracy for {up} of {len(gains)} methods, by "
        text += f"{_estimate(mean)} points on average"
        told = [sum(side(gain.overall) == sign for gain in gains) for sign in (1, -1)]
        text += f"; the interval is above 0 for {told[0]}, below for {told[1]}"
    counts = _counts(gains)
    if place.shortened:
        text += "; shortened runs, not set against printed ones"
    elif counts:
        text += f"; printed gains: {counts}"
    return f"{place.heading}: {text}."


def _counts(gains: Iterable[Gain]) -> str:
    """Return how many printed gains there are of each verdict, in words."""
    verdicts = [gain.verdict for gain in gains]
    words: dict[Verdict, str] = {
        "holds": "hold",
        "noise": "within noise",
        "refuted": "refuted",
    }
    parts = [f"{verdicts.count(verdict)} {word}" for verdict, word in words.items()]
    parts += [f"{verdicts.count('one seed')} with one seed"] * ("one seed" in verdicts)
    return ", ".join(parts) if set(verdicts) - {"not set against"} else ""


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
        *_ladder(findings),
        *_solvers(findings),
        *_confounders(findings),
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
                *(_cell(gain.difference(name)) for name in names),
            ]
            for gain in place.gains
        ]
        parts.append(f"**{plain_markdown(place.heading)}**\n\n{_table(heads, rows)}")
        sentences = [_together(place.gains, name) for name in ("overall", *GROUPS)]
        told = [text for text in [*sentences, *_chance(place.gains)] if text]
        parts += ["\n".join(f"- {text}" for text in told)] * bool(told)
    if not any(place.small for place in findings.places):
        parts.insert(0, _none("a pair of the small track, with and without PLOT"))
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
        return f"{what}: {_told(d)}{_seeds(d, d.estimate.mean)}."
    up = sum(_up(d) for _, d in found)
    text = f"{what}: {up} of {len(found)} methods gain, {_estimate(_mean(d for _, d in found))} "
    text += "on average (interval over methods)"
    for sign, word in ((1, "above"), (-1, "below")):
        names = [plain_markdown(gain.title) for gain, d in found if side(d) == sign]
        text += f"; {word} 0 for {_listed(names)}" if names else ""
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
    kept = f"overall {'those' if left[1:] else 'that'} of {_listed(left)}"
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
        head += f"{'gain' if len(gains) == 1 else 'gains'}, {_counts(gains)}{where}."
        order = ["holds", "refuted", "noise", "one seed"]
        gains.sort(key=lambda gain: order.index(gain.verdict))
        parts.append("\n".join([head, "", *(f"- {sentence(gain, where=where)}" for gain in gains)]))
    if not parts:
        return [_none("a complete pair of which a gain is printed")]
    return parts


def sentence(gain: Gain, *, where: str = "") -> str:
    """Return what ours says of a printed gain, as a sentence in Markdown.

    Args:
        gain: ours with what is printed.
        where: words for the size of our runs, which the printed ones do not have.
    """
    d, printed, verdict = gain.overall, gain.printed, gain.verdict
    e, ours = d.estimate, f"{plain_markdown(gain.title)} {_number(d)}"
    if printed is None:
        return f"{ours}, {_told(d)}; nothing is printed."
    theirs = _signed(printed.value)
    at = "" if printed.ratio == gain.ratio else f" at ratio {printed.ratio:g}"
    shown = f"printed {theirs}{at} ({short_source(printed.source)})"
    if verdict == "one seed":
        return f"**One seed, no verdict**: {ours}, {shown}."
    if e.low is None or e.high is None:
        return f"**Within noise**: {ours} with each of {e.n} seeds, {shown}."
    inside = e.low <= printed.value <= e.high
    beyond = "smaller" if abs(e.mean) < abs(printed.value) else "larger"
    if verdict == "holds":
        size = "" if inside else f"; ours is {beyond}"
        return f"**Holds{where}**: {ours}, {shown}{size}."
    if verdict == "refuted":
        other = (e.high < 0) if printed.value > 0 else (e.low > 0)
        why = (
            "ours is on the other side of 0"
            if other
            else "that size is excluded, and none is shown"
        )
        return f"**Refuted{where}**: {ours}, {shown}; {why}."
    return f"**Within noise**: {ours}, {shown}{_seeds(d, printed.value)}."


# Contributions --------------------------------------------------------------------------------


def _ladder(findings: Findings) -> list[str]:
    parts = []
    for end, gains in findings.ladder.items():
        rows = _contributions(gains, [title for title, *_ in LADDER])
        heads = ("each on top of the one before", "seeds", "overall", "few", "ECE", "printed")
        parts.append(
            f"**Window, climb, collapse term** (cRT+Mixup, CIFAR-10-LT, {ENDINGS[end]}):\n\n"
            f"{_table(heads, rows)}\n\n{_verdicts(gains, small=end == '_small')}"
        )
    missing = "the window, the climb and the collapse term alone (Table 4 of the paper)"
    return parts or [_none(missing, "small_table4_ladder")]


def _confounders(findings: Findings) -> list[str]:
    parts = []
    for end, gains in findings.confounders.items():
        rows = [row[:-1] for row in _contributions(gains, [title for title, *_ in CONFOUNDERS])]
        heads = ("change", "seeds", "overall", "few", "ECE")
        told = [_part(gain) for gain in gains]
        parts.append(
            "**What the released code changes beside the objectives** (cRT+Mixup, CIFAR-10-LT, "
            f"{ENDINGS[end]}):\n\n{_table(heads, rows)}\n\n{' '.join(told)}"
        )
    missing = "what the released code changes beside the objectives"
    return parts or [_none(missing, "small_confounders")]


def _contributions(gains: Sequence[Gain], titles: Sequence[str]) -> list[list[str]]:
    rows = []
    for title in titles:
        gain = next((gain for gain in gains if gain.title == title), None)
        if gain is None:
            rows.append([plain_markdown(title), "0", *[""] * 4])
            continue
        cells = [_cell(gain.difference(name)) for name in ("overall", "few", "ece")]
        printed = gain.printed
        at = "" if printed is None or printed.ratio == gain.ratio else f" (ratio {printed.ratio:g})"
        theirs = "" if printed is None else f"{_signed(printed.value)}{at}"
        seeds = str(gain.overall.estimate.n)
        rows.append([plain_markdown(title), seeds, *cells, theirs])
    return rows


def _verdicts(gains: Sequence[Gain], *, small: bool) -> str:
    where = " at this size" if small else ""
    return "\n".join(f"- {sentence(_short(gain), where=where)}" for gain in gains)


def _short(gain: Gain) -> Gain:
    """Return a gain with the first words of its title."""
    name = gain.title.partition(":")[0].capitalize()
    return Gain(name, gain.contrast, gain.printed, gain.time, gain.ratio)


def _part(gain: Gain) -> str:
    d = gain.overall
    return f"{gain.title[0].upper()}{gain.title[1:]}: {_number(d)} overall, {_told(d)}."


def _solvers(findings: Findings) -> list[str]:
    parts = [_solver_table(part) for part in findings.solvers]
    missing = "the solvers, early-stopped and throughout (Table 1)"
    return parts or [_none(missing, "small_table1_solvers")]


def _solver_table(part: Solvers) -> str:
    names = [name for name, *_ in SOLVERS if name in part.gains]
    methods = list(dict.fromkeys(gain.title for gains in part.gains.values() for gain in gains))
    rows = []
    for name in names:
        by_method = {gain.title: gain for gain in part.gains[name]}
        cells = [_with_printed(by_method.get(method)) for method in methods]
        rows.append([name, *cells])
    heads = ("solver", *map(plain_markdown, methods))
    lines = [f"- {_solver(name, part.gains[name])}" for name in names]
    stop = _early_stop(part)
    return (
        f"**Solvers** (CIFAR-10-LT, {ENDINGS[part.ending]}; gain over the method alone, in "
        "brackets what is printed; \\* the interval excludes 0):\n\n"
        f"{_table(heads, rows)}\n\n" + "\n".join([*lines, *([f"- {stop}"] if stop else [])])
    )


def _with_printed(gain: Gain | None) -> str:
    if gain is None:
        return ""
    mark = "\\*" * bool(side(gain.overall))
    printed = "" if gain.printed is None else f" ({_signed(gain.printed.value)})"
    return f"{_signed(gain.overall.estimate.mean)}{mark}{printed}"


def _solver(name: str, gains: Sequence[Gain]) -> str:
    counts = _counts(gains)
    text = f"{name}: {_estimate(_mean(gain.overall for gain in gains))} on average over "
    text += f"{len(gains)} {'method' if len(gains) == 1 else 'methods'}"
    return f"{text}; of the printed differences: {counts}." if counts else f"{text}."


def _early_stop(part: Solvers) -> str:
    """Return a sentence on early stop against the same solver throughout."""
    found = []
    for solver in ("EPO", "MGDA", "CAGrad"):
        stopped = {g.title: g for g in part.gains.get(f"{solver}, early stop", ())}
        throughout = {g.title: g for g in part.gains.get(f"{solver} throughout", ())}
        both = [m for m in stopped if m in throughout]
        if both:
            means = [
                stopped[m].overall.estimate.mean - throughout[m].overall.estimate.mean for m in both
            ]
            up = sum(mean > 0 for mean in means)
            mean = statistics.fmean(means)
            found.append(f"{solver} {_signed(mean)} on average, better for {up} of {len(both)}")
    return f"Early stop against the same solver throughout: {'; '.join(found)}." if found else ""


# Calibration and cost -------------------------------------------------------------------------


def _calibration_and_cost(findings: Findings) -> list[str]:
    lines = []
    for place in findings.places:
        sentences = [_calibration(place.gains), _cost(place.gains)]
        text = " ".join(filter(None, sentences))
        lines += [f"- {plain_markdown(place.heading)}: {text}"] * bool(text)
    if not lines:
        return [_none("a pair with and without PLOT")]
    return ["\n".join(lines)]


def _calibration(gains: Sequence[Gain]) -> str:
    found = [(gain, d) for gain in gains for d in [gain.difference("ece")] if d is not None]
    if not found:
        return ""
    if len(found) == 1:
        return f"PLOT changes ECE by {_number(found[0][1])} points, {_told(found[0][1])}."
    down = sum(d.estimate.mean < 0 for _, d in found)
    text = f"PLOT lowers ECE for {down} of {len(found)} methods, "
    text += f"{_estimate(_mean(d for _, d in found))} points on average"
    for sign, word in ((-1, "below"), (1, "above")):
        names = [plain_markdown(gain.title) for gain, d in found if side(d) == sign]
        text += f"; {word} 0 for {_listed(names)}" if names else ""
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
    parts = [_table(("grid", "runs with a record"), rows)]
    if unfinished:
        parts.append(
            f"`{command(unfinished)}` goes on where it stopped; finished runs are not repeated."
        )
    return "\n\n".join(parts)


# Words ----------------------------------------------------------------------------------------


def command(grid: str) -> str:
    """Return the command that trains a grid."""
    return f"ltbench run grid=recipes/grids/{grid}.yaml data.root=DIR"


def _none(text: str, grid: str = "small_cifar10") -> str:
    """Return the sentence of a part without records, with the command that trains it."""
    return f"No record yet of {text}; `{command(grid)}` trains it."


def _told(difference: Difference) -> str:
    """Return in words whether an interval tells a difference from 0."""
    e = difference.estimate
    if e.n == 1:
        return "one seed, no interval"
    if e.low is None:
        return f"the same with each of {e.n} seeds"
    return f"an interval that {'excludes' if side(difference) else 'includes'} 0"


def _seeds(difference: Difference, gain: float) -> str:
    """Return how many seeds would find a gain, if ours are not enough."""
    e = difference.estimate
    if side(difference) or not e.sd or abs(gain) < 0.005:
        return ""
    needed = seeds_needed(gain, e.sd)
    if needed is None:
        return "; more than 1,000 seeds would be needed"
    return f"; to find {_signed(gain)} takes about {max(needed, e.n + 1)} seeds"


def _up(difference: Difference) -> bool:
    """Return whether a difference is shown as above 0."""
    return round(difference.estimate.mean, 2) > 0


def _mean(differences: Iterable[Difference]) -> Estimate:
    """Return the mean of several methods' differences, with its interval over methods."""
    return paired_t([difference.estimate.mean for difference in differences])


def _estimate(e: Estimate) -> str:
    if e.low is None or e.high is None:
        return _signed(e.mean)
    return f"{_signed(e.mean)} ({_signed(e.low)} to {_signed(e.high)})"


def _signed(value: float) -> str:
    """Return a number with its sign and two digits; one shown as 0 is no -0.00."""
    return f"{round(value, 2) + 0.0:+.2f}"


def _number(difference: Difference) -> str:
    return _estimate(difference.estimate)


def _cell(difference: Difference | None) -> str:
    return "" if difference is None else _number(difference)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *rows])
