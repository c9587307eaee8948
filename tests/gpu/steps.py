"""One steady training step on the pretended GPU: waits of the host, kernels, collectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import toys
from toy_stages import stage_of

from ltbench.config import validation
from ltbench.config.optim import Optim
from ltbench.data.base import DatasetInfo
from ltbench.distributed import ranks
from ltbench.methods import METHODS
from ltbench.methods.base import Batch, Method, Progress
from ltbench.models.backbone import create_backbone
from ltbench.models.batchnorm import running_statistics
from ltbench.seeding import derive
from ltbench.train.epoch_stats import EpochStats
from ltbench.train.freezing import freeze, set_modes
from ltbench.train.graphs import CapturedPhases, CudaGraphs
from ltbench.train.optim import build_optimizer
from ltbench.updates import UPDATES
from ltbench.updates.base import StepRun
from tests.gpu.pretend import CUDA, GPU, to_gpu

UPDATE = {
    "plain": ("plain", {}),
    "sam": ("sam", {}),
    "focal_sam": ("focal_sam", {}),
    "imb_sam": ("imb_sam", {}),
    "fast": ("plot", {"part": "last"}),
    "exact": ("plot", {"part": "last", "class_gradients": "exact"}),
    "official": ("plot", {"part": "last", "mode": "official"}),
    "certified": ("plot", {"part": "last", "class_gradients": "certified", "tolerance": 0.0}),
    "sampled": ("plot", {"part": "last", "max_classes": 2}),
}
LARGE = {
    "ride": {"branch_at": "layer3"},
    "sade": {"branch_at": "layer3"},
    "paco": {"queue": 1024},
    "m2m": {"generate_from": 0, "gamma": 0.0, "beta": 0.5},
    "rsg": {"generate_from": 0, "reweight_from": 0},
}


@dataclass(frozen=True)
class Case:
    """What is trained.

    Args:
        method: name of a method.
        update: key of ``UPDATE``.
        backbone: ``toy``, or a backbone's name.
        batch: images.
        classes: classes of a real backbone.
        precision: ``fp32`` or ``bf16``.
        graphs: whether steps are captured in CUDA graphs; the last one is then a replay.
    """

    method: str
    update: str = "plain"
    backbone: str = "toy"
    batch: int = 24
    classes: int = 10
    precision: str = "fp32"
    graphs: bool = False


@dataclass(frozen=True)
class Seen:
    """What one step did, see ``GPU``; phases that are captured, or why none is."""

    kernels: int
    phases: Counter[str]
    lines: Counter[str]
    waits: Counter[tuple[str, str]]
    errors: Counter[tuple[str, str]]
    collectives: list[tuple[str, int, str]]
    log: dict[str, Any]
    captured: list[str]
    uncaptured: str


def seen(case: Case, steps: int = 2) -> Seen:
    """Return what the last of a few steps did."""
    steps += 2 * case.graphs
    method, gpu = _method(case), GPU()
    with gpu, ExitStack() as watching:
        method = method.to("cuda").to(memory_format=torch.channels_last)
        stage = stage_of(case.method)
        set_modes(method, stage, freeze(method, stage))
        trained = [(n, p) for n, p in method.named_parameters() if p.requires_grad]
        optimizer = build_optimizer(trained, Optim(lr=0.01, weight_decay=2e-4))
        cast: Callable[[], Any] = nullcontext
        if case.precision == "bf16":
            cast = lambda: torch.autocast("cuda", dtype=torch.bfloat16)  # noqa: E731
        run = StepRun(method, optimizer, cast)
        name, options = UPDATE[case.update]
        update = UPDATES.get(name)(validation.build_options("UPDATES", name, options))
        phases = CapturedPhases(method, CudaGraphs(CUDA)) if case.graphs else None
        run.phases = phases or run.phases
        stats = EpochStats(method.info.num_classes, CUDA)
        for owner, call, phase in (
            (torch.autograd, "backward", "backward"),
            (torch.autograd, "grad", "backward"),
            (run, "loss", "forward"),
            (optimizer, "step", "optimizer"),
        ):
            watching.enter_context(patch.object(owner, call, _within(gpu, owner, call, phase)))
        for step in range(steps):
            at = Progress(0, 0, 1, 5, step, lr=0.01)
            if step == 0:
                method.on_epoch(at)
            micro = [_batch(case, method, step)]
            gpu.reset()
            torch.manual_seed(derive(0, "step", 0, 1, step, ranks.rank()))
            micro = [method.prepare(b, replace(at, micro=i)) for i, b in enumerate(micro)]
            with nullcontext(micro) if phases is None else phases.step(micro, at) as micro:
                log = update.step(run, micro, at)
            method.after_step(micro, at)
            ranks.all_reduce_mean_(running_statistics(method))
            stats.add(log, micro)
    kernels = sum(gpu.kernels.values())
    captured = [] if phases is None else list(phases._phases)
    why = "" if phases is None else phases._reason
    counts = gpu.phases, gpu.lines, gpu.waits, gpu.errors
    return Seen(kernels, *counts, gpu.collectives, log, captured, why)


def _within(gpu: GPU, owner: Any, name: str, phase: str) -> Callable[..., Any]:
    call = getattr(owner, name)

    def inside(*args: Any, **more: Any) -> Any:
        with gpu.during(phase):
            return call(*args, **more)

    return inside


def _method(case: Case) -> Method:
    if case.backbone == "toy":
        return toys.method(case.method)
    torch.manual_seed(0)
    share = [0.01 ** (k / (case.classes - 1)) for k in range(case.classes)]
    counts = tuple(max(5, int(5000 * s)) for s in share)
    info = DatasetInfo("pretended", counts, tuple(map(str, range(case.classes))))
    options = validation.build_options("METHODS", case.method, LARGE.get(case.method, {}))
    previous = None
    if case.method in toys.STAGE2:
        first = toys.BEFORE.get(case.method, "ce")
        given = validation.build_options("METHODS", first, LARGE.get(first, {}))
        previous = METHODS.get(first)(given, create_backbone(case.backbone), info)
    net = create_backbone(case.backbone) if case.method in toys.FRESH or previous is None else None
    net = previous.backbone if net is None and previous is not None else net
    return METHODS.get(case.method)(options, net, info, previous)


def _batch(case: Case, method: Method, step: int) -> Batch:
    if case.backbone == "toy":
        batch = toys.dressed(toys.batch(case.batch, step), method)
    else:
        drawn = torch.Generator().manual_seed(step)
        labels = torch.randint(case.classes, (case.batch,), generator=drawn)
        labels[: case.classes // 2] = torch.arange(case.classes // 2)
        x = torch.randn(case.batch, 3, 32, 32, generator=drawn)
        batch = toys.dressed(Batch((x,), labels, torch.arange(case.batch)), method)
    return _moved(batch)


def _moved(batch: Batch) -> Batch:
    return replace(
        batch,
        views=tuple(to_gpu(x.to(memory_format=torch.channels_last)) for x in batch.views),
        labels=to_gpu(batch.labels),
        index=to_gpu(batch.index),
        streams={name: _moved(stream) for name, stream in batch.streams.items()},
    )
