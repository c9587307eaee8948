"""`ltbench bench train`: the pipelines of training as tables."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ltbench.bench.pipeline import FAST, PIPELINES, REFERENCE, Pipeline, first_steps, trained
from ltbench.bench.reference import exact_recipe
from ltbench.bench.table import plain_table
from ltbench.bench.train import PHASES, measure, peak, profile
from ltbench.bench.words import Train
from ltbench.config.recipe import Recipe
from ltbench.data.base import Data
from ltbench.distributed.device import pick_device
from ltbench.evaluation.evaluate import evaluate_split
from ltbench.machine import cores, cpu_name
from ltbench.records.aggregate import plus_minus
from ltbench.train.progress import ProgressBar
from ltbench.train.run import set_up_torch

SHOTS = ("top1", "many", "medium", "few")
EXACT = f"{FAST}, exact"
NOTE = (
    "relative; moved: over how far the weights have come. In fp32 rounding decides for a ReLU at "
    "its kink which way it goes, and gradients follow; fp64 shows what remains without that"
)


def report(
    given: Train, recipe: Recipe, console: Console, trace: Path | None = None
) -> dict[str, Any]:
    """Measure, print, and return the same as plain data.

    Args:
        given: what is measured.
        recipe: what is trained.
        console: where tables go.
        trace: gets a Chrome trace of some steps of the first pipeline.

    Raises:
        UserError: the recipe cannot be run here.
    """
    stage = given.stage
    device = pick_device(recipe.run.device)
    set_up_torch(recipe)
    data: Data = recipe.data.config.load()  # type: ignore[attr-defined]
    facts = {
        "recipe": recipe.name,
        "digest": recipe.digest,
        "stage": stage,
        "method": recipe.stages[stage].method.name,
        "update": recipe.stages[stage].update.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": cpu_name(),
        "threads": torch.get_num_threads(),
        "cores": cores(),
        "torch": torch.__version__,
    }
    console.print(
        f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} threads, "
        f"{facts['device']}, torch {facts['torch']}\n"
        f"{recipe.name}, stage {stage}: {facts['method']}, {facts['update']}, "
        f"{data.info.name} with {data.info.num_classes} classes, "
        f"batches of {recipe.stages[stage].batch_size}"
    )
    if given.what == "speed":
        return {**facts, "speed": _speed(recipe, data, device, given, console, trace)}
    return {**facts, "agreement": _agreement(recipe, data, device, given, console)}


def _speed(
    recipe: Recipe,
    data: Data,
    device: torch.device,
    given: Train,
    console: Console,
    trace: Path | None,
) -> list[dict[str, Any]]:
    """Time the pipelines and print their figures."""
    stage, names = given.stage, given.pipelines
    ready = [Pipeline(name, recipe, data, device, stage=stage) for name in names]
    speeds = measure(ready, rounds=given.rounds, steps=given.steps)
    if trace is not None:
        profile(ready[0], trace, steps=given.steps)
    found = [{**asdict(s), "mebibytes": peak(s.pipeline, recipe, stage=stage)} for s in speeds]
    table = plain_table("pipeline", "images/s", "ms/step", "MiB", device.type.upper())
    phases = plain_table("ms of a step", *PHASES)
    for row in found:
        name, busy = row["pipeline"], row["busy"]
        table.add_row(
            name,
            f"{row['images_per_second']:,.0f}",
            f"{row['milliseconds']:.1f}",
            f"{row['mebibytes']:,.0f}",
            "-" if busy is None else f"{busy:.0%}",
        )
        phases.add_row(name, *(f"{row['phases'][phase]:.1f}" for phase in PHASES))
    console.print("", table, "", phases, sep="\n")
    console.print(
        f"\nmedians of {given.rounds} blocks of {given.steps} steps in turn; phases in "
        "blocks of their own; MiB: peak of a process of its own"
    )
    for row in found:
        if row["pipeline"] == FAST and row["ratio"] is not None:
            low, high = row["spread"]
            console.print(f"{FAST} / {REFERENCE}: {row['ratio']:.2f} ({low:.2f} - {high:.2f})")
    if trace is not None:
        console.print(f"trace of {names[0]} in {trace}: open it in chrome://tracing or Perfetto")
    return found


def _agreement(
    recipe: Recipe,
    data: Data,
    device: torch.device,
    given: Train,
    console: Console,
) -> dict[str, Any]:
    """Compare first steps and results of both pipelines and print them."""
    stage, steps = given.stage, given.steps
    single = recipe.model_copy(update={"run": recipe.run.model_copy(update={"precision": "fp32"})})
    cases = [(FAST, single, False), (FAST, single, True)]
    if recipe.stages[stage].update.name == "plot":
        same = exact_recipe(recipe)
        cases = [(EXACT, same, False), (EXACT, same, True), (FAST, single, False)]
    console.print(f"\nfirst {steps} steps, largest difference from {REFERENCE}")
    table = plain_table("pipeline", "precision", "loss", "weights", "moved")
    first = []
    for name, case, double in cases:
        ours, theirs = (
            Pipeline(p, case, data, device, stage=stage, double=double) for p in PIPELINES
        )
        apart, bits = first_steps(ours, theirs, steps), 64 if double else 32
        table.add_row(name, f"fp{bits}", *(f"{v:.1e}" for v in asdict(apart).values()))
        first.append({"pipeline": name, "bits": bits, **asdict(apart)})
    console.print(table)
    console.print(NOTE)
    if len(cases) > 2:
        console.print(f"{EXACT}: with the class gradients and the solver of the reference")
    epochs = " + ".join(str(s.epochs) for s in recipe.stages if s.epochs is not None)
    console.print(f"\ntest accuracy after {epochs} epochs")
    runs = []
    for seed in range(recipe.seed, recipe.seed + given.seeds):
        seeded = recipe.model_copy(update={"seed": seed})
        for name in PIPELINES:
            start = time.perf_counter()
            reporter = ProgressBar(console)
            try:
                method = trained(name, seeded, data, device, reporter)
            finally:
                reporter.close()
            counts, rule = data.info.class_counts, recipe.shot_rule
            metrics = evaluate_split(method, data.test, counts, device=device, rule=rule)
            row = {"pipeline": name, "seed": seed, **{k: getattr(metrics, k) for k in SHOTS}}
            runs.append(row)
            passed = time.perf_counter() - start
            console.print(f"{name}, seed {seed}: {_percent([row['top1']])} ({passed:.0f} s)")
    table = plain_table("pipeline", "all", *SHOTS[1:])
    for name in PIPELINES:
        own = [row for row in runs if row["pipeline"] == name]
        table.add_row(name, *(_percent([row[k] for row in own]) for k in SHOTS))
    console.print()
    console.print(table)
    if given.seeds > 1:
        console.print(f"percent, mean ± standard deviation of {given.seeds} seeds")
    return {"first_steps": first, "runs": runs}


def _percent(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation in percent; a group without classes has none."""
    known = [100 * v for v in values if v is not None]
    mean = statistics.fmean(known) if known else None
    return plus_minus(mean, statistics.stdev(known) if len(known) > 1 else None)
