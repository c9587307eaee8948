"""Pipelines that take turns, their cost, and the goals for them.

Processor time on one thread is compared, except where the disk is measured.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

Row = dict[str, Any]
"""Results: ``goal``, ``case``, ``pipeline``, ``images_per_second`` or ``seconds``, ``ratio``
(how many times as fast ours is), and ``least`` or ``most``, what it is to be (ratio if there is
one, else speed or seconds)."""
Pipeline = Callable[[int], int]  # number of the round -> images it handled
Clock = Callable[[], float]
OURS = "ltbench"
BATCH = 64

LEAST = {
    ("T1", "ImageNet", "ImageFolder"): 2.0,
    ("T1", "ImageNet", "timm"): 2.1,
    ("T1", "ImageNet", "timm, fast_collate"): 1.6,
    ("T2", "Places", "ImageFolder"): 2.8,
    ("T2", "iNaturalist", "ImageFolder"): 1.65,
    ("T2", "iNaturalist, packed at 320", "ImageFolder"): 3.3,
    ("T3", "ImageNet", "ImageFolder"): 1.4,
    ("T3", "ImageNet, colour jitter", "ImageFolder"): 1.4,
    ("T4", "small images", "webdataset, in order"): 20.0,
    ("T4", "cold", "one by one"): 2.5,
    ("T4", "cold", "in order"): 1.0,
    ("T5", "CIFAR, float", "Pillow in memory"): 7.0,
    ("T6", "ImageNet", "ShardWriter"): 2.0,
    ("T6", "small images", "ShardWriter"): 5.0,
}
"""Speed that ours should reach relative to another pipeline, by goal, case and pipeline."""
LEAST_SPEED = {"CIFAR, bytes": 100_000, "CIFAR, float": 55_000}  # images a second (T5)
MOST = {"open": 0.05, "order": 0.5}  # seconds for iNaturalist 2018 (T7)
MOST_CRC = 0.02  # of what an image costs (T7)


def compare(
    goal: str,
    case: str,
    pipelines: Mapping[str, Pipeline],
    rounds: int,
    *,
    clock: Clock = time.process_time,
    before: Callable[[], None] | None = None,
) -> list[Row]:
    """Run pipelines in turn and return a row for each: its speed, and how many times ours is that.

    Args:
        goal: what the measurement is for.
        case: what is measured.
        pipelines: by name; ``OURS`` is what the others are compared with.
        rounds: how often each runs, after once to warm up.
        clock: which seconds count.
        before: done before each run, and not counted.
    """
    found: dict[str, list[float]] = {name: [] for name in pipelines}
    with one_thread():
        for number in range(rounds + 1):
            for name, run in pipelines.items():
                if before is not None:
                    before()
                start = clock()
                count = run(number)
                passed = clock() - start
                if number:
                    found[name].append(passed / count)
    return [
        {
            "goal": goal,
            "case": case,
            "pipeline": name,
            "images_per_second": 1 / statistics.median(costs),
            "ratio": statistics.median(
                cost / ours for cost, ours in zip(costs, found[OURS], strict=True)
            ),
            "least": LEAST.get((goal, case, name)),
        }
        for name, costs in found.items()
    ]


def limit(case: str, seconds: float, most: float) -> Row:
    """Return the row of a task that should take at most ``most`` seconds (T7)."""
    return {
        "goal": "T7",
        "case": case,
        "pipeline": OURS,
        "seconds": seconds,
        "most": most,
    }


def median_seconds(run: Callable[[], Any], rounds: int) -> float:
    """Return the processor time of a call, after one to warm up."""
    run()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return statistics.median(found)


def batches(order: np.ndarray, size: int = BATCH) -> Iterator[np.ndarray]:
    """Cut an order into batches."""
    for start in range(0, len(order), size):
        yield order[start : start + size]


def chunks(samples: Iterable[Any]) -> Iterator[list[Any]]:
    """Collect samples of a stream into batches."""
    running = iter(samples)
    while batch := list(itertools.islice(running, BATCH)):
        yield batch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other packages, about themselves
            yield
    finally:
        torch.set_num_threads(threads)
