from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from ltbench.data import digits
from ltbench.data.digits import DigitsLT
from ltbench.errors import UserError


def test_long_tail_has_all_three_shot_groups():
    data = DigitsLT().load()
    counts = np.array(data.info.class_counts)
    assert data.info.name == "digits_lt"
    assert np.array_equal(np.bincount(data.train.labels), counts)
    assert np.array_equal(np.bincount(data.test.labels), [60] * 10)
    assert counts[0] == 114
    assert counts[-1] == 5
    assert (counts > 100).any()
    assert ((counts >= 20) & (counts <= 100)).any()
    assert (counts < 20).any()
    assert data.val is None


def test_the_draw_never_changes():
    """A changed hash means that records of earlier versions cannot be compared."""
    manifest = DigitsLT().load().manifest
    assert manifest["test_index_sha256"][:16] == "b16b3150384fa119"
    assert manifest["index_sha256"][:16] == "901dd00f5fcd1b77"
    other = DigitsLT(imbalance_ratio=50, profile="step").load().manifest
    assert other["test_index_sha256"] == manifest["test_index_sha256"]
    assert other["index_sha256"] != manifest["index_sha256"]


def test_images_are_those_of_scikit_learn_and_disjoint():
    data = DigitsLT(image_size=8, imbalance_ratio=1).load()
    rows = {tuple(image.ravel()): y for image, y in zip(*_digits(), strict=True)}
    seen = []
    for part in (data.train, data.test):
        for image, label in zip(part.images, part.labels, strict=True):
            grey = tuple(np.rint(image[..., 0] / 255 * 16).astype(int).ravel())
            assert rows[grey] == label
            assert np.array_equal(image[..., 0], image[..., 2])
            seen.append(grey)
    assert len(seen) == len(set(seen)) == 10 * 114 + 600


def test_they_are_read_without_importing_the_library_that_has_them(monkeypatch):
    found = digits._read()
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: None)
    for ours, theirs in zip(found, digits._read(), strict=True):
        assert np.array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


def _digits():
    found = load_digits()
    return found.images.astype(int), found.target


@pytest.mark.parametrize("size", [8, 16, 32])
def test_enlarged_images_are_shifted_but_not_mirrored(size):
    data = DigitsLT(image_size=size).load()
    at = np.arange(100)
    (plain,) = data.train.load(at, key=None, positions=at)
    (moved,) = data.train.load(at, key=1, positions=at)
    assert plain.shape == moved.shape == (100, 3, size, size)
    pad = size // 8
    black = float(plain.min())
    border = torch.nn.functional.pad(plain, [pad] * 4, value=black)
    shifts = [
        border[:, :, y : y + size, x : x + size]
        for y in range(2 * pad + 1)
        for x in range(2 * pad + 1)
    ]
    errors = torch.stack([(s - moved).abs().amax(dim=(1, 2, 3)) for s in shifts])
    assert errors.amin(dim=0).max() < 1e-6
    assert len(set(errors.argmin(dim=0).tolist())) > len(shifts) // 2


def test_the_task_can_be_learnt():
    data = DigitsLT(image_size=8).load()
    (x,) = data.train.load(np.arange(len(data.train)), key=None, positions=np.arange(0))
    (t,) = data.test.load(np.arange(len(data.test)), key=None, positions=np.arange(0))
    model = LogisticRegression(max_iter=200).fit(x.flatten(1).numpy(), data.train.labels)
    assert model.score(t.flatten(1).numpy(), data.test.labels) > 0.7


def test_mistakes_are_named():
    with pytest.raises(UserError, match="must be at most 114"):
        DigitsLT(imbalance_ratio=500).load()
    with pytest.raises(ValidationError):
        DigitsLT(image_size=12)
