from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ltbench.diagnose.errors import (
    Errors,
    as_png,
    class_table,
    confusion_table,
    group_table,
    pixels_of,
)
from ltbench.diagnose.figures.errors import from_png
from ltbench.evaluation.evaluate import evaluate_split

NAMES = ("a", "b", "c", "d")
COUNTS = (200, 150, 50, 5)
MEMBERS = {"many": [0, 1], "medium": [2], "few": [3]}
#                  a           b        c        d
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3])
TAKEN = np.array([0, 0, 1, 2, 1, 1, 0, 0, 1, 2, 0, 0, 1, 2])


def test_groups_by_hand():
    table = group_table(LABELS, TAKEN, MEMBERS).set_index(["true", "predicted"])
    assert table.loc[("many", "many"), "images"] == 6
    assert table.loc[("many", "many"), "correct"] == 4  # the other two are in the group, and wrong
    assert table.loc[("few", "many"), "images"] == 3
    assert table.loc[("few", "many"), "share"] == 0.75
    assert table.loc[("few", "few"), "images"] == 0
    assert table["images"].sum() == len(LABELS)
    assert table.groupby("true")["share"].sum().tolist() == pytest.approx([1, 1, 1])


def test_classes_by_hand():
    table = class_table(LABELS, TAKEN, COUNTS, NAMES, MEMBERS)
    assert table["predictions"].tolist() == [6, 5, 3, 0]
    assert table["recall"].tolist() == pytest.approx([2 / 4, 2 / 3, 1 / 3, 0])
    assert table["precision"].tolist()[:3] == pytest.approx([2 / 6, 2 / 5, 1 / 3])
    assert np.isnan(table["precision"][3])  # never predicted
    assert table["predicted_over_true"].tolist() == pytest.approx([6 / 4, 5 / 3, 1, 0])
    assert table["group"].tolist() == ["many", "many", "medium", "few"]


def test_confusions_by_hand():
    table = confusion_table(LABELS, TAKEN, NAMES, most=2)
    rows = [tuple(r) for r in table[["class", "place", "predicted", "images"]].to_numpy()]
    assert rows == [
        *((0, 0, 1, 1), (0, 1, 2, 1)),  # a tie: the smaller class first
        (1, 0, 0, 1),
        *((2, 0, 0, 1), (2, 1, 1, 1)),
        *((3, 0, 0, 2), (3, 1, 1, 1)),  # c is left out: two rows a class
    ]
    assert table["predicted_name"].tolist()[-2:] == ["a", "b"]
    assert table["share"].tolist()[-2:] == [0.5, 0.25]
    assert len(confusion_table(LABELS, LABELS, NAMES, most=2)) == 0


def test_tables_agree_with_the_evaluation(subject):
    tables = Errors(Errors.Options()).measure(subject)
    info = subject.data.info
    metrics = evaluate_split(
        subject.method, subject.data.test, info.class_counts, device=subject.device
    )
    classes = tables["classes"]
    assert tuple(classes["correct"]) == metrics.correct
    assert tuple(classes["test_images"]) == metrics.total
    assert classes["predictions"].sum() == sum(metrics.total)
    assert tables["groups"]["correct"].sum() == sum(metrics.correct)
    wrong = tables["confusions"].groupby("class")["images"].sum()
    assert all(n <= metrics.total[k] - metrics.correct[k] for k, n in wrong.items())


def test_examples_are_wrong_images_of_the_worst_classes(subject):
    options = Errors.Options(example_classes=2, examples=3)
    tables = Errors(options).measure(subject)
    examples, classes = tables["examples"], tables["classes"].set_index("class")
    shown = list(dict.fromkeys(examples["class"]))
    assert len(shown) == 2
    others = classes.drop(shown)
    assert classes.loc[shown, "recall"].max() <= others["recall"].min()
    assert (subject.data.test.labels[examples["index"]] == examples["class"]).all()
    assert (examples["predicted"] != examples["class"]).all()
    for _, rows in examples.groupby("class"):
        assert (rows["confidence"].diff().dropna() <= 0).all()
    first = examples.iloc[0]
    stored = subject.data.test.images[first["index"]]
    assert np.array_equal(from_png(first["png"]), stored)


def test_pixels_survive_a_file_and_large_ones_are_made_smaller(subject):
    index = np.array([3, 0])
    for found, expected in zip(
        pixels_of(subject, index), subject.data.test.images[index], strict=True
    ):
        assert np.array_equal(found, expected)
    assert from_png(as_png(np.zeros((100, 200, 3), np.uint8))).shape == (32, 64, 3)


def test_tables_survive_files(subject, tmp_path):
    for name, table in Errors(Errors.Options(examples=2)).measure(subject).items():
        table.to_parquet(tmp_path / name)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / name), table)


def tables_of(size: int) -> dict[str, pd.DataFrame]:
    rng = np.random.default_rng(0)
    counts = np.sort(rng.integers(5, 300, size))[::-1]
    names = [f"class {k}" for k in range(size)]
    labels = np.repeat(np.arange(size), 4)
    taken = np.where(rng.random(len(labels)) < 0.5, labels, rng.integers(0, size, len(labels)))
    members = {
        "many": np.flatnonzero(counts > 100).tolist(),
        "medium": np.flatnonzero((counts >= 20) & (counts <= 100)).tolist(),
        "few": np.flatnonzero(counts < 20).tolist(),
    }
    return {
        "groups": group_table(labels, taken, members),
        "classes": class_table(labels, taken, counts.tolist(), names, members),
        "confusions": confusion_table(labels, taken, names, 3),
        "examples": pd.DataFrame({"class": []}),
    }


def test_thousands_of_classes_are_drawn_in_bins():
    figures = Errors(Errors.Options()).draw({"large": tables_of(8142)})
    assert set(figures) == {"groups", "classes", "worst"}  # no examples, no such figure
    above, below = figures["classes"].axes
    assert len(above.lines[0].get_xdata()) == 50
    assert "mean of 50 bins" in below.get_xlabel()


def test_data_sets_of_different_size_share_an_axis_in_percent():
    figure = Errors(Errors.Options()).draw({"a": tables_of(400), "b": tables_of(30)})["classes"]
    for line in figure.axes[1].lines:
        assert 0 < min(line.get_xdata()) < max(line.get_xdata()) < 100
    assert "%" in figure.axes[1].get_xlabel()


def test_figures_of_two(subject):
    diagnostic = Errors(Errors.Options(example_classes=1, examples=2))
    tables = diagnostic.measure(subject)
    figures = diagnostic.draw({"a": tables, "b": tables})
    assert [axes.get_title() for axes in figures["groups"].axes[:2]] == ["a", "b"]
    assert [axes.get_title() for axes in figures["examples"].axes] == ["a", "b"]
    assert len(figures["examples"].axes[0].images) == 2
