"""`ltbench bench train`: the pipelines of training as tables."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ltbench.bench.pipeline import FAST, PIPELINES, REFERENCE, Pipeline, first_steps, trained
from ltbench.bench.reference import exact_recipe
from ltbench.bench.train import PHASES, cores, measure, peak, profile
from ltbench.config import get_recipe, parse_word
from ltbench.data.base import Data
from ltbench.errors import UserError, did_you_mean
from ltbench.evaluation import evaluate_split
from ltbench.recipe import Recipe
from ltbench.report import Bar
from ltbench.runner import pick_device, set_up_torch

WHAT = ("speed", "agreement")
DEFAULTS: dict[str, Any] = {
    "recipe": None,
    "what": "speed",
    "pipelines": ",".join(PIPELINES),
    "rounds": 5,
    "steps": 4,
    "stage": 0,
    "threads": None,
    "seeds": 1,
}
ONLY = {"pipelines": "speed", "rounds": "speed", "seeds": "agreement"}
SHOTS = ("top1", "many", "medium", "few")
EXACT = f"{FAST}, exact"
NOTE = (
    "relative; moved: over how far the weights have come. In fp32 rounding decides for a ReLU at "
    "its kink which way it goes, and gradients follow; fp64 shows what remains without that"
)
LEAST = {"plain": 1.5, "plot": 2.5}  # how many times as fast as the reference, by update, on a CPU
LEAST_PLOT_100 = 5.0  # PLOT with 100 classes or more
LEAST_GPU = 10.0


def report(words: Sequence[str], console: Console, trace: Path | None = None) -> dict[str, Any]:
    """Measure, print, and return the same as plain data.

    Args:
        words: ``recipe=NAME``, the other keys of ``DEFAULTS``, and overrides of the recipe.
        console: where tables go.
        trace: gets a Chrome trace of some steps of the first pipeline.

    Raises:
        UserError: a word or a value is unknown, or the recipe cannot be run here.
    """
    options, overrides = _checked(words)
    if trace is not None and options["what"] != "speed":
        raise UserError("`--profile` is for what=speed; leave it out")
    if trace is not None and not trace.parent.is_dir():
        raise UserError(f"`--profile`: there is no folder {trace.parent}; make it first")
    recipe = get_recipe(str(options["recipe"]), *overrides)
    stage = options["stage"]
    if stage >= len(recipe.stages) or recipe.stages[stage].epochs is None:
        able = [str(i) for i, s in enumerate(recipe.stages) if s.epochs is not None]
        raise UserError(
            f"`stage`: expected a stage of `{recipe.name}` that trains ({', '.join(able)}), "
            f"found {stage}"
        )
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
        "processor": platform.processor() or platform.machine(),
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
    if options["what"] == "speed":
        return {**facts, "speed": _speed(recipe, data, device, options, console, trace)}
    return {**facts, "agreement": _agreement(recipe, data, device, options, console)}


def _checked(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the options of this command, and the words that are for the recipe."""
    given: dict[str, Any] = {}
    overrides: list[str] = []
    known = [*DEFAULTS, *Recipe.model_fields, "epochs"]
    for word in words:
        key, value = parse_word(word)
        if key in given:
            raise UserError(f"`{key}=` is given twice; give it once")
        if key in DEFAULTS:
            given[key] = value
        elif "." in key or key in known:
            overrides.append(word)
        else:
            raise UserError(
                f"unknown word `{key}`{did_you_mean(key, known)}; known: {', '.join(DEFAULTS)}, "
                "and keys of the recipe"
            )
    if not given.get("recipe"):
        raise UserError(f"expected `recipe=...`, found {' '.join(words) or 'nothing'}")
    options = {**DEFAULTS, **given}
    if options["what"] not in WHAT:
        near = did_you_mean(str(options["what"]), WHAT)
        raise UserError(f"`what`: expected {' or '.join(WHAT)}, found `{options['what']}`{near}")
    for key, what in ONLY.items():
        if key in given and options["what"] != what:
            raise UserError(f"`{key}` is for what={what}; leave it out of what={options['what']}")
    options["pipelines"] = [w.strip() for w in str(options["pipelines"]).split(",")]
    for name in options["pipelines"]:
        if name not in PIPELINES or options["pipelines"].count(name) > 1:
            raise UserError(
                f"`pipelines`: expected {', '.join(PIPELINES)}, each once, found `{name}`"
                f"{did_you_mean(name, PIPELINES)}"
            )
    for key, least in (("rounds", 1), ("steps", 1), ("seeds", 1), ("stage", 0), ("threads", 1)):
        value = options[key]
        if key == "threads" and value is None:
            continue
        if type(value) is not int or value < least:
            raise UserError(f"`{key}`: expected a whole number from {least}, found `{value}`")
    if options["threads"] is not None:
        overrides.append(f"run.threads={options['threads']}")
    if options["what"] == "agreement" and not any(w.startswith("epochs=") for w in overrides):
        raise UserError(
            "what=agreement trains the recipe under both pipelines: say how long with `epochs=N`"
        )
    return options, overrides


