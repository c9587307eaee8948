from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import chi2

from ltbench.data import SAMPLERS
from ltbench.data.samplers import (
    ClassAware,
    Deferred,
    Effective,
    Instance,
    Power,
    Progressive,
    Subset,
    TorchSampler,
    Weighted,
    class_aware_visits,
    class_probabilities,
    image_weights,
)
from ltbench.errors import UserError

COUNTS = [500, 120, 30, 5]
LABELS = np.random.RandomState(0).permutation(np.repeat(np.arange(4), COUNTS))


@pytest.mark.parametrize(
    ("name", "per_class", "length"),
    [
        ("class_aware_sampler_nsc1", 1, 18),
        ("class_aware_sampler_nsc4", 4, 18),
        ("class_aware_sampler_plot", 1, 10),
    ],
)
def test_class_aware_visits_equal_the_authors_code(vector, name, per_class, length):
    case = vector(name)
    labels = np.array(case["inputs"]["labels"])
    visits = -(-length // per_class)
    shuffles = Shuffles(labels, per_class, visits)
    drawn = class_aware_visits(
        labels, per_class, range(visits), shuffles.class_keys, shuffles.image_keys
    )
    assert drawn.reshape(-1)[:length].tolist() == case["expected"]["indices"]


class Shuffles:
    """Draws one visit after another, as loops over iterators do, and notes every shuffle."""

    def __init__(self, labels, per_class, visits):
        rng, classes = random.Random(7), np.unique(labels).tolist()
        images = {c: np.flatnonzero(labels == c).tolist() for c in classes}
        at, cycle = {c: len(images[c]) for c in classes}, dict.fromkeys(classes, -1)
        self.of_classes, self.of_images, self.drawn = {}, {}, []
        for visit in range(visits):
            if visit % len(classes) == 0:
                rng.shuffle(classes)
                for rank, c in enumerate(classes):
                    self.of_classes[visit // len(classes), c] = rank
            c = classes[visit % len(classes)]
            for _ in range(per_class):
                if at[c] == len(images[c]):
                    rng.shuffle(images[c])
                    at[c], cycle[c] = 0, cycle[c] + 1
                    for rank, image in enumerate(images[c]):
                        self.of_images[cycle[c], image] = rank
                self.drawn.append(images[c][at[c]])
                at[c] += 1

    def class_keys(self, cycles, classes):
        return np.vectorize(lambda *key: self.of_classes[key])(cycles, classes)

    def image_keys(self, cycles, images):
        return np.vectorize(lambda *key: self.of_images[key])(cycles, images)


@pytest.mark.parametrize("per_class", [1, 3, 4])
def test_any_visit_is_that_of_drawing_one_after_another(per_class):
    labels = np.random.RandomState(1).permutation(np.repeat([0, 1, 3, 4], [7, 4, 2, 1]))
    shuffles = Shuffles(labels, per_class, 60)
    at_once = [
        class_aware_visits(labels, per_class, part, shuffles.class_keys, shuffles.image_keys)
        for part in (range(17), range(17, 49), range(49, 60))
    ]
    assert np.concatenate(at_once).reshape(-1).tolist() == shuffles.drawn


@pytest.mark.parametrize("per_class", [1, 4])
def test_class_aware_sampling_goes_on_over_epochs(per_class):
    """Every image of a class is drawn before one is drawn again, whatever the epoch."""
    sampler = ClassAware(ClassAware.Config(per_class=per_class, length="batches"))
    epochs = [sampler.order(LABELS, 3, epoch, 10, 64) for epoch in range(7)]
    repeats = np.bincount(np.concatenate(epochs), minlength=len(LABELS))
    for c in range(4):
        assert np.ptp(repeats[c == LABELS]) <= 1


def test_effective_weights_equal_the_authors_code(vector):
    case = vector("gcl_sampler_weights")
    counts = case["inputs"]["counts"]
    for key, weights in {
        "balanced": image_weights(counts, "effective", beta=1),
        "effective": image_weights(counts, "effective"),
        "class_based": image_weights(counts, "effective", beta="class_based"),
    }.items():
        np.testing.assert_allclose(weights, case["expected"][key], rtol=1e-6)
    np.testing.assert_allclose(
        image_weights(counts, "effective", beta=1), image_weights(counts, "class_aware")
    )


def test_reversed_probabilities_equal_the_vector(vector):
    case = vector("bbn_reverse_sampler")
    found = class_probabilities(case["inputs"]["counts"], "reversed")
    np.testing.assert_allclose(found, case["expected"], rtol=1e-6)


def test_probabilities_at_their_limits():
    shares = np.array(COUNTS) / sum(COUNTS)
    np.testing.assert_allclose(class_probabilities(COUNTS, "instance"), shares)
    np.testing.assert_allclose(class_probabilities(COUNTS, "class_aware"), 0.25)
    np.testing.assert_allclose(class_probabilities(COUNTS, "effective", beta=0), shares)
    np.testing.assert_allclose(class_probabilities(COUNTS, "progressive", progress=0), shares)
    np.testing.assert_allclose(class_probabilities(COUNTS, "progressive", progress=1), 0.25)
    for name in SAMPLERS.names():
        np.testing.assert_allclose(
            class_probabilities([6, 6, 0, 6], name), [1 / 3, 1 / 3, 0, 1 / 3]
        )
    np.testing.assert_allclose(
        class_probabilities([6, 6], "effective", beta="class_based"), [0.5, 0.5]
    )


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_order_is_a_pure_function(name):
    sampler = SAMPLERS.get(name)()
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first = sampler.order(LABELS, 5, 1, 10, 64)
    assert first.dtype == np.int64
    assert first.min() >= 0
    assert first.max() < len(LABELS)
    assert np.array_equal(first, sampler.order(LABELS, 5, 1, 10, 64))
    assert not np.array_equal(first, sampler.order(LABELS, 5, 2, 10, 64))
    assert not np.array_equal(first, sampler.order(LABELS, 6, 1, 10, 64))
    after = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


GOLDEN = {
    "subset": "a4300a5ed90656a4",
    "weighted": "7f31fd2336450067",
    "power": "10f0e85282cf049e",
    "deferred": "a4300a5ed90656a4",  # that of instance sampling until its start
    "class_aware": "596be2a2198118dd",
    "effective": "31df078f3de65616",
    "instance": "a4300a5ed90656a4",
    "progressive": "4d29407fabac53c4",
    "reversed": "98aae021d44ac374",
    "square_root": "10f0e85282cf049e",
}


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_orders_never_change(name):
    """A changed hash means that recorded runs can no longer be repeated."""
    order = SAMPLERS.get(name)().order(LABELS, 0, 3, 10, 64)
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] == GOLDEN[name]


@pytest.mark.parametrize(
    "name", ["square_root", "reversed", "progressive", "effective", "weighted"]
)
def test_drawn_classes_follow_the_probabilities(name):
    epoch, epochs, draws = 2, 10, 40
    options = {"progress": epoch / (epochs - 1)} if name == "progressive" else {}
    sampler = SAMPLERS.get(name)()
    drawn = [sampler.order(LABELS, seed, epoch, epochs, 64) for seed in range(draws)]
    assert all(len(order) == len(LABELS) for order in drawn)
    all_drawn = np.concatenate(drawn)
    p = class_probabilities(COUNTS, name, **options)
    _assert_frequencies(np.bincount(LABELS[all_drawn], minlength=4), p)
    for c in range(4):  # and within a class every image alike
        inside = np.bincount(all_drawn, minlength=len(LABELS))[c == LABELS]
        _assert_frequencies(inside, np.full(COUNTS[c], 1 / COUNTS[c]))


def _assert_frequencies(found, p):
    expected = found.sum() * p
    statistic = float(((found - expected) ** 2 / expected).sum())
    assert statistic < chi2.ppf(0.9999, len(p) - 1)


def test_instance_visits_every_image_once():
    assert sorted(Instance().order(LABELS, 1, 4, 10, 64)) == list(range(len(LABELS)))


def test_progressive_goes_from_instance_to_balanced():
    first = np.bincount(LABELS[Progressive().order(LABELS, 0, 0, 10, 64)], minlength=4)
    last = np.bincount(LABELS[Progressive().order(LABELS, 0, 9, 10, 64)], minlength=4)
    _assert_frequencies(first, np.array(COUNTS) / sum(COUNTS))
    _assert_frequencies(last, np.full(4, 0.25))


def test_classes_without_images_are_never_drawn():
    labels = np.array([1, 1, 3, 3, 3])
    for name in SAMPLERS.names():
        order = SAMPLERS.get(name)().order(labels, 0, 1, 3, 2)
        assert set(labels[order]) <= {1, 3}


@pytest.mark.parametrize("per_class", [1, 4])
def test_class_aware_draws_are_even(per_class):
    sampler = ClassAware(ClassAware.Config(per_class=per_class))
    order = sampler.order(LABELS, 0, 0, 1, 64)
    by_class = np.bincount(LABELS[order])
    assert np.ptp(by_class) <= per_class
    repeats = np.bincount(order, minlength=len(LABELS))
    for c in range(4):
        assert np.ptp(repeats[c == LABELS]) <= 1


@pytest.mark.parametrize(
    ("length", "expected"),
    [("images", 655), ("batches", 640), ("mislas", 12 * 64), ("oversample", 2000)],
)
def test_class_aware_epoch_lengths(length, expected):
    sampler = ClassAware(ClassAware.Config(length=length))
    assert len(sampler.order(LABELS, 0, 0, 1, 64)) == expected


def test_mistakes_are_named():
    with pytest.raises(UserError, match="at least one batch of 1000 images, found 655"):
        ClassAware(ClassAware.Config(length="batches")).order(LABELS, 0, 0, 1, 1000)
    with pytest.raises(UserError, match=r"unknown sampler `sqrt`; known: .*square_root"):
        class_probabilities(COUNTS, "sqrt")
    with pytest.raises(ValidationError):
        Effective.Config(beta=1.5)


def test_torch_sampler_in_a_plain_loader():
    sampler = TorchSampler(LABELS, "class_aware", seed=3, batch_size=64)
    loader = torch.utils.data.DataLoader(LABELS, batch_size=64, sampler=sampler)
    first = torch.cat(list(loader))
    assert torch.bincount(first).min() > 150
    order = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != order
    sampler.set_epoch(0)
    assert list(sampler) == order
    halves = [TorchSampler(LABELS, ClassAware(), 3, 64, rank=r, ranks=2) for r in range(2)]
    assert [len(h) for h in halves] == [327, 327]
    woven = [i for pair in zip(*halves, strict=True) for i in pair]
    assert woven == order[:654]


def test_deferred_is_instance_sampling_then_balanced():
    """The change comes at the start epoch, and each phase is that of the sampler it stands for."""
    arguments = {"seed": 3, "epochs": 10, "batch_size": 8}
    sampler = Deferred(Deferred.Config(start=4))
    balanced = Effective(Effective.Config(beta=1.0))
    for epoch in (0, 3, 4, 9):
        other = Instance() if epoch < 4 else balanced
        found = sampler.order(LABELS, epoch=epoch, **arguments)
        np.testing.assert_array_equal(found, other.order(LABELS, epoch=epoch, **arguments))
    counts = np.bincount(LABELS[sampler.order(LABELS, epoch=4, **arguments)], minlength=4)
    assert chi2.sf(((counts - counts.mean()) ** 2 / counts.mean()).sum(), 3) > 1e-4
    with pytest.raises(ValidationError):
        Deferred.Config(beta=1.5)


@pytest.mark.parametrize("exponent", [1, 0.5, 0.2, 0, -1])
def test_power_sampling_follows_its_exponent(exponent):
    sampler = Power(Power.Config(exponent=exponent))
    drawn = np.concatenate([sampler.order(LABELS, seed, 0, 1, 64) for seed in range(40)])
    share = np.array(COUNTS, dtype=float) ** exponent
    _assert_frequencies(np.bincount(LABELS[drawn], minlength=4), share / share.sum())
    by_name = {1: "instance", 0.5: "square_root", 0: "class_aware", -1: "reversed"}
    if exponent in by_name:
        np.testing.assert_allclose(
            class_probabilities(COUNTS, "power", exponent=exponent),
            class_probabilities(COUNTS, by_name[exponent]),
        )


def test_some_classes_only():
    order = Subset(Subset.Config(classes=(3, 1))).order(LABELS, 0, 0, 1, 64)
    assert sorted(order) == np.flatnonzero((LABELS == 1) | (LABELS == 3)).tolist()
    with pytest.raises(UserError, match="no image"):
        Subset(Subset.Config(classes=(9,))).order(LABELS, 0, 0, 1, 64)


def test_given_weights():
    drawn = Weighted(Weighted.Config(weights=(0, 1, 3, 0))).order(LABELS, 0, 0, 1, 64)
    found = np.bincount(LABELS[drawn], minlength=4)
    assert found[0] == found[3] == 0
    _assert_frequencies(found[1:3], np.array([0.25, 0.75]))
    for weights in ((1, 1), (0, 0, 0, 0)):
        with pytest.raises(UserError, match="one weight for each of 4"):
            Weighted(Weighted.Config(weights=weights)).order(LABELS, 0, 0, 1, 64)
