"""The paper's claims, tested on runs with and without PLOT."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from ltbench.cli.diagnose import diagnose
from ltbench.diagnose import WITH_CLAIMS
from ltbench.diagnose.claims import CLAIMS, claims_markdown, claims_table, pair_seeds, weigh
from ltbench.diagnose.report import Section
from ltbench.errors import UserError

WORDS = ("what=trajectory,cca", "cca.images=40", "device=cpu", "quiet=true")


def subject(recipe: str, seed: int):
    recipe_ = SimpleNamespace(name=recipe, seed=seed)
    return SimpleNamespace(name=f"{recipe} seed {seed}", recipe=recipe_)


def hessian(largest: float, trace: float) -> dict[str, pd.DataFrame]:
    rows = {"count": [50, 5], "largest": [1.0, largest], "trace": [2.0, trace]}
    return {"summary": pd.DataFrame(rows)}


def weighed(ours, theirs):
    """Findings of curvature for pairs of (largest, trace) of the rarest class."""
    pairs = {seed: (subject("plot", seed), subject("plain", seed)) for seed in range(len(ours))}
    section = Section("hessian", object, {})
    for seed, (first, second) in pairs.items():
        section.results[first.name] = hessian(*ours[seed])
        section.results[second.name] = hessian(*theirs[seed])
    return weigh([section], pairs)


def test_every_claim_belongs_to_a_diagnostic_of_the_command():
    assert {claim.diagnostic for claim in CLAIMS} == set(WITH_CLAIMS)


def test_differences_are_paired_by_seed_and_corrected():
    findings = weighed([(10, 5), (21, 6), (30, 9)], [(20, 5.5), (30.5, 4), (40, 9.25)])
    table = claims_table(findings).set_index("claim")
    largest, trace = (table.iloc[i] for i in range(2))
    assert largest["difference"] == pytest.approx(-59 / 6)
    assert largest["sd"] == pytest.approx(np.std([-10, -9.5, -10], ddof=1))
    assert largest["p_holm"] == pytest.approx(2 * largest["p"])
    assert largest["verdict"] == "holds"
    assert trace["verdict"].startswith("not resolved: as claimed with 2 of 3 seeds")
    assert "| holds |" in claims_markdown(findings, "plot", "plain")


def test_the_opposite_of_a_claim_is_said():
    findings = weighed([(20, 1), (30.5, 1), (40, 1)], [(10, 1), (21, 1), (30, 1)])
    assert claims_table(findings)["verdict"][0] == "the opposite holds"


def test_equal_differences_are_no_test():
    table = claims_table(weighed([(1, 3), (2, 4)], [(2, 3), (3, 4)]))
    assert table["verdict"].tolist() == [
        "not resolved: as claimed with 2 of 2 seeds, which show no spread to test it by",
        "not resolved: as claimed with 0 of 2 seeds, which show no spread to test it by",
    ]


def test_one_seed_is_not_tested():
    table = claims_table(weighed([(1, 3)], [(2, 2)]))
    assert table["verdict"].tolist() == [
        "one seed, as claimed: not tested",
        "one seed, not as claimed: not tested",
    ]
    assert table["p"].isna().all()


def test_a_claim_needs_its_number_in_every_pair():
    assert [f.claim.text for f in weighed([(1, np.nan), (2, 1)], [(2, 2), (3, 3)])] == [
        next(c.text for c in CLAIMS if c.diagnostic == "hessian")
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([("a", 0), ("b", 1)], [("c", 0), ("c", 1)], "expected runs of one recipe, found a, b"),
        ([("a", 0), ("a", 0)], [("c", 0)], "found a seed twice"),
        ([("a", 0), ("a", 1)], [("c", 0)], "found seed 1 on one side only"),
    ],
)
def test_sides_that_are_no_pairs_are_refused(ours, theirs, message):
    with pytest.raises(UserError, match=message):
        pair_seeds(*([subject(*one) for one in side] for side in (ours, theirs)))


def test_command_on_trained_pairs(make_subject, tmp_path, monkeypatch):
    monkeypatch.setattr("ltbench.diagnose.run.pictures", lambda *_: [])  # most of the time
    log = {"diagnose": {"every": 4}}
    ours = make_subject("crt", update="plot", **log).folder
    theirs = make_subject("crt", **log).folder
    words = ["claims", str(ours), f"baseline={theirs}", *WORDS, f"out={tmp_path}"]
    result = CliRunner().invoke(diagnose, words)
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "claims.csv")
    assert table["diagnostic"].tolist() == ["trajectory"] * 3 + ["cca"] * 2
    assert (table["seeds"] == 0).all()
    for line in (tmp_path / "claims.md").read_text().splitlines():
        assert line in result.output
    spread = table.iloc[0]
    assert 0 < spread["with"] < 1
    assert spread["difference"] == pytest.approx(spread["with"] - spread["without"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected RUN"),
        (["runs/a"], "expected `baseline=...`"),
        (["runs/a", "baseline=runs/b", "what=tsne"], "expected diagnostics with claims"),
    ],
)
def test_words_that_are_missing_or_wrong(words, message):
    error = CliRunner().invoke(diagnose, ["claims", *words]).exception
    assert isinstance(error, UserError)
    assert message in str(error)