def _speed(
    recipe: Recipe,
    data: Data,
    device: torch.device,
    options: Mapping[str, Any],
    console: Console,
    trace: Path | None,
) -> list[dict[str, Any]]:
    """Time the pipelines and print their figures."""
    stage, names = options["stage"], options["pipelines"]
    ready = [Pipeline(name, recipe, data, device, stage=stage) for name in names]
    speeds = measure(ready, rounds=options["rounds"], steps=options["steps"])
    if trace is not None:
        profile(ready[0], trace, steps=options["steps"])
    found = [{**asdict(s), "mebibytes": peak(s.pipeline, recipe, stage=stage)} for s in speeds]
    table = _table("pipeline", "images/s", "ms/step", "MiB", device.type.upper())
    phases = _table("ms of a step", *PHASES)
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
        f"\nmedians of {options['rounds']} blocks of {options['steps']} steps in turn; phases in "
        "blocks of their own; MiB: peak of a process of its own"
    )
    for row in found:
        if row["pipeline"] == FAST and row["ratio"] is not None:
            row["least"] = goal(recipe, stage, data.info.num_classes, device)
            console.print(_verdict(row))
    if trace is not None:
        console.print(f"trace of {names[0]} in {trace}: open it in chrome://tracing or Perfetto")
    return found


def goal(recipe: Recipe, stage: int, classes: int, device: torch.device) -> float | None:
    """Return how many times as fast as the reference a stage is to be, if that has been said."""
    update = recipe.stages[stage].update.name
    if update not in LEAST:
        return None
    if device.type == "cuda":
        return LEAST_GPU
    return LEAST_PLOT_100 if update == "plot" and classes >= 100 else LEAST[update]


def _verdict(row: Mapping[str, Any]) -> str:
    low, high = row["spread"]
    line = f"{FAST} / {REFERENCE}: {row['ratio']:.2f} ({low:.2f} - {high:.2f})"
    if row["least"] is None:
        return line
    met = "met" if row["ratio"] >= row["least"] else "missed"
    return f"{line}, goal >= {row['least']:g}: {met}"


def _agreement(
    recipe: Recipe,
    data: Data,
    device: torch.device,
    options: Mapping[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Compare first steps and results of both pipelines and print them."""
    stage, steps = options["stage"], options["steps"]
    single = recipe.model_copy(update={"run": recipe.run.model_copy(update={"precision": "fp32"})})
    cases = [(FAST, single, False), (FAST, single, True)]
    if recipe.stages[stage].update.name == "plot":
        same = exact_recipe(recipe)
        cases = [(EXACT, same, False), (EXACT, same, True), (FAST, single, False)]
    console.print(f"\nfirst {steps} steps, largest difference from {REFERENCE}")
    table = _table("pipeline", "precision", "loss", "weights", "moved")
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
    for seed in range(recipe.seed, recipe.seed + options["seeds"]):
        seeded = recipe.model_copy(update={"seed": seed})
        for name in PIPELINES:
            start = time.perf_counter()
            reporter = Bar(console)
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
    table = _table("pipeline", "all", *SHOTS[1:])
    for name in PIPELINES:
        own = [row for row in runs if row["pipeline"] == name]
        table.add_row(name, *(_percent([row[k] for row in own]) for k in SHOTS))
    console.print()
    console.print(table)
    if options["seeds"] > 1:
        console.print(f"percent, mean ± standard deviation of {options['seeds']} seeds")
    return {"first_steps": first, "runs": runs}


def _percent(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation in percent; a group without classes has none."""
    known = [100 * v for v in values if v is not None]
    if not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.2f}{spread}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table
