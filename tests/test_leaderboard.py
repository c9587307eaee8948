from __future__ import annotations

import csv
import io
import statistics
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from ltbench import get_recipe, leaderboard
from ltbench.aggregate import average_seeds
from ltbench.errors import UserError
from ltbench.metrics import BINS, Metrics
from ltbench.names import backbone_title, dataset_names, matches, method_title
from ltbench.record import Record
from ltbench.record_parts import CheckpointFacts, CodeFacts, DatasetFacts, ExecutionFacts
from ltbench.record_parts import RecipeFacts as Facts

ROOT = Path(__file__).parent.parent
COUNTS = (300, 50, 3)


def record_of(correct=(9, 5, 1), seed=0, name="mislas_cifar10", *words, **changes) -> Record:
    recipe = get_recipe(name, *words)
    bins = [(0, 0.0, 0)] * BINS
    bins[7] = (30, 15.0, sum(correct))
    shortened = changes.pop("shortened", ())
    values = {
        "recipe": Facts(
            name=recipe.name, digest=recipe.digest, resolved=recipe.tree(digest_only=True)
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
        "checkpoint": CheckpointFacts(file="model.safetensors", sha256="c" * 64, bytes=1),
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


def test_withdrawn_records_are_left_out_and_the_weakest_status_counts(tmp_path):
    gone = record_of((1, 1, 1), 2).model_copy(update={"status": "withdrawn"})
    good = record_of((9, 5, 1), 1).model_copy(update={"status": "verified"})
    row = ours(board(tmp_path, record_of(), good, gone)).iloc[0]
    assert (row["n"], row["status"], row["overall"]) == (2, "claimed", 50)


def test_same_recipe_data_code_and_seed_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"0\.json are of the same recipe, data, code and seed"):
        board(tmp_path, record_of(), record_of(date="2026-02-02"))


def test_a_later_run_of_a_seed_replaces_the_earlier_one(tmp_path):
    later = record_of((10, 10, 10), code=CodeFacts(version="0.2.0"), date="2026-02-02")
    row = ours(board(tmp_path, later, record_of())).iloc[0]
    assert (row["n"], row["overall"]) == (1, 100)


def test_an_edited_record_stops_the_table(tmp_path):
    board(tmp_path, record_of())
    path = tmp_path / "records" / "0" / "0.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UserError, match=r"0\.json: was edited .* `seed`"):
        board(tmp_path)


def test_committed_records_are_sound():
    for record in leaderboard.records():
        assert record.status != "paper"


def test_published_numbers_are_exactly_those_of_the_source(shared_data):
    source = shared_data.parent / "specs" / "published.csv"
    if not source.is_file():
        pytest.skip(f"needs {source}")
    with source.open(newline="") as file:
        theirs = list(csv.DictReader(file))
    rows = leaderboard.published(None)
    assert len(rows) == len(theirs) == 457
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
        "top1": 438,
        "open_set_f": 12,
        "gpu_hours": 5,
        "open_set_f_percent": 2,
    }
    frame = board(tmp_path)
    assert len(frame) == 438
    assert not frame["source"].str.contains("open-set|GPU hours").any()
    assert frame["overall"].between(20, 100).all()


@pytest.mark.parametrize(
    ("filters", "dataset", "count"),
    [
        ({"dataset": "cifar10"}, "CIFAR-10-LT", 214),
        ({"dataset": "CIFAR-10-LT"}, "CIFAR-10-LT", 214),
        ({"dataset": "cifar100_lt"}, "CIFAR-100-LT", 90),
        ({"dataset": "inat"}, "iNaturalist-2018", 40),
        ({"dataset": "iNaturalist-2018"}, "iNaturalist-2018", 40),
        ({"dataset": "INAT18", "ratio": "500"}, "iNaturalist-2018", 40),
        ({"dataset": "inat", "ratio": 512}, "iNaturalist-2018", 40),
        ({"dataset": "places"}, "Places-LT", 33),
        ({"dataset": "imagenet", "backbone": "resnext50"}, "ImageNet-LT", 34),
        ({"dataset": "cifar10", "ratio": "10"}, "CIFAR-10-LT", 2),
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
    for _, group in frame.groupby(["dataset", "imbalance_ratio"]):
        assert group["overall"].is_monotonic_decreasing
    few = board(tmp_path, dataset="inat", sort="few")["few"]
    assert few.dropna().is_monotonic_decreasing
    assert few.notna().tolist() == sorted(few.notna(), reverse=True)  # missing ones last
    methods = board(tmp_path, dataset="cifar100", ratio=50, sort="method")["method"]
    assert methods.str.lower().iloc[0].startswith("bbn")


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
    Console(file=out, width=140).print(leaderboard.render(frame))
    text = out.getvalue()
    assert "CIFAR-10-LT, ratio 100, ResNet-32" in text
    line = next(x for x in text.splitlines() if "ours, claimed, n=2, 200+10 epochs" in x)
    assert "48.3±2.4" in line
    assert "PLOT app. Table 4" in text
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


def test_models_with_weights_are_listed(monkeypatch, tmp_path):
    board(tmp_path, record_of(seed=3))
    monkeypatch.setattr("ltbench.leaderboard.tables.leaderboard_dir", lambda: tmp_path)
    assert leaderboard.trained_models("mislas*") == [("mislas_cifar10.3", "50.00 % on CIFAR-10-LT")]
    assert leaderboard.trained_models("crt*") == []


def test_names():
    assert method_title("logit_adjustment_posthoc_plot_places_lt") == (
        "Logit Adjustment (post-hoc) + PLOT"
    )
    assert method_title("ldam_drw_cifar100_if50") == "LDAM-DRW"
    assert method_title("quickstart") == "quickstart"
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
