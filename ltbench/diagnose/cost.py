from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from ltbench.config import schema
from ltbench.config.recipe import Recipe, Stage
from ltbench.data import SAMPLERS
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.sentences import number
from ltbench.methods.base import Method
from ltbench.methods.inner import evaluating
from ltbench.plotting import blank, colours, legend_below, paper
from ltbench.train.freezing import freeze

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SECONDS = 0.2  # shortest duration of one repeat


class Cost(Diagnostic):
    """Cost of a model: parameters, FLOPs and speed of inference, time and memory of training."""

    title = "Cost"
    shown = (
        "Parameters, multiply-adds and speed of inference, and the cost of training; with several "
        "models, also as ratios to the first model."
    )
    computed = (
        "Parameters are those of the network used for predictions; trainable ones are those "
        "trained in the last stage. Multiply-adds are counted by torch for convolutions, matrix "
        "products and attention on one image of the model's input size; other operations are "
        "ignored. Images/s are medians over repeats in evaluation mode, in fp32, after a warm-up "
        "pass, with alternating batch sizes; they depend on the threads, the device and the load "
        "of the machine, and models are timed one after the other. Time and peak memory of "
        "training come from the record: compare them only if device, ranks and precision (see the "
        "table) agree. On a CPU the peak is that of the whole process, including the data. Images "
        "seen are those of the samplers over all epochs, without second streams, additional views "
        "or second passes of an update."
    )
    see = (
        "PLOT and modified losses do not change the model: the ratios of parameters, multiply-adds "
        "and speed are 1, and only training costs more. Experts and additional branches also "
        "increase the cost of inference."
    )

    captions: ClassVar[dict[str, str]] = {
        "cost": "Quantities in which the models differ, with the ratio to the first model; the "
        "table has all of them."
    }
    headings: ClassVar[dict[str, str]] = {"cost": "Cost", "conditions": "Conditions"}

    class Options(schema.Config):
        """Options of the cost."""

        batch_sizes: tuple[int, ...] = Field((1, 250), min_length=1)
        """Batch sizes for timing."""
        repeats: int = Field(5, ge=1)
        """Number of timings of each batch size."""

        @field_validator("batch_sizes")
        @classmethod
        def _positive(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
            if min(sizes) < 1:
                raise ValueError(f"every batch size must be at least 1, found {min(sizes)}")
            return tuple(dict.fromkeys(sizes))

    options: Options

    def measure(self, subject: Subject) -> Tables:
        """Return tables ``cost`` (quantity, value, unit) and ``conditions`` (name, value)."""
        import pandas as pd

        images = _images(subject, max(self.options.batch_sizes))
        rows: list[tuple[str, float, str]] = [
            *parameter_rows(subject.method, subject.recipe.stages[-1]),
            ("multiply-adds", multiply_adds(subject.method, images[:1]) / 1e6, "million"),
        ]
        speeds = images_per_second(
            subject.method, images, self.options.batch_sizes, self.options.repeats
        )
        rows += [(f"speed, batch {size}", speed, "images/s") for size, speed in speeds.items()]
        conditions = {
            "timed on": str(subject.device),
            "threads": str(torch.get_num_threads()),
            "image": "x".join(str(n) for n in images.shape[1:]),
        }
        rows += training_rows(subject)
        if subject.record is not None:
            ran = subject.record.execution
            conditions |= {
                "trained on": ran.gpu or ran.cpu,
                "training device": ran.device,
                "ranks": ", ".join(map(str, ran.ranks)),
                "precision": ran.precision,
                "shortened": ", ".join(subject.record.shortened) or "no",
            }
        return {
            "cost": pd.DataFrame(rows, columns=["quantity", "value", "unit"]),
            "conditions": pd.DataFrame(conditions.items(), columns=["condition", "value"]),
        }

    def images(self, subject: Subject) -> int:
        """Return the images of the counted passes; timed passes are in ``estimate``."""
        return max(self.options.batch_sizes)

    def estimate(self, subject: Subject, forward: float) -> float:
        """Return the time of all repeats, each at least ``SECONDS`` long."""
        timings = [max(SECONDS, forward * size) for size in self.options.batch_sizes]
        return super().estimate(subject, forward) + (self.options.repeats + 2) * sum(timings)

    def describe(self, tables: Tables) -> list[str]:
        """Say how large and how fast the model is, and what its training cost."""
        cost = tables["cost"].set_index("quantity")["value"]
        speeds = [q for q in cost.index if str(q).startswith("speed")]
        device = tables["conditions"].set_index("condition")["value"].get("timed on", "")
        found = [
            f"{number(cost['parameters'] / 1e6)} million parameters, "
            f"{number(cost['multiply-adds'])} million multiply-adds an image"
            + "".join(f", {number(cost[q])} images/s at {str(q)[7:]}" for q in speeds)
            + f" on {device}."
        ]
        if "training time" in cost:
            found.append(
                f"training took {number(cost['training time'])} minutes for "
                f"{cost['images seen']:,.0f} images."
            )
        return found

    def compare(self, results: Mapping[str, Tables]) -> list[str]:
        """Say which quantities differ between models, as ratios to the first.

        Speeds are left out where the models have the same multiply-adds: they differ by noise.
        """
        tables = {name: t["cost"] for name, t in results.items()}
        found, same = [], []
        first = next(iter(tables))
        alike = len({*_values(tables, "multiply-adds")}) == 1
        for quantity in _quantities(tables):
            if alike and quantity.startswith("speed"):
                continue
            values = dict(zip(tables, _values(tables, quantity), strict=True))
            if len({*values.values()}) == 1:
                same.append(quantity)
                continue
            if not values[first] > 0:
                continue
            ratios = [
                f"{name} {number(value / values[first])} times"
                for name, value in values.items()
                if name != first and np.isfinite(value)
            ]
            if ratios:
                found.append(f"{quantity} {', '.join(ratios)}")
        sentences = [f"relative to {first}: {'; '.join(found)}."] if found else []
        return [*sentences, f"the same for all: {', '.join(same)}."] if same else sentences

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return the figure ``cost`` of the quantities in which several models differ."""
        tables = {name: tables["cost"] for name, tables in results.items()}
        differing = [q for q in _quantities(tables) if len({*_values(tables, q)}) > 1]
        return {"cost": _picture(tables, differing)} if len(results) > 1 and differing else {}


def parameter_rows(method: Method, stage: Stage) -> list[tuple[str, float, str]]:
    """Return rows with the numbers of all and of trainable parameters for prediction.

    Args:
        method: the method, whose ``export`` returns the network; left unchanged.
        stage: the last stage of its training.
    """
    own = {p: p.requires_grad for p in method.parameters()}
    if stage.epochs is None:
        method.requires_grad_(False)
    else:
        freeze(method, stage)
    sizes = [(p.numel(), p.requires_grad) for p in method.export().parameters()]
    for parameter, trains in own.items():
        parameter.requires_grad_(trains)
    total = sum(size for size, _ in sizes)
    trained = sum(size for size, trains in sizes if trains)
    return [("parameters", float(total), ""), ("trainable parameters", float(trained), "")]


@torch.no_grad()
def multiply_adds(module: nn.Module, images: Tensor) -> int:
    """Return the multiply-adds of one pass: half the FLOPs of ``torch.utils.flop_counter``.

    Args:
        module: the network; its modes are restored.
        images: images [B, 3, H, W].
    """
    from torch.utils.flop_counter import FlopCounterMode

    with evaluating(module), FlopCounterMode(display=False) as counter:
        module(images)
    return int(counter.get_total_flops()) // 2


@torch.no_grad()
def images_per_second(
    module: nn.Module, images: Tensor, batch_sizes: Sequence[int], repeats: int
) -> dict[int, float]:
    """Return the median speed for each batch size, timed alternately.

    Args:
        module: the network; its modes are restored.
        images: images, at least as many as the largest batch.
        batch_sizes: batch sizes to time.
        repeats: number of timings of each batch size.
    """
    found: dict[int, list[float]] = {size: [] for size in batch_sizes}
    with evaluating(module):
        passes = {}
        for size in batch_sizes:
            _time(module, images[:size], 1)
            passes[size] = max(1, round(SECONDS / _time(module, images[:size], 1)))
        for _ in range(repeats):
            for size, times in found.items():
                seconds = _time(module, images[:size], passes[size])
                times.append(size * passes[size] / seconds)
    return {size: statistics.median(speeds) for size, speeds in found.items()}


def _time(module: nn.Module, batch: Tensor, passes: int) -> float:
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)
    start = time.perf_counter()
    for _ in range(passes):
        module(batch)
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)
    return max(time.perf_counter() - start, 1e-9)


def training_rows(subject: Subject) -> list[tuple[str, float, str]]:
    """Return rows with epochs and images seen, and time and memory if there is a record."""
    recipe = subject.recipe
    rows: list[tuple[str, float, str]] = []
    seen = images_seen(recipe, subject.data.train.labels)
    if recipe.run.max_steps is None:
        rows.append(("epochs", float(sum(s.epochs or 0 for s in recipe.stages)), ""))
    rows.append(("images seen", float(seen), ""))
    if subject.record is not None:
        ran = subject.record.execution
        rows.append(("training time", ran.wall_seconds / 60, "min"))
        if ran.peak_memory_bytes:
            rows.append(("training peak memory", ran.peak_memory_bytes / 2**20, "MiB"))
    return rows


def images_seen(recipe: Recipe, labels: np.ndarray) -> int:
    """Return the number of images in the main streams of all stages of a recipe.

    Args:
        recipe: the recipe, with epochs, batch sizes and samplers.
        labels: class of each training image [N].
    """
    total = 0
    for stage in recipe.stages:
        if not stage.epochs or not stage.batch_size:
            continue  # a post-hoc stage trains nothing
        sampler = SAMPLERS.get(stage.sampler.name)(stage.sampler.config)
        size = stage.batch_size
        order = sampler.order(labels, seed=0, epoch=0, epochs=stage.epochs, batch_size=size)
        epoch = len(order) // size * size if stage.last_batch == "drop" else len(order)
        most = size * recipe.run.max_steps if recipe.run.max_steps else stage.epochs * epoch
        total += min(stage.epochs * epoch, most)
    return total


def _images(subject: Subject, most: int) -> Tensor:
    """Return ``most`` preprocessed test images, with repetitions if there are fewer."""
    split = subject.data.test
    index = np.arange(min(most, len(split)))
    views = split.load(index, key=None, positions=index)
    (images,) = split.finish(tuple(v.to(subject.device) for v in views), key=None, positions=index)
    return images[torch.arange(most, device=images.device) % len(images)].contiguous()


def _quantities(tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Return the units of all quantities by name."""
    rows: dict[str, str] = {}
    for table in tables.values():
        rows |= dict(zip(table["quantity"], table["unit"], strict=True))
    return rows


def _values(tables: Mapping[str, pd.DataFrame], quantity: str) -> list[float]:
    """Return a quantity of each subject; NaN if it is not known."""
    found = []
    for table in tables.values():
        own = table.loc[table["quantity"] == quantity, "value"]
        found.append(float(own.iloc[0]) if len(own) else math.nan)
    return found


def _picture(results: Mapping[str, pd.DataFrame], quantities: Sequence[str]) -> Figure:
    units = _quantities(results)
    rows = {quantity: units[quantity] for quantity in quantities}
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    figure = blank(max(6, 2.75 * columns), lines * (0.9 + 0.27 * len(results)) + 0.6)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    colour = colours(results)
    for axes in panels[len(rows) :]:
        axes.set_axis_off()
    for axes, (quantity, unit) in zip(panels, rows.items(), strict=False):
        values = _values(results, quantity)
        y = np.arange(len(results))
        axes.barh(y, values, color=list(colour.values()), height=0.7)
        for at, value in zip(y, values, strict=True):
            text = _text(value)
            if len(results) > 1 and values[0] > 0 and np.isfinite(value):
                text += f"  (x {value / values[0]:.2f})"
            axes.text(
                0.02, at, text, va="center", fontsize="small", transform=axes.get_yaxis_transform(),
                bbox={"boxstyle": "round,pad=0.15", "facecolor": paper(), "edgecolor": "none",
                      "alpha": 0.85},
            )  # fmt: skip
        axes.set_title(f"{quantity}, {unit}" if unit else quantity, fontsize="medium", loc="left")
        axes.set(xticks=[], yticks=[], ylim=(len(results) - 0.5, -0.5))
        axes.set_xlim(left=0)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    from matplotlib.patches import Patch

    legend_below(figure, [Patch(color=c) for c in colour.values()], list(colour))
    return figure


def _text(value: float) -> str:
    if not np.isfinite(value):
        return "not known"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
