"""What was found: every kind of sentence, from records with given results."""

from __future__ import annotations

from pathlib import Path

import findings as tool
import pytest
from doc_commands import command_problems

from ltbench import get_recipe
from ltbench.evaluation.metrics import BINS, Metrics
from ltbench.leaderboard.comparisons import GRIDS
from ltbench.leaderboard.findings import Findings, findings
from ltbench.leaderboard.findings_text import section, summary
from ltbench.leaderboard.findings_words import command, sentence
from ltbench.leaderboard.gains import printed_gain, verdict
from ltbench.leaderboard.page import build_page
from ltbench.leaderboard.tables import board_rows
from ltbench.records.contrasts import Difference
from ltbench.records.making import changes
from ltbench.records.paired import paired_t
from ltbench.records.record import Record
from tests.leaderboard.boards import execution, write
from tests.leaderboard.test_leaderboard import board as board_of
from tests.leaderboard.test_leaderboard import ours, readme_tool, record_of

EACH, COUNTS = 1000, (500, 60, 4)  # test images of a class, training images


def run(name: str, seed: int, overall: float, *words: str, **more: object) -> Record:
    """A run with a given overall accuracy in percent, the same in each shot group."""
    right = round(overall / 100 * EACH * 3)
    correct = [right // 3 + (k < right % 3) for k in range(3)]
    bins = [(0, 0.0, 0)] * BINS
    bins[7] = (3 * EACH, 1500 + 1e-6 * seed + 1e-9 * len(name), right)
    values = {
        "metrics": Metrics.from_counts(correct, [EACH] * 3, bins, COUNTS),
        "execution": execution(more.pop("hours", 0.5)),
        **more,
    }
    return record_of((1, 1, 1), seed, name, *words, **values)


def pair(base: str, other: str, gains: list[float], *words: str, **more: object) -> list[Record]:
    """Runs of two recipes that differ by given gains in points, a seed each."""
    found = []
    for seed, gain in enumerate(gains):
        start = 60 + 0.5 * seed
        found.append(run(base, seed, start, *words, **more))
        found.append(run(other, seed, start + gain, *words, **{**more, "hours": 0.75}))
    return found


def plot(method: str, *gains: float) -> list[Record]:
    return pair(f"{method}_cifar10_small", f"{method}_plot_cifar10_small", list(gains))


EVERY_KIND = [
    *plot("mislas", 0.5, 0.6, 0.7),  # printed: +0.55
    *plot("gcl", 1.9, 2.0, 2.1),  # +0.50
    *plot("ldam_drw", -0.5, 1.0, 0.1),  # +0.48
    *plot("m2m", -1.0, -1.2, -1.1),  # +0.87
    *plot("crt_mixup", 0.3, -0.3, 0.0),  # +1.40
    *plot("bbn", 0.2),  # +1.06
    *plot("ce", 0.1, 0.2, 0.3),  # nothing
]


@pytest.fixture(scope="module")
def found() -> Findings:
    return findings(EVERY_KIND)


@pytest.mark.parametrize(
    ("by_seed", "printed", "expected"),
    [
        ((1.0, 1.1, 1.2), 0.5, "holds"),
        ((-0.5, 0.6, 0.1), 0.5, "noise"),
        ((-1.0, -1.1, -0.9), 0.5, "refuted"),  # a loss
        ((0.1, 0.0, -0.1), 3.0, "refuted"),  # that much is excluded
        ((0.1, 0.0, -0.1), 0.2, "noise"),
        ((-40.0, -41.0, -42.0), -45.0, "holds"),
        ((0.3, 0.4, 0.5), -45.0, "refuted"),
        ((0.1, 0.0, -0.1), 0.0, "noise"),
        ((0.5, 0.5, 0.5), 0.5, "noise"),  # no spread, no interval
        ((0.9,), 0.5, "one seed"),
        ((0.9, 1.0), None, "not set against"),
    ],
)
def test_verdicts(by_seed, printed, expected):
    d = Difference("overall", 60.0, 60.0, by_seed, paired_t(by_seed))
    assert verdict(d, printed) == expected


def test_every_kind_of_sentence(found):
    (place,) = found.places
    assert (place.heading, place.small) == ("CIFAR-10-LT, ratio 100, small track", True)
    told = {gain.title: sentence(gain, where=" at this size") for gain in place.gains}
    source = "PLOT Table 2"
    assert told == {
        "MiSLAS": "**Holds at this size**: MiSLAS +0.60 (+0.35 to +0.85), "
        f"printed +0.55 ({source}).",
        "GCL": "**Holds at this size**: GCL +2.00 (+1.75 to +2.25), "
        f"printed +0.50 ({source}); ours is larger.",
        "LDAM-DRW": "**Within noise**: LDAM-DRW +0.20 (-1.68 to +2.08), "
        f"printed +0.48 ({source}); to find +0.48 takes about 22 seeds.",
        "M2m": "**Refuted at this size**: M2m -1.10 (-1.35 to -0.85), "
        f"printed +0.87 ({source}); ours is on the other side of 0.",
        "cRT+Mixup": "**Refuted at this size**: cRT+Mixup +0.00 (-0.75 to +0.75), "
        f"printed +1.40 ({source}); that size is excluded, and none is shown.",
        "BBN": "**One seed, no verdict**: BBN +0.20, printed +1.06 (PLOT app. Table 4).",
        "CE": "CE +0.20 (-0.05 to +0.45), an interval that includes 0; nothing is printed.",
    }


def test_the_section_counts_them_and_averages_over_methods(found):
    text = section(found)
    assert "of 6 printed gains, 2 hold, 1 within noise, 2 refuted, 1 with one seed at this" in text
    assert "Overall: 5 of 7 methods gain, +0.30 (-0.55 to +1.15) on average" in text
    assert "above 0 for GCL and MiSLAS; below 0 for M2m." in text
    assert "Of 6 such intervals 0.3 would miss the truth by chance" in text
    assert "for 6 methods overall those of GCL, MiSLAS and M2m are still significant" in text
    row = "| MiSLAS | 3 | 60.50 | +0.60 (+0.35 to +0.85) |"
    assert row in text
    assert "| BBN | 1 | 60.00 | +0.20 | +0.20 |" in text  # no interval of one seed
    assert "A run with PLOT takes 1.50 times as long on the same processor" in text
    assert "PLOT lowers ECE for 2 of 7 methods" in text
    assert "| 38 of 96 |" in text
    first, *_ = summary(found)
    assert first.startswith("CIFAR-10-LT, ratio 100, small track: PLOT raises overall accuracy for")
    assert first.endswith("printed gains: 2 hold, 1 within noise, 2 refuted, 1 with one seed.")


def test_a_part_without_records_says_so_with_the_command_that_trains_it():
    text = section(findings([]))
    for name, grid in (
        ("a pair of the small track", "small_cifar10"),
        ("the window, the climb and the collapse term", "small_table4_ladder"),
        ("the solvers", "small_table1_solvers"),
        ("what the released code changes", "small_confounders"),
    ):
        (line,) = [
            part for part in text.split("\n\n") if part.startswith(f"No record yet of {name}")
        ]
        assert f"`{command(grid)}` trains it." in line
    assert [grid for grid in GRIDS if command_problems(command(grid))] == []
    assert "0 runs of 0 recipes" in text
    assert "nan" not in text


def test_parts_of_plot_one_after_the_other():
    steps = ["crt_mixup_cifar10", "crt_mixup_moo_cifar10_paper", "crt_mixup_moo_sam_cifar10"]
    names = [f"{name}_small" for name in [*steps, "crt_mixup_plot_cifar10"]]
    records = [
        run(name, seed, 60 + seed + (3, 0, 0)[min(step - 1, 2)] * (step > 0) + 0.1 * seed * step)
        for step, name in enumerate(names[:3])
        for seed in range(3)
    ]
    text = section(findings(records))
    assert "| window: the classes are objectives in the first epochs | 3 | +3.10 (" in text
    assert (
        "**Holds at this size**: Window +3.10 (+2.85 to +3.35), printed +2.96 at ratio 200" in text
    )
    assert "**Refuted at this size**: Climb -2.90 (" in text
    assert "| collapse term: the variance of each class's losses | 0 |" in text
    more = [run(names[3], 0, 61)]
    assert "**One seed, no verdict**: Collapse term" in section(findings([*records, *more]))


def test_solvers_against_the_method_alone_and_against_early_stop():
    base = "gcl_cifar10_small"
    records = pair(base, "gcl_moo_cifar10_epo_naive_small", [-8.0, -8.1, -8.2])
    records += pair(base, "gcl_moo_cifar10_epo_small", [0.1, 0.0, -0.1])[1::2]
    text = section(findings(records))
    assert "| EPO throughout | -8.10\\* (-8.07) |" in text
    assert "| EPO, early stop | +0.00 (-0.10) |" in text
    assert (
        "EPO throughout: -8.10 on average over 1 method; of the printed differences: 1 hold" in text
    )
    assert "Early stop against the same solver throughout: EPO +8.10 on average" in text


def test_what_the_released_code_changes():
    base = "crt_mixup_cifar10_small"
    labels = "plot_official_cifar10_unmixed_only_plain_crt_small"
    text = section(findings(pair(base, labels, [0.9, 1.0, 1.1])))
    assert "Un-mixed labels in the first epochs, nothing else of PLOT: +1.00 (+0.75 to" in text
    assert "| all that the released code changes | 0 |" in text


def test_shortened_runs_are_shown_and_not_set_against_printed_numbers():
    words = ("epochs=20",)
    cut = tuple(changes(get_recipe("gcl_cifar10", *words))[1])
    records = pair("gcl_cifar10", "gcl_plot_cifar10", [0.5, 0.6, 0.7], *words, shortened=cut)
    found = findings(records)
    (place,) = found.places
    assert place.shortened
    assert place.heading == "CIFAR-10-LT, ratio 100, ResNet-32, 20 epochs, shortened, from scratch"
    assert place.gains[0].printed is None
    assert "shortened runs, not set against printed ones" in summary(found)[-1]
    assert "Overall: an interval that excludes 0." in section(found)


def test_full_runs_of_the_printed_network_are_set_against_it():
    found = findings(pair("gcl_cifar10", "gcl_plot_cifar10", [0.5, 0.6, 0.7]))
    (place,) = found.places
    assert (place.small, place.gains[0].verdict) == (False, "holds")
    other = pair("gcl_cifar10", "gcl_plot_cifar10", [0.5], "backbone=resnet20_cifar")
    assert findings(other).places[0].gains[0].printed is None


def test_runs_that_are_no_pair_are_left_out():
    alone = run("gcl_plot_cifar10_small", 0, 60)
    assert findings([alone]).places == ()
    other = run("gcl_cifar10_small", 1, 60)
    assert findings([alone, other]).places == ()  # no seed in common
    rate = run("gcl_cifar10_small", 0, 60, "stages.0.optim.lr=0.2")
    assert findings([alone, rate]).places == ()
    machine = run("gcl_cifar10_small", 0, 60, execution=execution(0.5, "Another GPU"))
    (place,) = findings([alone, machine]).places
    assert place.gains[0].time is None


def test_a_gain_is_printed_in_one_table():
    gain = printed_gain("CIFAR-10-LT", 100, "MiSLAS", "MiSLAS + PLOT")
    assert gain is not None
    assert (gain.value, gain.ratio) == (0.55, 100)
    assert printed_gain("CIFAR-10-LT", 100, "CE", "CE + PLOT") is None
    ladder = printed_gain("CIFAR-10-LT", 100, "cRT+Mixup", "cRT+Mixup + temporal design")
    assert ladder is not None
    assert (ladder.value, ladder.ratio) == (2.96, 200)


def test_the_small_track_is_a_setting_of_its_own(tmp_path):
    frame = ours(board_of(tmp_path, *plot("paco", 0.5), *plot("ce", 0.5)))
    assert set(frame["setting"]) == {"small"}
    assert set(frame["method"]) == {"PaCo", "PaCo + PLOT", "CE", "CE + PLOT"}
    assert set(frame["plot"]) == {True, False}


def test_page_and_readme_open_with_it(tmp_path: Path):
    folder = write(tmp_path, EVERY_KIND)
    (line, *_) = summary(tool.find(folder))
    page = build_page(folder)
    assert f"<li>{line}</li>" in page
    assert page.index("What was found") < page.index('role="tablist"')
    text = readme_tool().results(folder)
    assert text.startswith("[What was found](leaderboard/README.md#what-was-found):")
    assert f"- {line}" in text
    made = tool.updated(tool.PAGE.read_text(encoding="utf-8"), folder)
    assert f"- {line}" in made
    assert made.index("## What was found") < made.index("## What a record is")
    assert len([row for row in board_rows(folder) if row.get("records")]) == 14
