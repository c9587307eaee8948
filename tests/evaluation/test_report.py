"""`ltbench eval out=DIR`: every table agrees with the metrics, and nothing else is touched."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from ltbench.cli.evaluate import eval_
from ltbench.data.shots import shot_groups
from ltbench.errors import UserError
from ltbench.evaluation import report
from ltbench.evaluation.confusion import _blocks, draw_confusion
from ltbench.evaluation.tables import confusion_frame


def invoke(*words):
    return CliRunner().invoke(eval_, ["model=quickstart", "workers=0", *words])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval") / "parent" / "results"
    done = invoke(f"out={folder}")
    assert done.exit_code == 0, done.output
    assert "confusion.png" in done.output
    return folder


def test_tables_agree_with_the_metrics(out):
    assert {p.name for p in out.iterdir()} == set(report.FILES) - {"predictions.parquet"}
    metrics = json.loads((out / "metrics.json").read_text())
    seen = pd.read_csv(out / "predictions.csv")
    classes = pd.read_csv(out / "per_class.csv")
    square = pd.read_csv(out / "confusion.csv", index_col=0)
    assert metrics["images"] == len(seen) == 600
    assert seen["index"].tolist() == list(range(600))
    assert (seen.label == seen.predicted).mean() == metrics["top1"]
    right = seen[seen.label == seen.predicted]
    assert (right["class"] == right.predicted_class).all()
    assert np.array_equal(right.probability_label, right.probability_predicted)
    wrong = seen[seen.label != seen.predicted]
    assert (wrong.probability_label <= wrong.probability_predicted).all()
    assert classes.correct.tolist() == metrics["counts"]["correct"]
    assert classes.test_images.tolist() == metrics["counts"]["total"]
    assert classes.train_images.tolist() == metrics["counts"]["class_counts"]
    assert np.diag(square).tolist() == classes.correct.tolist()
    assert square.sum(axis=1).tolist() == classes.test_images.tolist()
    assert square.columns.tolist() == square.index.tolist() == classes["class"].tolist()
    crossed = pd.crosstab(seen["class"], seen.predicted_class)
    for row in crossed.index:
        for column in crossed.columns:
            assert square.loc[row, column] == crossed.loc[row, column]
    few = classes[classes.group == "few"]
    assert few.accuracy.mean() == pytest.approx(metrics["few"])
    with Image.open(out / "confusion.png") as picture:
        assert min(picture.size) > 500


def test_an_earlier_evaluation_is_replaced_and_nothing_else(out, tmp_path):
    assert invoke(f"out={out}", "table=parquet").exit_code == 0
    assert not (out / "predictions.csv").exists()
    assert len(pd.read_parquet(out / "predictions.parquet")) == 600
    assert [p.name for p in out.parent.iterdir()] == ["results"]
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "file"):
        done = invoke(f"out={folder}")
        assert isinstance(done.exception, UserError)
        assert "expected a new folder" in str(done.exception)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "notes.txt"]


def test_no_half_written_folder(tmp_path, monkeypatch):
    calls = []

    def fails(path):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "flush", fails)
    done = invoke(f"out={tmp_path / 'results'}")
    assert isinstance(done.exception, UserError)
    assert "No space left" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_many_classes_are_pairs_that_occur():
    names = [f"c{k}" for k in range(1001)]
    confusion = np.zeros((1001, 1001), dtype=np.int64)
    confusion[3, 1000] = 5
    table = confusion_frame(confusion, names)
    assert table.to_dict("records") == [
        {"label": 3, "class": "c3", "predicted": 1000, "predicted_class": "c1000", "images": 5}
    ]
    same = confusion_frame(np.eye(2, dtype=int), ["a", "a"])
    assert same.to_numpy().tolist() == [["a", 1, 0], ["a", 0, 1]]


def test_blocks_are_means_over_tested_classes():
    share = 100 * np.eye(200)
    tested = np.ones(200, bool)
    share[0], tested[0] = 0, False
    assert np.array_equal(_blocks(share, tested), 100 * np.eye(100))


@pytest.mark.parametrize("classes", [3, 40, 170])
def test_pictures_of_any_size_are_drawn_without_a_display(classes, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    counts = [5 + 3 * k for k in range(classes)]
    names = [f"$\\frac{k} {'x' * 60}" for k in range(classes)]
    matrix = np.eye(classes, dtype=np.int64)
    png = draw_confusion(matrix, names, counts, shot_groups(counts), "a_$b on c")
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400
