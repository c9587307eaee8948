"""Gains and their intervals in words, shared by the sections on what was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ltbench.leaderboard.gains import Gain, Verdict, side
from ltbench.leaderboard.tables import plain_markdown
from ltbench.records.contrasts import Difference
from ltbench.records.literature import short_source
from ltbench.records.paired import Estimate, paired_t, seeds_needed


def sentence(gain: Gain, *, where: str = "") -> str:
    """Return a sentence in Markdown that sets a gain against the printed one.

    Args:
        gain: ours with what is printed.
        where: words for the size of our runs, which the printed ones do not have.
    """
    d, printed, verdict = gain.overall, gain.printed, gain.verdict
    e, ours = d.estimate, f"{plain_markdown(gain.title)} {number(d)}"
    if printed is None:
        return f"{ours}, {against_zero(d)}; nothing is printed."
    theirs = signed(printed.value)
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
    return f"**Within noise**: {ours}, {shown}{seeds_for(d, printed.value)}."


def verdict_counts(gains: Iterable[Gain]) -> str:
    """Return how many printed gains there are of each verdict, in words."""
    verdicts = [gain.verdict for gain in gains]
    words: dict[Verdict, str] = {
        "holds": "hold",
        "noise": "within noise",
        "refuted": "refuted",
        "one seed": "with one seed",
    }
    counts = {word: verdicts.count(verdict) for verdict, word in words.items()}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count)


def command(grid: str) -> str:
    """Return the command that trains a grid."""
    return f"ltbench run grid=recipes/grids/{grid}.yaml data.root=DIR"


def no_record(text: str, grid: str = "small_cifar10") -> str:
    """Return the sentence of a part without records, with the command that trains it."""
    return f"No record yet of {text}; `{command(grid)}` trains it."


def against_zero(difference: Difference) -> str:
    """Return in words whether an interval tells a difference from 0."""
    e = difference.estimate
    if e.n == 1:
        return "one seed, no interval"
    if e.low is None:
        return f"the same with each of {e.n} seeds"
    return f"an interval that {'excludes' if side(difference) else 'includes'} 0"


def seeds_for(difference: Difference, gain: float) -> str:
    """Return how many seeds would find a gain, if ours are not enough."""
    e = difference.estimate
    if side(difference) or not e.sd or abs(gain) < 0.005:
        return ""
    needed = seeds_needed(gain, e.sd)
    if needed is None:
        return "; more than 1,000 seeds would be needed"
    return f"; to find {signed(gain)} takes about {max(needed, e.n + 1)} seeds"


def is_up(difference: Difference) -> bool:
    """Return whether a difference is shown as above 0."""
    return round(difference.estimate.mean, 2) > 0


def average(differences: Iterable[Difference]) -> Estimate:
    """Return the mean of several methods' differences, with its interval over methods."""
    return paired_t([difference.estimate.mean for difference in differences])


def estimate(e: Estimate) -> str:
    """Return a mean with its interval, if it has one."""
    if e.low is None or e.high is None:
        return signed(e.mean)
    return f"{signed(e.mean)} ({signed(e.low)} to {signed(e.high)})"


def signed(value: float) -> str:
    """Return a number with its sign and two digits; one shown as 0 is no -0.00."""
    return f"{round(value, 2) + 0.0:+.2f}"


def number(difference: Difference) -> str:
    """Return a mean difference with its interval, if it has one."""
    return estimate(difference.estimate)


def cell(difference: Difference | None) -> str:
    """Return a difference for a table; empty if there is none."""
    return "" if difference is None else number(difference)


def listed(names: Sequence[str]) -> str:
    """Return names as an enumeration."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, numbers aligned right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heads, rule, *rows])
