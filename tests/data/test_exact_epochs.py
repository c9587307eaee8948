"""Epochs are exact: the same global batches for any ranks, workers and interruptions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ltbench.data import SAMPLERS
from ltbench.data.loader import Loader, batches, eval_batches, steps_per_epoch
from ltbench.seeding import keyed_bits

COUNTS = [37, 20, 9, 4, 1]
N, BATCH = sum(COUNTS), 24
LABELS = np.random.RandomState(1).permutation(np.repeat(np.arange(5), COUNTS)).astype(np.int64)


class Numbers:
    """Images whose pixels are a function of all that augmentation may depend on."""

    labels = LABELS
    in_memory = False

    def __len__(self):
        return N

    def load(self, indices, *, key, positions, views=1):
        made = []
        for view in range(views):
            bits = keyed_bits((key or 0) + view, positions * 1000 + indices)
            made.append(torch.from_numpy((bits >> np.uint64(40)).astype(np.float32)))
        return tuple(view.reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1).contiguous() for view in made)

    def finish(self, views, *, key, positions):
        return tuple(view + float(key or 0) for view in views)

    def fingerprint(self):
        return "numbers"


def order_of(name, epoch=0, seed=3):
    return SAMPLERS.get(name)().order(LABELS, seed, epoch, 5, BATCH)


def flat(steps):
    """Index, label and pixels of each step of one rank, micro-batches put together."""
    return [
        (
            torch.cat([m.index for m in step]),
            torch.cat([m.labels for m in step]),
            torch.cat([torch.stack(m.views, 1) for m in step]),
        )
        for step in steps
    ]


def joined(ranks):
    assert len({len(steps) for steps in ranks}) == 1  # equally many steps on every rank
    return [
        tuple(torch.cat(parts) for parts in zip(*step, strict=True))
        for step in zip(*ranks, strict=True)
    ]


def of_world(order, world, workers, start=0, **options):
    ranks = [
        flat(
            batches(
                Numbers(), order, BATCH, key=7, views=2, rank=rank, world=world,
                workers=workers, start=start, **options,
            )
        )
        for rank in range(world)
    ]  # fmt: skip
    return joined(ranks)


def same(found, expected):
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", SAMPLERS.names())
@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_global_batches_do_not_depend_on_ranks(name, world):
    order = order_of(name)
    same(of_world(order, world, 0), of_world(order, 1, 0))


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (1, 2), (2, 2), (3, 1)])
def test_global_batches_do_not_depend_on_workers(world, workers):
    order = order_of("class_aware")
    same(of_world(order, world, workers), of_world(order, 1, 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS.names())
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("workers", [1, 2])
def test_global_batches_do_not_depend_on_either(name, world, workers):
    order = order_of(name)
    same(of_world(order, world, workers), of_world(order, 1, 0))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8, 12])
def test_an_instance_epoch_has_every_image_once(world):
    """71 = 2 x 24 + 23 images; with 12 ranks of 2 micro-batches the 23 cannot be a step."""
    order = order_of("instance")
    accumulate = 2 if world == 12 else 1
    steps = of_world(order, world, 0, accumulate=accumulate)
    seen = torch.cat([index for index, _, _ in steps])
    assert sorted(seen.tolist()) == list(range(N))
    assert len(steps) == (2 if world == 12 else 3)
    assert len(steps) == steps_per_epoch(N, BATCH, world=world, accumulate=accumulate)


def test_a_kept_tail_too_small_for_the_ranks_joins_the_step_before():
    order = np.arange(BATCH * 2 + 3)
    steps = of_world(order, 4, 0)
    assert [len(index) for index, _, _ in steps] == [BATCH, BATCH + 3]
    dropped = of_world(order, 4, 0, last="drop")
    assert [len(index) for index, _, _ in dropped] == [BATCH, BATCH]


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (3, 1), (2, 8)])
def test_stopped_anywhere_the_rest_is_the_same_on_other_ranks(stop, before, after):
    for name in ("instance", "class_aware", "reversed"):
        order = order_of(name)
        first = of_world(order, before, 0)[:stop]
        rest = of_world(order, after, 2 if after == 2 else 0, start=stop)
        same([*first, *rest], of_world(order, 1, 0))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8, 100])
def test_evaluation_counts_every_image_once(world):
    seen = [
        index
        for rank in range(world)
        for batch in eval_batches(Numbers(), 5, rank=rank, world=world)
        for index in batch.index.tolist()
    ]
    assert seen == list(range(N))


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_that_stay_see_a_new_epoch(start_method):
    """One loader over three epochs gives what three loaders give, and they differ."""
    kept = Loader(Numbers(), workers=2, start_method=start_method)
    epochs = []
    for epoch in range(3):
        order = order_of("instance", epoch)
        found = flat(kept.batches(order, BATCH, key=epoch, views=2))
        fresh = flat(batches(Numbers(), order, BATCH, key=epoch, views=2))
        same(found, fresh)
        epochs.append(torch.cat([index for index, _, _ in found]).tolist())
    assert epochs[0] != epochs[1] != epochs[2]


def test_an_epoch_left_in_the_middle_does_not_disturb_the_next():
    kept = Loader(Numbers(), workers=2)
    order = order_of("instance")
    next(iter(kept.batches(order, 4, key=1)))
    again = flat(kept.batches(order, BATCH, key=2, views=2))
    same(again, flat(batches(Numbers(), order, BATCH, key=2, views=2)))


@pytest.mark.parametrize("per_class", [1, 4])
def test_class_aware_draws_are_even_over_classes_and_inside(per_class):
    sampler = SAMPLERS.get("class_aware")
    made = sampler(sampler.Config(per_class=per_class))
    drawn = made.order(LABELS, 0, 0, 1, BATCH)
    per = np.bincount(LABELS[drawn], minlength=5)
    assert per.max() - per.min() <= per_class
    for label in range(5):
        inside = np.bincount(drawn[LABELS[drawn] == label], minlength=N)[label == LABELS]
        assert inside.max() - inside.min() <= 1
        assert inside.max() <= math.ceil(per[label] / COUNTS[label])
