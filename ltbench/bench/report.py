"""`ltbench bench plot`: the measurements of the PLOT engine as tables."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ltbench.bench import agreement, resources, solvers, steps
from ltbench.errors import UserError, did_you_mean

WHAT = ("steps", "solvers", "memory", "traffic", "agreement")
CASES = (
    steps.Case(classes=10),
    steps.Case(classes=100),
    steps.Case(classes=10, part="whole"),
    steps.Case(classes=100, part="whole"),
    steps.Case("resnet50", classes=1000, present=30, batch=32, pixels=112),
)
NETWORKS = (
    ("resnet32_cifar", "last"),
    ("resnet32_cifar", "whole"),
    ("resnet50", "last"),
    ("resnet50", "whole"),
)
DEFAULTS: dict[str, Any] = {
    "what": "steps,solvers,memory,traffic",
    "threads": os.cpu_count() or 1,
    "rounds": 7,
    "device": "cpu",
    "channels_last": True,
    "precision": "fp32",
    "pipelines": ",".join(steps.PIPELINES),
    "model": None,
    "batches": 4,
}


def plot(words: Mapping[str, Any], console: Console) -> dict[str, list[dict[str, Any]]]:
    """Measure and print; return the same as plain data.

    Args:
        words: ``DEFAULTS`` and the fields of ``Case``, as given on the command line.
        console: where tables go.

    Raises:
        UserError: a word or a value is unknown.
    """
    case_words = {k: v for k, v in words.items() if k in steps.Case.__dataclass_fields__}
    data = {k.removeprefix("data."): v for k, v in words.items() if k.startswith("data.")}
    rest = {k: v for k, v in words.items() if k not in case_words and not k.startswith("data.")}
    options = _checked(rest)
    torch.set_num_threads(options["threads"])
    console.print(
        f"{platform.processor() or platform.machine()}, {options['threads']} threads, "
        f"{options['device']}, torch {torch.__version__}, {options['precision']}, "
        f"{'channels_last' if options['channels_last'] else 'contiguous'}\n"
    )
    cases = [replace(steps.Case(), **case_words)] if case_words else list(CASES)
    measure: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "steps": lambda: _steps(cases, options, console),
        "solvers": lambda: _solvers(console),
        "memory": lambda: _memory(cases, options, console),
        "traffic": lambda: _traffic(console),
        "agreement": lambda: _agreement(options, data, cases[0].part, console),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchjd and cvxpy, about themselves
        return {name: measure[name]() for name in options["what"]}


def _checked(words: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [w for w in words if w not in DEFAULTS]
    known = [*DEFAULTS, *steps.Case.__dataclass_fields__]
    if unknown:
        raise UserError(
            f"unknown word `{unknown[0]}`{did_you_mean(unknown[0], known)}; "
            f"known: {', '.join(known)}"
        )
    options = {**DEFAULTS, **words}
    for key, allowed in (("what", WHAT), ("pipelines", steps.PIPELINES)):
        options[key] = [w.strip() for w in str(options[key]).split(",")]
        for word in options[key]:
            if word not in allowed:
                raise UserError(
                    f"`{key}`: expected {', '.join(allowed)}, found `{word}`"
                    f"{did_you_mean(word, allowed)}"
                )
    for key in ("threads", "rounds", "batches"):
        if not isinstance(options[key], int) or options[key] < 1:
            raise UserError(f"`{key}`: expected a whole number from 1, found `{options[key]}`")
    if "agreement" in options["what"] and options["model"] is None:
        raise UserError("what=agreement needs `model=RUN/checkpoints/NAME`, a state of a run")
    return options


def _steps(
    cases: Sequence[steps.Case], options: Mapping[str, Any], console: Console
) -> list[dict[str, Any]]:
    """Time a step of each pipeline and print ratios."""
    found = []
    kept = {k: options[k] for k in ("rounds", "device", "channels_last", "precision")}
    for case in cases:
        console.print(f"a step: {case.title}")
        table = _table("pipeline", "ms", "/ plain", "range")
        for t in steps.measure(case, options["pipelines"], **kept):
            spread = f"{t.spread[0]:.2f} - {t.spread[1]:.2f}"
            table.add_row(t.pipeline, f"{t.milliseconds:.0f}", f"{t.ratio:.2f}", spread)
            found.append({**asdict(case), **asdict(t)})
        console.print(table, "")
    return found


def _solvers(console: Console) -> list[dict[str, Any]]:
    console.print("solvers on captured Gram matrices, one core")
    table = _table("solver", "K", "ms", "relative gap")
    found = solvers.measure()
    for s in found:
        gap = "-" if np.isnan(s.gap) else f"{s.gap:.1e}"
        table.add_row(s.solver, str(s.size), f"{s.milliseconds:.2f}", gap)
    console.print(table, "")
    return [asdict(s) for s in found]


def _memory(
    cases: Sequence[steps.Case], options: Mapping[str, Any], console: Console
) -> list[dict[str, Any]]:
    found = []
    for case in cases:
        console.print(f"peak memory of a step, beyond network and batch: {case.title}")
        table = _table("pipeline", "MiB", "/ plain")
        rows = resources.memory(case, ["plain", *(p for p in options["pipelines"] if p != "plain")])
        for m in rows:
            table.add_row(
                m.pipeline, f"{m.mebibytes:.0f}", f"{m.mebibytes / rows[0].mebibytes:.2f}"
            )
            found.append({**asdict(case), **asdict(m)})
        console.print(table, "")
    return found


def _traffic(console: Console) -> list[dict[str, Any]]:
    console.print("MB that a rank sums per step, for the part, in single precision")
    table = _table("network", "part", "P", "K", "plain", "fast", "+ round", "exact")
    found = [t for n, p in NETWORKS for t in resources.traffic(n, p, (10, 100, 1000))]
    for t in found:
        sizes = (f"{b / 1e6:.1f}" for b in (t.plain, t.fast, t.round, t.exact))
        table.add_row(t.backbone, t.part, f"{t.parameters:,}", str(t.objectives), *sizes)
    console.print(table, "")
    return [asdict(t) for t in found]


def _agreement(
    options: Mapping[str, Any], data: dict[str, Any], part: str, console: Console
) -> list[dict[str, Any]]:
    state = agreement.State.load(Path(options["model"]), data)
    console.print(f"updates against exact ones: {state.recipe.name}, after epoch {state.epoch}")
    table = _table("mode", "cosine", "least", "length", "weights", "F - min F", "gap")
    rows = agreement.measure(state, options["batches"], part)
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
    layers = agreement.by_layer(state, part)
    table = _table(
        "single class gradients, fast against exact", "layer", "cosine", "least", "length"
    )
    for kind, values in layers.items():
        table.add_row(kind, *(f"{v:.3f}" for v in values))
    console.print(table, "")
    return [{"epoch": state.epoch, **asdict(r)} for r in rows]


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table
