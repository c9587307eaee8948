from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from ltbench.data.shots import shot_groups
from ltbench.errors import UserError
from ltbench.evaluation.metrics import BINS, Accumulator, Metrics, open_set_f

COUNTS = (300, 50, 3)


def metrics_of(class_counts, recalls, rule="strict", images=10) -> Metrics:
    """Metrics with given per-class recalls, every image at confidence 0.5."""
    correct = [round(images * r) for r in recalls]
    n = images * len(recalls)
    bins = [(0, 0.0, 0)] * BINS
    bins[7] = (n, 0.5 * n, sum(correct))
    return Metrics.from_counts(correct, [images] * len(recalls), bins, class_counts, rule)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("shot_groups_strict", "strict"),
        ("shot_groups_inclusive", "inclusive"),
        ("shot_groups_cifar10_empty", "strict"),
    ],
)
def test_shot_groups_vectors(vector, name, rule):
    v = vector(name)
    m = metrics_of(v["inputs"]["train_counts"], v["inputs"]["class_accuracy"], rule)
    found = [m.many, m.medium, m.few]
    for ours, theirs in zip(found, v["expected"], strict=True):
        assert ours == (None if theirs is None else pytest.approx(theirs, abs=v["tolerance"]))


def test_shot_groups_own_thresholds_and_mistakes():
    assert shot_groups([9, 10, 40, 41], (10, 40)) == {"many": [3], "medium": [1, 2], "few": [0]}
    with pytest.raises(UserError, match="low <= high"):
        shot_groups([1], (5, 4))
    with pytest.raises(UserError, match="found `strikt`"):
        shot_groups([1], "strikt")


@pytest.mark.parametrize(
    ("name", "rejected_is_wrong"), [("open_f_oltr", True), ("open_f_rejected_not_fp", False)]
)
def test_open_set_f_vectors(vector, name, rejected_is_wrong):
    v = vector(name)
    predictions, labels = v["inputs"]["pred"], v["inputs"]["label"]
    for make in (list, torch.tensor):
        found = open_set_f(make(predictions), make(labels), rejected_is_wrong=rejected_is_wrong)
        assert found == pytest.approx(v["expected"], abs=v["tolerance"])


@pytest.mark.parametrize("rejected_is_wrong", [True, False])
def test_open_set_f_at_its_ends(rejected_is_wrong):
    known, unknown = [0, 1, 2], [-1, -1]
    perfect = open_set_f(known + unknown, known + unknown, rejected_is_wrong=rejected_is_wrong)
    assert perfect == 1
    for nothing in ([-1, -1, -1], [1, 2, 0]):
        assert open_set_f(nothing, known, rejected_is_wrong=rejected_is_wrong) == 0
    accepted = open_set_f([0, 1, 2, 0, 0], known + unknown, rejected_is_wrong=rejected_is_wrong)
    assert accepted == pytest.approx(2 * 3 / (2 * 3 + 2))
    with pytest.raises(ValueError, match="as many predictions"):
        open_set_f([0], [0, 1], rejected_is_wrong=rejected_is_wrong)


def test_ece_vector(vector):
    v = vector("ece_15bins")
    confidence = torch.tensor(v["inputs"]["confidence"], dtype=torch.float64)
    correct = torch.tensor(v["inputs"]["correct"]).bool()
    acc = Accumulator(1)
    acc.count(confidence, correct, torch.zeros(len(correct), dtype=torch.int64))
    assert acc.metrics([5]).ece == pytest.approx(v["expected"], abs=v["tolerance"])


def test_bins_are_open_below_and_closed_above():
    acc = Accumulator(1)
    edges = torch.tensor([1 / 15, 2 / 15, 0.8, 1.0], dtype=torch.float64)
    confidence = torch.cat([edges, torch.nextafter(edges[:3], torch.ones(3).double())])
    acc.count(confidence, torch.ones(7).bool(), torch.zeros(7, dtype=torch.int64))
    count = acc.metrics([5]).bin_count
    assert {b: n for b, n in enumerate(count) if n} == {0: 1, 1: 2, 2: 1, 11: 1, 12: 1, 14: 1}


