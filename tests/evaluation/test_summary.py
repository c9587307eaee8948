"""Tables of results for people, with the rule of their shot groups."""

from __future__ import annotations

import json

import pytest

from ltbench.data.shots import shot_groups, thirds
from ltbench.evaluation.metrics import Metrics
from ltbench.evaluation.summary import metrics_json, shot_line, text_table

METRICS = Metrics(
    class_counts=(150, 100, 20), correct=(2, 1, 1), total=(2, 2, 2),
    bin_count=(0,) * 7 + (6,) + (0,) * 7, bin_correct=(0,) * 7 + (4,) + (0,) * 7,
    bin_confidence=(0.0,) * 7 + (3.0,) + (0.0,) * 7,
)  # fmt: skip


def test_the_rule_of_the_shot_groups_and_their_sizes():
    assert shot_line(METRICS) == "many > 100, medium 20-100, few < 20: 1 / 2 / 0 classes"
    inclusive = shot_line(METRICS.with_rule("inclusive"))
    assert inclusive == "many > 99, medium 21-99, few < 21: 2 / 0 / 1 classes"


def test_the_table_is_short_and_marks_empty_groups():
    head, row, rule = text_table(METRICS).splitlines()
    assert head.split() == ["overall", "many", "medium", "few", "ECE"]
    assert row.split() == ["test,", "%", "66.67", "100.00", "50.00", "-", "16.67"]
    assert rule == shot_line(METRICS)
    assert len(head) == len(row) < 80


def test_json_has_averages_and_counts():
    tree = json.loads(metrics_json(METRICS, {"seed": 3}))
    assert tree["seed"] == 3
    assert tree["top1"] == pytest.approx(4 / 6)
    assert tree["few"] is None
    assert tree["counts"]["correct"] == [2, 1, 1]


@pytest.mark.parametrize("counts", [(150, 21, 60), (5, 4, 3, 2), tuple(range(21, 150, 3))])
def test_thirds_split_the_classes_evenly(counts):
    rule = thirds(counts)
    assert rule is not None
    sizes = [len(classes) for classes in shot_groups(counts, rule).values()]
    assert min(sizes) >= 1
    assert sizes[0] <= len(counts) // 3
    assert sizes[2] <= len(counts) // 3
    assert sum(sizes) == len(counts)


@pytest.mark.parametrize("counts", [(5,), (5, 4), (7, 7, 7, 7)])
def test_too_few_or_equal_classes_have_no_thirds(counts):
    assert thirds(counts) is None
