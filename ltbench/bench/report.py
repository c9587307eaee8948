"""`ltbench bench plot`: the measurements of the PLOT engine as tables."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ltbench.bench import agreement, resources, steps
from ltbench.bench.table import plain_table
from ltbench.bench.words import Plot
from ltbench.machine import cpu_name

NETWORKS = (
    ("resnet32_cifar", "last"),
    ("resnet32_cifar", "whole"),
    ("resnet50", "last"),
    ("resnet50", "whole"),
)


def plot(given: Plot, console: Console) -> dict[str, list[dict[str, Any]]]:
    """Measure and print; return the same as plain data."""
    torch.set_num_threads(given.threads)
    console.print(
        f"{cpu_name()}, {given.threads} threads, "
        f"{given.device}, torch {torch.__version__}, {given.precision}, "
        f"{'channels_last' if given.channels_last else 'contiguous'}\n"
    )
    measure = {"steps": _steps, "memory": _memory, "traffic": _traffic, "agreement": _agreement}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchjd, about itself
        return {name: measure[name](given, console) for name in given.what}


def _steps(given: Plot, console: Console) -> list[dict[str, Any]]:
    found = []
    options = given.model_dump(include={"rounds", "device", "channels_last", "precision"})
    for case in given.cases():
        console.print(f"a step: {case.title}")
        table = plain_table("pipeline", "ms", "/ plain", "range")
        for t in steps.measure(case, given.pipelines, **options):
            spread = f"{t.spread[0]:.2f} - {t.spread[1]:.2f}"
            table.add_row(t.pipeline, f"{t.milliseconds:.0f}", f"{t.ratio:.2f}", spread)
            found.append({**asdict(case), **asdict(t)})
        console.print(table, "")
    return found


def _memory(given: Plot, console: Console) -> list[dict[str, Any]]:
    found = []
    names = ["plain", *(p for p in given.pipelines if p != "plain")]
    for case in given.cases():
        console.print(f"peak memory of a step, beyond network and batch: {case.title}")
        table = plain_table("pipeline", "MiB", "/ plain")
        rows = resources.memory(case, names)
        for m in rows:
            ratio = f"{m.mebibytes / rows[0].mebibytes:.2f}" if rows[0].mebibytes else "-"
            table.add_row(m.pipeline, f"{m.mebibytes:.0f}", ratio)
            found.append({**asdict(case), **asdict(m)})
        console.print(table, "")
    return found


def _traffic(given: Plot, console: Console) -> list[dict[str, Any]]:
    console.print("MB that a rank sums per step, for the part, in single precision")
    table = plain_table("network", "part", "P", "K", "plain", "fast", "+ round", "exact")
    found = [t for n, p in NETWORKS for t in resources.traffic(n, p, (10, 100, 1000))]
    for t in found:
        sizes = (f"{b / 1e6:.1f}" for b in (t.plain, t.fast, t.round, t.exact))
        table.add_row(t.backbone, t.part, f"{t.parameters:,}", str(t.objectives), *sizes)
    console.print(table, "")
    return [asdict(t) for t in found]


def _agreement(given: Plot, console: Console) -> list[dict[str, Any]]:
    assert given.model is not None
    state = agreement.State.load(given.model, given.data)
    console.print(f"updates against exact ones: {state.run.recipe.name}, after epoch {state.epoch}")
    table = plain_table("mode", "cosine", "least", "length", "weights", "F - min F", "gap")
    rows = agreement.measure(state, given.batches, given.part)
    for r in rows:
        table.add_row(
            r.mode,
            f"{np.mean(r.cosine):.4f}",
            f"{min(r.cosine):.4f}",
            f"{np.mean(r.norm):.3f}",
            f"{np.mean(r.weights):.3f}",
            f"{np.mean(r.excess):.1e}",
            f"{np.mean(r.gap):.1e}",
        )
    console.print(table, "")
    console.print(
        "weights: total variation between the solver's and the exact ones; F - min F and duality "
        "gap in units of c^2 |g_0|^2\n"
    )
    console.print("single class gradients, fast against exact")
    table = plain_table("layer", "cosine", "least", "length")
    for kind, values in agreement.by_layer(state, given.part).items():
        table.add_row(kind, *(f"{v:.3f}" for v in values))
    console.print(table, "")
    return [{"epoch": state.epoch, **asdict(r)} for r in rows]
