"""Time and kernels of steps, and images per second beside a plain loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import ltbench
from gpu_sections.place import Place, Row
from ltbench.bench.pipeline import FAST, REFERENCE, Pipeline
from ltbench.bench.steps import Case, Steps
from ltbench.config.recipe import Choice, Recipe
from ltbench.data.base import Data, DatasetInfo
from ltbench.data.longtail import class_profile
from ltbench.data.memory import MemorySplit
from ltbench.methods.base import Batch, Progress, Rows
from ltbench.models.backbone import create_backbone
from ltbench.train.compiled import CompiledStages, compiled_stages
from ltbench.train.graphs import CapturedPhases, CudaGraphs
from ltbench.train.run import set_up_torch

CASES = (
    (Case(), "fp32"),
    (Case(), "bf16"),
    (Case(classes=100), "fp32"),
    (Case("resnet50", classes=100, present=30, batch=64, pixels=224), "bf16"),
)
SMALL = ((Case("resnet20_cifar", classes=4, batch=8, pixels=8), "fp32"),)
PIPELINES = ("plain", "sam", "fast", "certified", "exact")
RECIPES = {"ce_cifar10": 60.0, "ce_plot_cifar10": 90.0}  # goals in seconds, on one H200
LOSS_APART = {"fp32": 1e-3, "bf16": 2e-2}  # of the first step; TF32 has 10 bits of mantissa
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def steps(place: Place) -> Iterator[Row]:
    """Time a step of each update: median of the GPU's own clock, and its kernels."""
    torch.backends.cudnn.benchmark = True
    for case, precision in SMALL if place.small else CASES:
        plain = None
        made = Steps(case, device=str(place.device), precision=precision)
        for pipeline in PIPELINES[:3] if place.small else PIPELINES:
            if place.late():
                return
            found = _measured(_step(made, pipeline), place)
            plain = found["ms"] if plain is None else plain
            ratio = {"of plain": round(found["ms"] / plain, 2)}
            yield {"what": f"{pipeline}, {precision}, {case.title}", "ok": None, **found, **ratio}


def compiled(place: Place) -> Iterator[Row]:
    """Time steps under `run.compile`, and compare their loss with that of eager ones."""
    torch.backends.cudnn.benchmark = True
    for case, precision in SMALL if place.small else (CASES[0], CASES[-1]):
        made = Steps(case, device=str(place.device), precision=precision)
        ways = [(name, how) for how in ("graphs", "inductor") for name in PIPELINES[:3]]
        for pipeline, how in [("plain", "aot_eager")] if place.small else ways:
            if place.late():
                return
            start = time.perf_counter()
            eager, step = (_step(made, pipeline, chosen) for chosen in ("", how))
            apart = abs(float(step()["loss"]) / float(eager()["loss"]) - 1)
            row: Row = {"loss": f"{apart:.0e}", "s to compile": time.perf_counter() - start}
            row["s to compile"] = round(row["s to compile"], 1)
            good = apart <= LOSS_APART[precision]
            what = f"{how} {pipeline}, {precision}, {case.title}"
            yield {"what": what, "ok": good, **row, **_measured(step, place)}


def throughput(place: Place) -> Iterator[Row]:
    """Train on made-up images of CIFAR's size: whole steps of a recipe, data included."""
    count, blocks = (4, 1) if place.small else (100, 5)
    bare = _plain_loop(place, count, blocks)
    net = "ResNet-20, batch 16" if place.small else "ResNet-32, batch 128"
    yield {"what": f"plain loop, fp32, {net}", "ok": None, "images/s": round(bare)}
    for precision in ("fp32",) if place.small else ("fp32", "bf16"):
        plain = 0.0
        for name in RECIPES:
            if place.late():
                return
            recipe = _recipe(name, precision, place)
            speed = _rate(_pipeline(FAST, recipe, place).train, place, count, blocks)
            plain = plain or speed
            row = {"images/s": round(speed), "of plain loop": round(speed / bare, 2)}
            if not place.small:
                row |= {"s a run": _seconds(recipe, speed, plain), "goal": RECIPES[name]}
            yield {"what": f"{name}, {precision}", "ok": None, **row}
    if not place.late():
        recipe = _recipe("ce_cifar10", "fp32", place)
        speed = _rate(_pipeline(REFERENCE, recipe, place).train, place, min(count, 20), 1)
        yield {"what": "ce_cifar10 as released codes do it", "ok": None, "images/s": round(speed)}


