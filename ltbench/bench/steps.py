"""Time of a training step under each update, measured in turn in one process."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ltbench.bench.words import STEPS as PIPELINES
from ltbench.bench.words import Case
from ltbench.config import validation
from ltbench.data.base import DatasetInfo
from ltbench.distributed.device import pick_device
from ltbench.methods import METHODS
from ltbench.methods.base import Batch, Progress
from ltbench.models.backbone import create_backbone
from ltbench.models.image_size import check_size
from ltbench.updates import UPDATES
from ltbench.updates.base import Log, StepRun, Update
from ltbench.updates.plot import Plot

PLOT: dict[str, dict[str, Any]] = {
    "fast": {},
    "certified": {"class_gradients": "certified", "tolerance": 0.0, "rounds": 1},
    "exact": {"class_gradients": "exact"},
    "reference": {"mode": "official", "solver": "slsqp"},
    "torchjd": {},
}


@dataclass(frozen=True)
class Time:
    """Steps of one pipeline.

    Args:
        pipeline: one of ``PIPELINES``.
        milliseconds: median.
        ratio: median over that of the plain step in the same turn.
        spread: smallest and largest such ratio.
    """

    pipeline: str
    milliseconds: float
    ratio: float
    spread: tuple[float, float]


class Steps:
    """Training steps of pipelines, each on its own network, all on the same batch.

    Args:
        case: what is trained.
        device: where.
        channels_last: memory layout of the network and its images, as recipes have it.
        precision: ``fp32`` or ``bf16`` (autocast).
    """

    def __init__(
        self,
        case: Case,
        *,
        device: str = "cpu",
        channels_last: bool = True,
        precision: str = "fp32",
    ) -> None:
        self.case, self.device, self.precision = case, pick_device(device), precision
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        generator = torch.Generator().manual_seed(0)
        size = (case.batch, 3, case.pixels, case.pixels)
        labels = torch.randint(case.classes, (case.batch,), generator=generator)
        if case.present is not None:
            labels = torch.arange(case.batch) % case.present
        images = torch.randn(size, generator=generator).to(self.device, memory_format=self.layout)
        index = torch.arange(case.batch).to(self.device)
        self.batch = Batch((images,), labels.to(self.device), index)
        self.count = 0

    def make(self, pipeline: str) -> tuple[StepRun, Update]:
        """Return a fresh network, its optimizer and the update of a pipeline."""
        case = self.case
        torch.manual_seed(0)
        info = DatasetInfo("bench", (1000,) * case.classes, tuple(map(str, range(case.classes))))
        options = validation.build_options("METHODS", "ce", {})
        backbone = create_backbone(case.backbone)
        check_size(backbone, self.batch.views[0][:1].cpu())
        method = METHODS.get("ce")(options, backbone, info)
        method = method.to(self.device).to(memory_format=self.layout)
        optimizer = torch.optim.SGD(method.parameters(), lr=1e-4, momentum=0.9)
        run = StepRun(method, optimizer, self._autocast)
        name = "plot" if pipeline in PLOT else pipeline
        values = {"part": case.part, **PLOT[pipeline]} if pipeline in PLOT else {}
        cls = WithTorchJD if pipeline == "torchjd" else UPDATES.get(name)
        return run, cls(validation.build_options("UPDATES", name, values))

    def step(self, run: StepRun, update: Update) -> None:
        """Do one step, to its end."""
        self.count += 1
        update.step(run, [self.batch], Progress(0, 0, 0, 1, self.count))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _autocast(self) -> Any:
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


class WithTorchJD(Plot):
    """The PLOT step with torchjd's engine for the Gram matrix of class losses."""

    def step(self, run: StepRun, batches: Sequence[Batch], at: Progress) -> Log:
        """Do the step."""
        part = run.part(self.config.part)
        with ExitStack() as opened:
            loss, rows, second = self.climb(run, batches, at, part, opened)
            self._set_gradients(run, second[0], at, part)
        run.optimizer.step()
        return {"loss": loss, "rows": rows}

    def _set_gradients(
        self, run: StepRun, batch: Batch, at: Progress, part: list[nn.Parameter]
    ) -> None:
        if self.config.part == "whole":
            modules: Sequence[nn.Module] = (run.method,)
        else:
            modules = run.method.backbone.modules_of(str(self.config.part))
        modules = [m for m in modules if any(True for _ in m.parameters())]
        # It hooks into every forward pass from here on, so it is made after the perturbation.
        engine: Any = importlib.import_module("torchjd.autogram").Engine(*modules, batch_dim=None)
        rows = run.loss(batch, at).rows
        classes, place = torch.unique(batch.labels, return_inverse=True)
        losses = rows.new_zeros(len(classes)).index_add(0, place, rows / len(rows))
        gram = engine.compute_gramian(losses).double().cpu().numpy()
        solution = self.solver.solve(gram)
        inside = {id(p) for p in part}
        rest = [p for p in run.parameters if id(p) not in inside]
        run.zero_grad()
        if rest:
            losses.sum().backward(retain_graph=True, inputs=rest)  # type: ignore[no-untyped-call]
        v = torch.as_tensor(solution.coefficients, dtype=losses.dtype, device=losses.device)
        losses.backward(v, inputs=part)  # type: ignore[no-untyped-call]


def measure(
    case: Case, pipelines: Sequence[str] = PIPELINES, *, rounds: int = 7, **options: Any
) -> list[Time]:
    """Time pipelines in turn, so that each sees the same machine.

    Args:
        case: what is trained.
        pipelines: of ``PIPELINES``; ``plain`` is always run.
        rounds: timed steps of each, after two that are not.
        options: of ``Steps``.
    """
    steps = Steps(case, **options)
    names = ["plain", *(p for p in pipelines if p != "plain")]
    if importlib.util.find_spec("torchjd") is None:
        names = [name for name in names if name != "torchjd"]
    ready = {name: steps.make(name) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 2):
        for name, (run, update) in ready.items():
            start = time.perf_counter()
            steps.step(run, update)
            if turn >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    plain = times["plain"]
    found = []
    for name in names:
        ratios = [t / p for t, p in zip(times[name], plain, strict=True)]
        middle = statistics.median(times[name]), statistics.median(ratios)
        found.append(Time(name, *middle, (min(ratios), max(ratios))))
    return found