def test_accumulator_against_a_plain_loop():
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(200, 3, generator=g) * 3
    labels = torch.randint(0, 3, (200,), generator=g)
    acc = Accumulator(3)
    acc.update(logits, labels)
    m = acc.metrics(COUNTS)
    right = [0] * 3
    table = [[0, 0.0, 0] for _ in range(BINS)]
    for z, y in zip(logits, labels.tolist(), strict=True):
        p = (z.double() - z.double().max()).exp()
        p = p / p.sum()
        hit = int(p.argmax()) == y
        b = min(k for k in range(BINS) if float(p.max()) <= (k + 1) / BINS)
        table[b][0] += 1
        table[b][1] += float(p.max())
        table[b][2] += hit
        right[y] += hit
    assert m.correct == tuple(right)
    assert m.total == tuple(int((labels == k).sum()) for k in range(3))
    assert list(m.bin_count) == [t[0] for t in table]
    assert list(m.bin_correct) == [t[2] for t in table]
    assert m.bin_confidence == pytest.approx([t[1] for t in table], abs=1e-8)
    assert m.top1 == sum(right) / 200
    ece = sum(abs(t[2] - t[1]) for t in table) / 200
    assert m.ece == pytest.approx(ece, abs=1e-9)


def test_sums_of_uneven_shares_equal_the_whole_exactly():
    g = torch.Generator().manual_seed(4)
    logits, labels = torch.randn(101, 3, generator=g), torch.randint(0, 3, (101,), generator=g)
    whole = Accumulator(3)
    whole.update(logits, labels)
    parts = []
    for share in ([0, 1, 2], list(range(3, 100)), [100], []):
        acc = Accumulator(3)
        acc.update(logits[share], labels[share])
        parts.append(acc.tensor())
    both = Accumulator(3)
    both.load_tensor(torch.stack(parts).sum(dim=0))
    assert both.metrics(COUNTS) == whole.metrics(COUNTS)
    assert whole.tensor().dtype == torch.int64


def test_unbalanced_test_set_and_class_without_test_image():
    bins = [(0, 0.0, 0)] * BINS
    bins[14] = (14, 13.9, 8)
    m = Metrics.from_counts([8, 0, 0], [10, 4, 0], bins, COUNTS)
    assert m.top1 == 8 / 14
    assert m.mean_recall == 0.4
    assert (m.many, m.medium, m.few) == (0.8, 0.0, None)


def test_another_rule_on_the_same_counts():
    m = metrics_of((100, 60, 20), (0.9, 0.5, 0.1))
    assert (m.many, m.medium, m.few) == (None, 0.5, None)
    again = m.with_rule("inclusive")
    assert (again.many, again.medium, again.few) == (0.9, 0.5, 0.1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_diverged_models_and_empty_sets_are_named(bad):
    acc = Accumulator(2)
    with pytest.raises(UserError, match="at least one test image"):
        acc.metrics([5, 5])
    acc.update(torch.tensor([[0.0, bad], [1.0, 2.0]]), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="logits for 1 of 2 images"):
        acc.metrics([5, 5])


def test_a_masked_class_is_no_failure():
    acc = Accumulator(2)
    acc.update(torch.tensor([[0.0, float("-inf")]]), torch.tensor([0]))
    assert acc.metrics([5, 5]).top1 == 1.0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("correct", (11, 5, 1), "class 0 has 11 correct of 10"),
        ("correct", (8, 5, 1), "bins hold"),
        ("total", (10, 10), "expected 3 classes"),
        ("bin_confidence", (0.0,) * BINS, "bin 7"),
    ],
)
def test_counts_that_contradict_each_other_are_refused(field, value, message):
    good = metrics_of(COUNTS, (0.9, 0.5, 0.1)).model_dump()
    with pytest.raises(ValidationError, match=message):
        Metrics.model_validate({**good, field: value})
