from __future__ import annotations

import numpy as np
import pytest

from ltbench.data.longtail import class_profile, subsample
from ltbench.errors import UserError


@pytest.mark.parametrize("ratio", [10, 50, 100, 200])
@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_exponential_profile_has_the_published_counts(vector, dataset, ratio):
    case = vector(f"{dataset}_exp_ir{ratio}")
    counts = class_profile(case["inputs"]["n_max"], case["inputs"]["C"], ratio)
    expected = case["expected"]
    assert sum(counts) == expected["total"]
    if "counts" in expected:
        assert list(counts) == expected["counts"]
    else:
        assert list(counts[:5]) == expected["first5"]
        assert list(counts[-5:]) == expected["last5"]
        assert sum(n > 100 for n in counts) == expected["n_gt100"]
        assert sum(n < 20 for n in counts) == expected["n_lt20"]
        assert sum(n <= 20 for n in counts) == expected["n_le20"]


def test_step_profile_has_the_published_counts(vector):
    case = vector("cifar10_step_ir100")
    counts = class_profile(case["inputs"]["n_max"], case["inputs"]["C"], 100, "step")
    assert list(counts) == case["expected"]["counts"]
    assert sum(class_profile(500, 100, 100, "step")) == 25250


def test_ratio_one_and_a_single_class_keep_everything():
    assert class_profile(7, 3, 1) == class_profile(7, 3, 1, "step") == (7, 7, 7)
    assert class_profile(7, 1, 10) == (7,)


@pytest.mark.parametrize("bad", [(0, 10, 10), (10, 0, 10), (10, 10, 0.5)])
def test_profile_refuses_values_out_of_range(bad):
    with pytest.raises(UserError, match="imbalance_ratio >= 1"):
        class_profile(*bad)


def test_subsample_keeps_the_counts_and_is_nested():
    labels = np.arange(300) % 3
    large = subsample(labels, (90, 40, 10), seed=1)
    small = subsample(labels, (50, 20, 0), seed=1)
    assert large.dtype == np.int64
    assert np.bincount(labels[large]).tolist() == [90, 40, 10]
    assert np.all(np.diff(large) > 0)
    assert set(small) < set(large)
    assert set(large) != set(subsample(labels, (90, 40, 10), seed=2))


def test_subsample_names_a_class_that_is_too_small():
    with pytest.raises(UserError, match="class 1 must keep 3 images but has 2"):
        subsample(np.array([0, 0, 1, 1]), (1, 3), seed=0)
