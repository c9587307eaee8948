"""What contributes to the gain of PLOT: its parts, the solver, and what else its code changes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ltbench.leaderboard.comparisons import CONFOUNDERS, ENDINGS, LADDER, SOLVERS
from ltbench.leaderboard.findings import Findings, Solvers
from ltbench.leaderboard.findings_words import (
    against_zero,
    average,
    cell,
    estimate,
    no_record,
    number,
    sentence,
    signed,
    table,
    verdict_counts,
)
from ltbench.leaderboard.gains import Gain, side
from ltbench.leaderboard.tables import plain_markdown


def ladder(findings: Findings) -> list[str]:
    """Return the section on window, climb and collapse term, in Markdown."""
    parts = []
    for end, gains in findings.ladder.items():
        rows = _contributions(gains, [title for title, *_ in LADDER])
        heads = ("each on top of the one before", "seeds", "overall", "few", "ECE", "printed")
        parts.append(
            f"**Window, climb, collapse term** (cRT+Mixup, CIFAR-10-LT, {ENDINGS[end]}):\n\n"
            f"{table(heads, rows)}\n\n{_verdicts(gains, small=end == '_small')}"
        )
    missing = "the window, the climb and the collapse term alone (Table 4 of the paper)"
    return parts or [no_record(missing, "small_table4_ladder")]


def confounders(findings: Findings) -> list[str]:
    """Return the section on what the released code changes beside the objectives, in Markdown."""
    parts = []
    for end, gains in findings.confounders.items():
        rows = [row[:-1] for row in _contributions(gains, [title for title, *_ in CONFOUNDERS])]
        heads = ("change", "seeds", "overall", "few", "ECE")
        sentences = [_change(gain) for gain in gains]
        parts.append(
            "**What the released code changes beside the objectives** (cRT+Mixup, CIFAR-10-LT, "
            f"{ENDINGS[end]}):\n\n{table(heads, rows)}\n\n{' '.join(sentences)}"
        )
    missing = "what the released code changes beside the objectives"
    return parts or [no_record(missing, "small_confounders")]


def _contributions(gains: Sequence[Gain], titles: Sequence[str]) -> list[list[str]]:
    """Return a row for each title, one without runs too."""
    rows = []
    for title in titles:
        gain = next((gain for gain in gains if gain.title == title), None)
        if gain is None:
            rows.append([plain_markdown(title), "0", *[""] * 4])
            continue
        cells = [cell(gain.difference(name)) for name in ("overall", "few", "ece")]
        printed = gain.printed
        at = "" if printed is None or printed.ratio == gain.ratio else f" (ratio {printed.ratio:g})"
        theirs = "" if printed is None else f"{signed(printed.value)}{at}"
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


def _change(gain: Gain) -> str:
    """Return a sentence on the gain of one change."""
    d = gain.overall
    return f"{gain.title[0].upper()}{gain.title[1:]}: {number(d)} overall, {against_zero(d)}."


def solvers(findings: Findings) -> list[str]:
    """Return the section on the solvers, in Markdown."""
    parts = [_solver_table(part) for part in findings.solvers]
    missing = "the solvers, early-stopped and throughout (Table 1)"
    return parts or [no_record(missing, "small_table1_solvers")]


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
        f"{table(heads, rows)}\n\n" + "\n".join([*lines, *([f"- {stop}"] if stop else [])])
    )


def _with_printed(gain: Gain | None) -> str:
    if gain is None:
        return ""
    mark = "\\*" * bool(side(gain.overall))
    printed = "" if gain.printed is None else f" ({signed(gain.printed.value)})"
    return f"{signed(gain.overall.estimate.mean)}{mark}{printed}"


def _solver(name: str, gains: Sequence[Gain]) -> str:
    counts = verdict_counts(gains)
    text = f"{name}: {estimate(average(gain.overall for gain in gains))} on average over "
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
            found.append(f"{solver} {signed(mean)} on average, better for {up} of {len(both)}")
    return f"Early stop against the same solver throughout: {'; '.join(found)}." if found else ""
