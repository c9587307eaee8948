"""Memory of a step under each update, and the bytes that ranks exchange."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ltbench.bench.steps import Steps
from ltbench.bench.words import Case
from ltbench.class_gradients.engine import Engine
from ltbench.models.backbone import create_backbone


@dataclass(frozen=True)
class Memory:
    """Peak memory of one pipeline.

    Args:
        pipeline: of ``ltbench.bench.words.STEPS``.
        mebibytes: resident memory that three steps added to network and batch at their peak.
    """

    pipeline: str
    mebibytes: float


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank hands to sums over ranks in one step, single precision.

    Args:
        backbone: name of the network.
        part: parameters under multi-objective control.
        parameters: numbers in the part P.
        objectives: K.
        plain: of ordinary training: the gradient of the part.
        fast: class gradients in the columns looked at, and the direction.
        round: what each round of ``certified`` adds.
        exact: K gradients, and the direction.
    """

    backbone: str
    part: str
    parameters: int
    objectives: int
    plain: int
    fast: int
    round: int
    exact: int


def memory(case: Case, pipelines: Sequence[str]) -> list[Memory]:
    """Measure pipelines, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    found = []
    for name in pipelines:
        with context.Pool(1) as pool:
            found.append(Memory(name, pool.apply(_added, (case, name, torch.get_num_threads()))))
    return found


def _added(case: Case, pipeline: str, threads: int) -> float:
    torch.set_num_threads(threads)
    steps = Steps(case)
    run, update = steps.make(pipeline)
    before = _peak()
    for _ in range(3):
        steps.step(run, update)
    return _peak() - before


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def traffic(backbone: str, part: str, sizes: Sequence[int]) -> list[Traffic]:
    """Count for a network whose part is differentiated by K objectives, for each K."""
    with torch.device("meta"):
        net = create_backbone(backbone)
    parameters = net.parameters_of(part)
    engine = Engine(net, parameters)
    total = sum(p.numel() for p in parameters)
    return [
        Traffic(
            backbone=backbone,
            part=part,
            parameters=total,
            objectives=k,
            plain=4 * total,
            fast=4 * ((k + 2) * engine.entries(k + 2) + total),
            round=4 * total + 8 * k,
            exact=4 * (k + 1) * total,
        )
        for k in sizes
    ]