def _step(made: Steps, pipeline: str, how: str = "") -> Callable[[], Any]:
    """Return a step, with CUDA graphs or by a backend of torch.compile if one is named."""
    run, update = made.make(pipeline)
    places = (Progress(0, 0, 0, 1, step) for step in range(10**9))
    if how == "graphs":
        phases = CapturedPhases(run.method, CudaGraphs(made.device))
        run.phases = phases

        def captured() -> Any:
            at = next(places)
            with phases.step([made.batch], at) as batches:
                return update.step(run, batches, at)

        return captured
    if how:
        name = pipeline if pipeline in ("plain", "sam") else "plot"
        stages = compiled_stages(run.method, Choice(name, update.config))
        passes = CompiledStages(run.method, stages, how)
        loss = run.loss

        def within(batch: Batch, at: Progress) -> Rows:
            with passes.active():
                return loss(batch, at)

        run.loss = within  # type: ignore[method-assign]
    return lambda: update.step(run, [made.batch], next(places))


def _measured(step: Callable[[], Any], place: Place) -> Row:
    """Return medians over steps in milliseconds, and the kernels of one."""
    warm, repeats = (1, 2) if place.small else (5, 30)
    for _ in range(warm):
        step()
    place.wait()
    if not place.gpu:
        return {"ms": round(statistics.median(_clocked(step, repeats)), 2)}
    marks = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    host = []
    for first, last in marks:
        start = time.perf_counter()
        first.record()
        step()
        last.record()
        host.append(1e3 * (time.perf_counter() - start))
    place.wait()
    times = [first.elapsed_time(last) for first, last in marks]
    kernels, busy = _kernels(step, place)
    found = {"ms": statistics.median(times), "host ms": statistics.median(host), "busy ms": busy}
    return {k: round(v, 2) for k, v in found.items()} | {"kernels": kernels}


def _clocked(step: Callable[[], Any], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        found.append(1e3 * (time.perf_counter() - start))
    return found


def _kernels(step: Callable[[], Any], place: Place) -> tuple[int, float]:
    """Return number and summed milliseconds of a step's kernels, copies left out."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        step()
        place.wait()
    on_gpu = torch.autograd.DeviceType.CUDA
    events = [e for e in trace.events() if e.device_type == on_gpu]
    copies = ("Memcpy", "Memset")
    marks = [e for e in events if getattr(e, "is_user_annotation", False)]
    own = [e for e in events if e not in marks and not e.name.startswith(copies)]
    return len(own), sum(e.device_time for e in own) / 1e3


def _plain_loop(place: Place, count: int, blocks: int) -> float:
    """Return images per second of the shortest training loop, its batch lying on the device."""
    batch, pixels = (16, 32) if place.small else (128, 32)
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    backbone = create_backbone("resnet20_cifar" if place.small else "resnet32_cifar")
    net = torch.nn.Sequential(backbone, torch.nn.Linear(backbone.num_features, 10))
    net = net.to(place.device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    images = torch.randn(batch, 3, pixels, pixels, device=place.device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=place.device)

    def train(steps: int) -> int:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
        return steps * batch

    return _rate(train, place, count, blocks)


def _recipe(name: str, precision: str, place: Place) -> Recipe:
    words = ["stages.0.batch_size=16", "backbone=resnet20_cifar"] if place.small else []
    device = f"run.device={place.device}"
    return ltbench.get_recipe(name, device, f"run.precision={precision}", *words)


def _pipeline(name: str, recipe: Recipe, place: Place) -> Pipeline:
    set_up_torch(recipe)
    return Pipeline(name, recipe, _images(place), place.device)


def _seconds(recipe: Recipe, speed: float, plain: float) -> float:
    """Return the seconds of a recipe's steps, those outside PLOT's epochs at another speed."""
    epochs = recipe.training(0).epochs
    window = getattr(recipe.stages[0].update.config, "epochs", None) or epochs
    images = sum(class_profile(5000, 10, 100))
    return round(images * (window / speed + (epochs - window) / plain), 1)


def _rate(train: Callable[[int], int], place: Place, count: int, blocks: int) -> float:
    """Return the median rate of blocks of steps, after one that is not timed."""
    train(min(count, 10))
    place.wait()
    found = []
    for _ in range(blocks):
        start = time.perf_counter()
        images = train(count)
        place.wait()
        found.append(images / (time.perf_counter() - start))
    return statistics.median(found)


def _images(place: Place) -> Data:
    """Return random pixels with the class counts of CIFAR-10-LT, ratio 100."""
    counts = class_profile(64 if place.small else 5000, 10, 4 if place.small else 100)
    info = DatasetInfo("noise", tuple(counts), tuple(map(str, range(10))), MEAN, STD)
    return Data(info, _split(counts, "standard"), _split([8] * 10, "none"), None, {})


def _split(counts: Sequence[int], augment: Any) -> MemorySplit:
    labels = np.repeat(np.arange(10), counts)
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    return MemorySplit(pixels, labels, mean=MEAN, std=STD, augment=augment)
