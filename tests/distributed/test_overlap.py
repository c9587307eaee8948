"""Gradient sums that run while the backward pass does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import toys
from torch import nn
from torch.profiler import ProfilerActivity, profile
from toy_stages import make_update, ready

from ltbench.distributed import ranks
from ltbench.distributed.overlap import OverlappedSum
from ltbench.methods.base import Batch

LAYER, SUM = "ConvolutionBackward0", "c10d::allreduce_"
SMALL = 800  # bytes of a bucket here; each layer then has one or more of its own


@contextmanager
def buckets(size: int) -> Iterator[None]:
    before, ranks.BUCKET = ranks.BUCKET, size
    yield
    ranks.BUCKET = before


def traced(key: str, bucket: int) -> list[list[tuple[str, float, float]]]:
    """Steps of a toy; returns name, begin and end of the calls of two of them, in microseconds."""
    method, run = ready("ce")
    update, steps = make_update(key, method), []
    x, y = toys.images(24)
    own = torch.tensor_split(torch.arange(24), ranks.world())[ranks.rank()]
    for step in range(2):
        batch = Batch((x[own],), y[own], own)
        with buckets(bucket), profile(activities=[ProfilerActivity.CPU]) as trace:
            toys.step(update, run, [batch], toys.at(step))
        events = [(e.name, e.time_range.start, e.time_range.end) for e in trace.events()]
        steps.append(events)
    return steps


def times(events: list[tuple[str, float, float]], name: str) -> list[tuple[float, float]]:
    return sorted((begin, end) for found, begin, end in events if found == name)


@pytest.mark.parametrize(("key", "passes"), [("plain", 1), ("sam", 2)])
def test_a_trace_shows_sums_inside_the_backward_pass(two_processes, key, passes):
    for steps in two_processes.call(traced, key, SMALL):
        for events in steps:
            layers, sums = times(events, LAYER), times(events, SUM)
            assert len(layers) == 3 * passes
            for last in layers[2::3]:  # of a pass; the first layer, whose gradients come last
                before = [end for _, end in layers if end < last[0]][-2:]
                assert sum(begin < last[0] for begin, _ in sums if begin > before[0]) >= 2
            assert sums[-1][0] > layers[-1][1]


def test_one_bucket_begins_when_the_pass_is_over(two_processes):
    """The test above must be able to fail."""
    for steps in two_processes.call(traced, "plain", 2**20):
        for events in steps:
            assert times(events, SUM)[0][0] > times(events, LAYER)[-1][0]


def summed(own: list[list[bool]], bucket: int) -> list[list[torch.Tensor | None]]:
    """Sum gradients of layers of which each rank uses some; one step after the other."""
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
    layers.append(nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last))
    parameters, found = list(layers.parameters()), []
    with buckets(bucket):
        summing = OverlappedSum(parameters)
    for step, used in enumerate(own):
        chosen = used if ranks.rank() == 0 else used[::-1]
        for p in parameters:
            p.grad = None
        x = torch.full((1, 5), 1.0 + ranks.rank() + step)
        total = sum(
            layer(x).square().sum() for layer, here in zip(layers[:3], chosen, strict=True) if here
        )
        total = total + layers[3](x.new_full((1, 2, 4, 4), 1.0 + ranks.rank())).square().sum()
        mine = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        theirs = ranks.GradientSum(mine, parameters).wait()
        with summing.during_backward():
            total.backward()
        numbers = torch.tensor([1.0, 10.0 * ranks.rank()], dtype=torch.float64)
        gradient = summing.wait(numbers)
        assert numbers.tolist() == [ranks.world(), 10.0 * sum(range(ranks.world()))]
        for p, g, other in zip(parameters, gradient, theirs, strict=True):
            assert (g is None) == (other is None)
            assert g is None or (g.stride() == p.stride() and torch.equal(g, other))
        found.append([None if g is None else g.clone() for g in gradient])
    return found


USED = [[True, False, True], [True, False, False], [False, False, False], [True, True, True]]


@pytest.mark.parametrize("bucket", [200, 2**20])
def test_gradients_that_ranks_lack_are_zero_and_those_of_none_are_none(two_processes, bucket):
    first, second = two_processes.call(summed, USED, bucket)
    for step, used in enumerate(USED):
        here = [a or b for a, b in zip(used, used[::-1], strict=True)] + [True]
        for found in (first[step], second[step]):
            assert [g is not None for g in found] == [h for h in here for _ in range(2)]
        for a, b in zip(first[step], second[step], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
