"""Time of training steps in the fast and the reference pipeline, in turn in one process."""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltbench.bench.pipeline import REFERENCE, Pipeline
from ltbench.config.recipe import Recipe
from ltbench.config.validation import build_recipe
from ltbench.distributed.device import pick_device
from ltbench.errors import UserError
from ltbench.files import write_atomic
from ltbench.machine import cores
from ltbench.train.run import set_up_torch

PHASES = ("data", "forward", "backward", "solver", "update", "other")
PHASE_ROUNDS = 3  # rounds at most in which phases are told apart


@dataclass(frozen=True)
class Speed:
    """Measurements of a pipeline.

    Args:
        pipeline: of ``PIPELINES``.
        images_per_second: median over rounds.
        milliseconds: of a step; median over rounds.
        phases: milliseconds of a step by ``PHASES``, from rounds of their own.
        busy: share of all cores that this process and its loader processes kept busy (where there
            is no /proc, this process alone); on a GPU its utilisation, or ``None`` where torch
            cannot tell.
        ratio: how many times as fast as ``reference`` in the same round; median, if both ran.
        spread: smallest and largest such ratio.
    """

    pipeline: str
    images_per_second: float
    milliseconds: float
    phases: dict[str, float]
    busy: float | None
    ratio: float | None = None
    spread: tuple[float, float] | None = None


def measure(pipelines: Sequence[Pipeline], *, rounds: int = 5, steps: int = 4) -> list[Speed]:
    """Time pipelines in turn, a block of steps each, after one block to warm up.

    Loader processes work inside the blocks of their own pipeline only: each block begins with an
    empty queue and ends with one. An epoch after the update's window (PLOT) begins anew.

    Args:
        pipelines: to be compared.
        rounds: timed blocks of each.
        steps: of a block.
    """
    for pipeline in pipelines:
        window = getattr(pipeline.run.stage.update.config, "epochs", None)
        pipeline.epochs = window or pipeline.epochs
        pipeline.train(steps)
    blocks: dict[str, list[_Block]] = {p.name: [] for p in pipelines}
    for _ in range(rounds):
        for pipeline in pipelines:
            blocks[pipeline.name].append(_timed(pipeline, steps))
    clocks = {p.name: Clock(p.device) for p in pipelines}
    parts = min(rounds, PHASE_ROUNDS)
    for _ in range(parts):
        for pipeline in pipelines:
            with clocks[pipeline.name].watching(pipeline):
                pipeline.train(steps)
    found = []
    for name, own in blocks.items():
        passed = clocks[name].seconds
        busy = [b.busy for b in own if b.busy is not None]
        ratios = [
            (b.images / b.seconds) / (r.images / r.seconds)
            for b, r in zip(own, blocks.get(REFERENCE, []), strict=False)
        ]
        found.append(
            Speed(
                name,
                statistics.median(b.images / b.seconds for b in own),
                statistics.median(1e3 * b.seconds / steps for b in own),
                {phase: 1e3 * passed[phase] / (parts * steps) for phase in PHASES},
                statistics.median(busy) if busy else None,
                statistics.median(ratios) if ratios else None,
                (min(ratios), max(ratios)) if ratios else None,
            )
        )
    return found


@dataclass(frozen=True)
class _Block:
    images: int
    seconds: float
    busy: float | None


def _timed(pipeline: Pipeline, steps: int) -> _Block:
    _wait(pipeline.device)
    work, start = _cpu_seconds(), time.perf_counter()
    images = pipeline.train(steps)
    _wait(pipeline.device)
    seconds = time.perf_counter() - start
    if pipeline.device.type == "cuda":
        return _Block(images, seconds, _utilisation(pipeline.device))
    return _Block(images, seconds, (_cpu_seconds() - work) / seconds / cores())


class Clock:
    """Adds up time by phase; a phase inside another one is not counted there.

    On an accelerator each change of phase waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._open = ["other"]
        self._since = 0.0

    @contextmanager
    def watching(self, pipeline: Pipeline) -> Iterator[None]:
        """Time the phases of a pipeline's steps inside the block."""
        solver = getattr(pipeline.run.update, "solver", None)
        calls: list[tuple[Any, str, str]] = [
            (pipeline, "next_batch", "data"),
            (pipeline.run, "loss", "forward"),
            (torch.autograd, "backward", "backward"),  # what `Tensor.backward` calls
            (torch.autograd, "grad", "backward"),
            (pipeline.run.optimizer, "step", "update"),
            *([(solver, "solve", "solver")] if solver is not None else []),
        ]
        with ExitStack() as stack:
            for owner, name, phase in calls:
                stack.enter_context(self._around(owner, name, phase))
            _wait(self.device)
            self._since = time.perf_counter()
            yield
            self._turn()

    @contextmanager
    def _around(self, owner: Any, name: str, phase: str) -> Iterator[None]:
        """Count the calls of a function, on its owner, as a phase."""
        call, own = getattr(owner, name), name in vars(owner)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._open.append(phase)
            try:
                return call(*args, **kwargs)
            finally:
                self._turn()
                self._open.pop()

        setattr(owner, name, counted)
        try:
            yield
        finally:
            setattr(owner, name, call) if own else delattr(owner, name)

    def _turn(self) -> None:
        _wait(self.device)
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


def peak(name: str, recipe: Recipe, *, stage: int = 0, steps: int = 3) -> float:
    """Return the peak memory of some steps in a process of their own, in MiB.

    On a CPU it is the resident memory of that process, Python with its packages and the data set
    included; loader processes come on top. On a GPU it is what torch allocated there.

    Args:
        name: of ``PIPELINES``.
        recipe: what is trained.
        stage: which stage.
        steps: how many.

    Raises:
        UserError: the process was killed.
    """
    threads = torch.get_num_threads()
    # Spawned, so that what was left over here is not inherited.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        try:
            return fresh.submit(_peak, name, recipe.tree(), stage, steps, threads).result()
        except BrokenProcessPool as error:
            raise UserError(
                f"the process that measures the memory of `{name}` was killed; is there too "
                "little memory for it?"
            ) from error


def _peak(name: str, tree: dict[str, Any], stage: int, steps: int, threads: int) -> float:
    torch.set_num_threads(threads)
    recipe = build_recipe(tree)
    device = pick_device(recipe.run.device)
    set_up_torch(recipe)
    data = recipe.data.config.load()  # type: ignore[attr-defined]
    Pipeline(name, recipe, data, device, stage=stage).train(steps)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _most_resident()


def _most_resident() -> float:
    """Return the peak of this process' resident memory in MiB."""
    try:  # not getrusage first: it begins with the peak of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def profile(pipeline: Pipeline, file: Path, *, steps: int = 4) -> None:
    """Write a Chrome trace of some steps, after as many to warm up."""
    pipeline.train(steps)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if pipeline.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as trace:
        pipeline.train(steps)
        _wait(pipeline.device)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / file.name
        trace.export_chrome_trace(str(written))
        write_atomic(file, written.read_bytes())


def _cpu_seconds() -> float:
    """Return the processor time of this process and of its running children."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        try:
            text = Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8")
        except OSError:
            continue
        fields = text.rpartition(")")[2].split()  # after the name, from field 3 of proc(5) on
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _utilisation(device: torch.device) -> float | None:
    try:
        return torch.cuda.utilization(device) / 100
    except (ImportError, RuntimeError):  # its library is not installed, or does not work here
        return None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
