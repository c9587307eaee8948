"""Saved through the disk and built anew, every method goes on bit for bit as if unbroken."""

from __future__ import annotations

import pytest
import torch
import toys
from toy_stages import make_update, ready

from ltbench.methods.weights import load_strict
from ltbench.train.checkpoint import (
    Position,
    Snapshot,
    Store,
    load_optimizer,
    optimizer_tensors,
    with_prefix,
    without_prefix,
)

STEPS, BROKEN_AFTER, PER_EPOCH = 5, 2, 3  # the epoch changes after the break


def go_on(update, run, start: int, stop: int) -> None:
    """Do steps ``start`` to ``stop``, each on images of its own."""
    for i in range(start, stop):
        epoch, step = divmod(i, PER_EPOCH)
        toys.step(update, run, [toys.batch(seed=i)], toys.at(step, epoch))


def start(name: str, key: str, seed: int):
    method, run = ready(name, seed=seed)
    return method, run, make_update(key, method)


def state(method, run) -> dict[str, torch.Tensor]:
    """Parameters, all buffers, and the optimizer's moments."""
    moments, _ = optimizer_tensors(run.optimizer)
    tensors = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    return {n: t.detach().clone() for n, t in {**tensors, **with_prefix("moment", moments)}.items()}


SAMS = ("sam", "focal-sam", "imb-sam")  # by default with some methods; the rest is slow
WITH_SAMS = ("ce", "paco", "m2m", "proco")


def pairs():
    for name in toys.STAGE1 + toys.STAGE2:
        for key in ("plain", *SAMS, "plot-cagrad"):
            often = key not in SAMS or name in WITH_SAMS
            yield pytest.param(name, key, marks=() if often else pytest.mark.slow)


@pytest.mark.parametrize(("name", "key"), list(pairs()))
def test_a_broken_run_ends_as_the_unbroken_one(name, key, tmp_path):
    method, run, update = start(name, key, seed=0)
    go_on(update, run, 0, STEPS)
    unbroken = state(method, run)

    method, run, update = start(name, key, seed=0)
    go_on(update, run, 0, BROKEN_AFTER)
    saved = state(method, run)
    moments, numbers = optimizer_tensors(run.optimizer)
    tensors = with_prefix("method", method.state_dict()) | with_prefix("optimizer", moments)
    position = Position(0, *divmod(BROKEN_AFTER, PER_EPOCH))
    Store(tmp_path).save(Snapshot(position, tensors, {**toys.FACTS, "optimizer": numbers}))

    method, run, update = start(name, key, seed=9)
    found = Store(tmp_path).latest()
    assert found is not None
    assert found.position == position
    load_strict(method, without_prefix("method", found.tensors), "the checkpoint")
    moments = without_prefix("optimizer", found.tensors)
    load_optimizer(run.optimizer, moments, found.facts["optimizer"])
    restored = state(method, run)
    assert different(restored, saved) == []
    go_on(update, run, BROKEN_AFTER, STEPS)
    ended = state(method, run)
    assert different(ended, unbroken) == []
    assert different(ended, restored) != []  # the steps after the break did something


def different(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [n for n in a if not torch.equal(a[n], b[n])]
