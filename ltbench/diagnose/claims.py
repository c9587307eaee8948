"""The paper's claims about PLOT, one by one, from models of the same seeds with and without it.

Each claim is a number of a diagnostic and the direction in which PLOT is said to move it. The
difference between two models of one seed is a sample; several seeds are tested by a paired t-test
with Holm's correction for the number of claims.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ltbench.diagnose.base import Subject, Tables
from ltbench.diagnose.report import Section
from ltbench.diagnose.tables import MINUS
from ltbench.errors import UserError
from ltbench.records.paired import ALPHA, MOST_SEEDS, Estimate, holm, paired_t, seeds_needed

if TYPE_CHECKING:
    import pandas as pd

Pair = tuple[float, float]
Read = Callable[[Tables, Tables], Pair | None]


@dataclass(frozen=True)
class Claim:
    """A statement of the PLOT paper about a number of a diagnostic.

    Args:
        diagnostic: name of the diagnostic.
        text: the statement.
        sign: 1 if the number is said to be higher with PLOT, -1 if lower.
        read: number with and without PLOT, from the tables of both; None if they have none.
        percent: whether the number is a share, shown in percent.
    """

    diagnostic: str
    text: str
    sign: int
    read: Read
    percent: bool = False


@dataclass(frozen=True)
class Finding:
    """A claim with its numbers.

    Args:
        claim: the statement.
        seeds: of the pairs.
        ours: number of each seed with PLOT.
        theirs: number of each seed without it.
        estimate: of the paired differences.
        p_holm: p value, corrected for the number of claims; None if there is no test.
    """

    claim: Claim
    seeds: tuple[int, ...]
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    estimate: Estimate
    p_holm: float | None = None


def pair_seeds(
    subjects: Sequence[Subject], baseline: Sequence[Subject]
) -> dict[int, tuple[Subject, Subject]]:
    """Return the models with PLOT and without it by seed.

    Raises:
        UserError: a side has several recipes or a seed twice, or a seed has no partner.
    """
    sides = []
    for name, side in (("RUN", subjects), ("baseline", baseline)):
        recipes = sorted({one.recipe.name for one in side})
        if len(recipes) > 1:
            raise UserError(f"`{name}`: expected runs of one recipe, found {', '.join(recipes)}")
        by_seed = {one.recipe.seed: one for one in side}
        if len(by_seed) < len(side):
            raise UserError(f"`{name}`: expected one run of each seed, found a seed twice")
        sides.append(by_seed)
    first, second = sides
    alone = sorted(first.keys() ^ second.keys())
    if alone:
        raise UserError(
            f"expected runs of the same seeds, found seed {alone[0]} on one side only; give its "
            "partner, or leave it out"
        )
    return {seed: (first[seed], second[seed]) for seed in sorted(first)}


def weigh(
    sections: Sequence[Section], pairs: Mapping[int, tuple[Subject, Subject]]
) -> list[Finding]:
    """Return what was found for each claim whose numbers were measured in all pairs.

    Args:
        sections: results of the diagnostics.
        pairs: models with and without PLOT by seed.
    """
    results = {section.name: section.results for section in sections}
    found: list[tuple[Claim, list[Pair]]] = []
    for claim in CLAIMS:
        tables = results.get(claim.diagnostic, {})
        values = [
            claim.read(tables[with_.name], tables[without.name])
            for with_, without in pairs.values()
            if with_.name in tables and without.name in tables
        ]
        known = [value for value in values if value is not None and np.isfinite(value).all()]
        if len(known) == len(pairs):
            found.append((claim, known))
    estimates = [paired_t([a - b for a, b in values]) for _, values in found]
    adjusted = holm([estimate.p for estimate in estimates])
    return [
        Finding(
            claim, tuple(pairs), tuple(a for a, _ in v), tuple(b for _, b in v), estimate, p_holm
        )
        for (claim, v), estimate, p_holm in zip(found, estimates, adjusted, strict=True)
    ]


def verdict(finding: Finding, claims: int) -> str:
    """Return in words whether a claim holds, does the opposite, or is not resolved.

    Args:
        finding: of one claim.
        claims: number of claims tested.
    """
    e, sign = finding.estimate, finding.claim.sign
    right = e.mean * sign > 0
    if e.n == 1:
        return f"one seed, {'as claimed' if right else 'not as claimed'}: not tested"
    if finding.p_holm is not None and finding.p_holm < ALPHA:
        return "holds" if right else "the opposite holds"
    count = sum((a - b) * sign > 0 for a, b in zip(finding.ours, finding.theirs, strict=True))
    text = f"not resolved: as claimed with {count} of {e.n} seeds"
    if not e.sd:
        return f"{text}, which show no spread to test it by"
    if e.p is not None and e.p < ALPHA:
        return f"{text}, p = {e.p:.3f} before the correction for {claims} claims"
    needed = seeds_needed(e.mean, e.sd, ALPHA / claims)
    if needed is None:
        return f"{text}; more than {MOST_SEEDS:,} seeds would be needed"
    return f"{text}; about {max(needed, e.n + 1)} seeds would be needed"


def claims_table(findings: Sequence[Finding]) -> pd.DataFrame:
    """Return the findings as a table, one row per claim, shares as fractions."""
    import pandas as pd

    return pd.DataFrame(
        {
            "diagnostic": finding.claim.diagnostic,
            "claim": finding.claim.text,
            "claimed": "higher" if finding.claim.sign > 0 else "lower",
            "seeds": " ".join(map(str, finding.seeds)),
            "with": np.mean(finding.ours),
            "without": np.mean(finding.theirs),
            "difference": finding.estimate.mean,
            "sd": finding.estimate.sd,
            "low": finding.estimate.low,
            "high": finding.estimate.high,
            "p": finding.estimate.p,
            "p_holm": finding.p_holm,
            "verdict": verdict(finding, len(findings)),
        }
        for finding in findings
    )


def claims_markdown(findings: Sequence[Finding], ours: str, theirs: str) -> str:
    """Return the findings as a Markdown table.

    Args:
        findings: one for each claim.
        ours: name of the recipe with PLOT.
        theirs: name of the recipe without it.
    """
    lines = [
        f"| claim | {theirs} | {ours} | difference, 95 % interval | verdict |",
        "|---|---|---|---|---|",
    ]
    for finding in findings:
        e, percent = finding.estimate, finding.claim.percent
        gap = _text(e.mean, percent, signed=True)
        if e.low is not None and e.high is not None:
            ends = (_text(end, percent, signed=True) for end in (e.low, e.high))
            gap += f" [{', '.join(ends)}]"
        unit = ", %" if percent else ""
        cells = [f"{finding.claim.text}{unit}"]
        cells += [_text(float(np.mean(side)), percent) for side in (finding.theirs, finding.ours)]
        lines.append(f"| {' | '.join([*cells, gap, verdict(finding, len(findings))])} |")
    return "\n".join(lines) + "\n"


def _text(value: float, percent: bool, *, signed: bool = False) -> str:
    """Return a number with three digits, shares in percent with one decimal place."""
    if percent:
        text = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    else:
        places = 0 if abs(value) >= 100 else 3 if abs(value) < 10 else 1
        text = f"{value:+,.{places}f}" if signed else f"{value:,.{places}f}"
    return text.replace("-", MINUS)


def _each(number: Callable[[Tables], float | None]) -> Read:
    """Return a reader that takes the same number from the tables of both models."""

    def read(ours: Tables, theirs: Tables) -> Pair | None:
        first, second = number(ours), number(theirs)
        return None if first is None or second is None else (first, second)

    return read


def _end_share(key: str) -> Read:
    """Return a reader of the share of pairs of classes, at the end of the first stage."""

    def number(tables: Tables) -> float | None:
        table = tables["conflicts"]
        first = table[table["stage"] == 0]
        if first.empty:
            return None
        last = first[first["state"] == first["state"].iloc[-1]]
        return float((last[key] / last["pairs"].clip(lower=1)).mean())

    return _each(number)


def _active(ours: Tables) -> set[tuple[int, int]]:
    """Return the measured steps in which the solver chose the direction."""
    solved = ours["classes"].dropna(subset=["solver_weight"])
    return set(zip(solved["stage"], solved["count"], strict=True))


def _in(table: pd.DataFrame, steps: set[tuple[int, int]]) -> pd.DataFrame:
    there = [at in steps for at in zip(table["stage"], table["count"], strict=True)]
    return table[there]


def _log_share(key: str) -> Read:
    """Return a reader of the share of pairs of classes, in the steps in which the solver acts."""

    def read(ours: Tables, theirs: Tables) -> Pair | None:
        steps = _active(ours)
        both = [_in(tables["steps"], steps) for tables in (ours, theirs)]
        if not steps or any(len(table) < len(steps) for table in both):
            return None
        first, second = ((t[key] / t["pairs"].clip(lower=1)).mean() for t in both)
        return float(first), float(second)

    return read


def _spread_of_cosines(ours: Tables, theirs: Tables) -> Pair | None:
    """Return the deviation over classes of their mean cosine with the step, while PLOT acts."""
    steps, values = _active(ours), []
    for tables in (ours, theirs):
        table = _in(tables["classes"], steps)
        cosines = table.groupby("class")["cosine_direction"].mean()
        if len(cosines) < 2:
            return None
        values.append(float(cosines.std(ddof=0)))
    return values[0], values[1]


def _rarest(key: str) -> Read:
    return _each(lambda tables: float(tables["summary"].sort_values("count").iloc[0][key]))


def _similarity(measure: str) -> Read:
    return _each(lambda tables: float(tables["similarity"].set_index("measure").head_tail[measure]))


def _auroc(tables: Tables) -> float:
    table = tables["separation"]
    overall = table[(table["group"] == "overall") & (table["score"] == "cosine")]
    return float(overall["auroc"].iloc[0])


def _best_f(tables: Tables) -> float:
    table = tables["f_measure"]
    rows = table[(table["score"] == "cosine") & (table["kind"] == "best here")]
    return float(rows["f"].iloc[0])


CLAIMS = (
    Claim(
        "trajectory",
        "classes agree more evenly with the step while PLOT acts: deviation of their cosines",
        -1,
        _spread_of_cosines,
    ),
    Claim(
        "trajectory",
        "fewer conflicting pairs of classes while PLOT acts",
        -1,
        _log_share("conflicts"),
        percent=True,
    ),
    Claim(
        "trajectory",
        "fewer dominated conflicts while PLOT acts",
        -1,
        _log_share("dominated"),
        percent=True,
    ),
    Claim(
        "conflicts",
        "fewer conflicting pairs of classes at the end of stage 1",
        -1,
        _end_share("conflicts"),
        percent=True,
    ),
    Claim(
        "conflicts",
        "fewer dominated conflicts at the end of stage 1",
        -1,
        _end_share("dominated"),
        percent=True,
    ),
    Claim(
        "hessian",
        "flatter loss of the rarest class: largest eigenvalue of the Hessian",
        -1,
        _rarest("largest"),
    ),
    Claim("hessian", "flatter loss of the rarest class: trace", -1, _rarest("trace")),
    Claim("cca", "head and tail features more alike: SVCCA", 1, _similarity("svcca")),
    Claim("cca", "head and tail features more alike: linear CKA", 1, _similarity("cka")),
    Claim(
        "openset",
        "known and unknown images better told apart by cosine to class means: AUROC",
        1,
        _each(_auroc),
    ),
    Claim("openset", "best F-measure by the same score", 1, _each(_best_f)),
)
