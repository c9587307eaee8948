from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.config import schema
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.features import parameters_of, read, sample, thirds
from ltbench.diagnose.predictions import groups_of
from ltbench.diagnose.progress import timed
from ltbench.diagnose.sentences import number
from ltbench.methods.inner import evaluating
from ltbench.models.heads import CosineHead
from ltbench.plotting import blank, colours, shared_legend, tidy
from ltbench.seeding import derive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ltbench.data.base import Split

Direction = list[Tensor]
STYLES = ("-", "--", ":")


class Landscape(Diagnostic):
    """Loss landscapes around the trained weights, for frequent and rare classes."""

    title = "Loss landscapes of head and tail classes"
    shown = (
        "The loss of frequent and of rare classes on a plane through the trained weights, spanned "
        "by two random directions, and along the first direction (paper: Figure 7, appendix "
        "Figure 12)."
    )
    computed = (
        "Directions are filter-normalised (Li et al., Visualizing the Loss Landscape of Neural "
        "Nets, NeurIPS 2018, arXiv:1712.09913): each filter of a Gaussian direction is scaled to "
        "the norm of the corresponding filter of the weights; biases and normalisation parameters "
        "do not change. A distance of 1 is thus a step as long as the weights. All models of one "
        "architecture have the same directions before scaling. The loss is the mean cross-entropy "
        "of the predicted logits on a sample of training images without augmentation, in "
        "evaluation mode; batch normalisation uses the trained running statistics. Groups are "
        "many, medium and few if all three exist, else the most frequent and the rarest third of "
        "the classes; their samples are balanced over classes. The paper does not specify how its "
        "landscapes were computed."
    )
    see = (
        "How fast the loss increases, and whether it does so equally for head and tail. The curves "
        "start at the training loss of the group, so compare shapes as well as heights. A narrow "
        "or asymmetric valley of the tail means that small changes of the weights hurt rare "
        "classes most. This is a single random plane: other seeds give other figures."
    )

    captions: ClassVar[dict[str, str]] = {
        "plane": "Loss of each group on the plane, logarithmic colours; the cross is the trained "
        "model.",
        "line": "Loss of each group along the first direction; 0 is the trained model.",
    }
    headings: ClassVar[dict[str, str]] = {
        "plane": "Loss on the plane",
        "line": "Loss along the line",
        "sample": "Sampled images",
    }

    class Options(schema.Config):
        """Options of the landscape."""

        images: int = Field(64, ge=1)
        """Images per group, balanced over its classes."""
        split: Literal["train", "test"] = "train"
        """Split of the images."""
        groups: Literal["auto", "shot", "thirds"] = "auto"
        """Shot groups, or the most frequent and the rarest third of the classes."""
        points: int = Field(15, ge=3)
        """Points along each side of the plane, odd: the middle one is the model."""
        line: int = Field(31, ge=3)
        """Points along the line, odd."""
        reach: float = Field(0.5, gt=0)
        """Extent of the plane to each side, in lengths of the weights."""
        part: str = "whole"
        """Perturbed parameters: whole, head, backbone, last or a stage of the backbone."""
        batch_size: int = Field(256, ge=1)
        """Images per pass."""
        seed: int = Field(0, ge=0)
        """Random seed of samples and directions."""

        @field_validator("points", "line")
        @classmethod
        def _odd(cls, value: int) -> int:
            if value % 2 == 0:
                raise ValueError(f"must be odd, so that the model is in the middle, found {value}")
            return value

    options: Options

    def measure(self, subject: Subject) -> Tables:
        """Return tables ``plane`` and ``line`` (a row per group and point), and ``sample``.

        Raises:
            UserError: there is no such part.
        """
        import pandas as pd

        options, chosen = self.options, self._chosen(subject)
        split, weights = self._split(subject), parameters_of(subject, options.part)
        columns = {id(m.weight) for m in subject.method.modules() if isinstance(m, CosineHead)}
        by_column = [id(p) in columns for p in weights.values()]
        values = [p.detach() for p in weights.values()]
        first, second = (
            filter_normalised(values, derive(options.seed, "direction", i), by_column)
            for i in range(2)
        )
        step = self.stepper(self._passes)
        losses = self._losses(subject, weights)

        def counted(moved: Direction) -> np.ndarray:
            found = losses(moved)
            step()
            return found

        with evaluating(subject.method):
            side = np.linspace(-options.reach, options.reach, options.points)
            plane = surface(counted, values, [first, second], [side, side])
            far = np.linspace(-options.reach, options.reach, options.line)
            line = surface(counted, values, [first], [far])
        tables = {
            "plane": [
                {"group": group, "x": x, "y": y, "loss": plane[i, j, g]}
                for g, group in enumerate(chosen)
                for i, x in enumerate(side)
                for j, y in enumerate(side)
            ],
            "line": [
                {"group": group, "x": x, "loss": line[i, g]}
                for g, group in enumerate(chosen)
                for i, x in enumerate(far)
            ],
            "sample": [
                {
                    "group": group,
                    "split": options.split,
                    "images": len(index),
                    "classes": len(np.unique(split.labels[index])),
                    "parameters": options.part,
                }
                for group, index in chosen.items()
            ],
        }
        return {name: pd.DataFrame(rows) for name, rows in tables.items()}

    @property
    def _passes(self) -> int:
        """Number of points at which the losses are computed."""
        return self.options.points**2 + self.options.line

    def _split(self, subject: Subject) -> Split:
        return subject.data.train if self.options.split == "train" else subject.data.test

    def _chosen(self, subject: Subject) -> dict[str, np.ndarray]:
        """Return the images of each group."""
        options, labels = self.options, self._split(subject).labels
        chosen = {
            name: sample(labels, classes, total=options.images, seed=options.seed)
            for name, classes in self._groups(subject).items()
        }
        return {name: index for name, index in chosen.items() if len(index)}

    def _losses(
        self, subject: Subject, weights: Mapping[str, nn.Parameter]
    ) -> Callable[[Direction], np.ndarray]:
        """Return the function from parameters to the mean loss of each group."""
        chosen = self._chosen(subject)
        images, labels = read(subject, self._split(subject), np.concatenate([*chosen.values()]))
        sizes = [len(index) for index in chosen.values()]
        module = subject.method.export()

        def losses(moved: Direction) -> np.ndarray:
            state = dict(zip(weights, moved, strict=True))
            rows = []
            batches = (torch.split(part, self.options.batch_size) for part in (images, labels))
            for x, y in zip(*batches, strict=True):
                logits = torch.func.functional_call(module.eval(), state, (x,), tie_weights=False)
                rows.append(F.cross_entropy(logits.double(), y, reduction="none"))
            means = [part.mean() for part in torch.split(torch.cat(rows), sizes)]
            result: np.ndarray = torch.stack(means).cpu().numpy()
            return result

        return losses

    @torch.no_grad()
    def estimate(self, subject: Subject, forward: float) -> float:
        """Time one pass of the sample."""
        weights = parameters_of(subject, self.options.part)
        losses = self._losses(subject, weights)
        with evaluating(subject.method):
            return self._passes * timed(lambda: losses([*weights.values()]))

    def describe(self, tables: Tables) -> list[str]:
        """Say how much the loss of each group rises at both ends of the line."""
        ends = _ends(tables)
        parts = [f"{g} {number(start)} to {number(end)}" for g, (start, end) in ends.items()]
        reach = number(float(tables["line"]["x"].max()))
        steepest = max(ends, key=lambda g: ends[g][1] - ends[g][0])
        most = f"; it rises most for {steepest}" if len(ends) > 1 else ""
        return [
            f"loss at the trained weights, and at a distance of {reach} lengths of the weights "
            f"(mean of both sides of one random direction): {', '.join(parts)}{most}."
        ]

    def compare(self, results: Mapping[str, Tables]) -> list[str]:
        """List the rise of the loss of the rarest group."""
        group = list(_ends(next(iter(results.values()))))[-1]
        rises = {}
        for name, tables in results.items():
            start, end = _ends(tables).get(group, (float("nan"), float("nan")))
            rises[name] = end - start
        parts = [f"{n} {number(r)}" for n, r in sorted(rises.items(), key=lambda one: one[1])]
        return [
            f"rise of the loss of {group} along one random direction, flattest first: "
            f"{', '.join(parts)}."
        ]

    def _groups(self, subject: Subject) -> dict[str, list[int]]:
        shots = groups_of(subject)
        if self.options.groups == "shot" or (self.options.groups == "auto" and len(shots) == 3):
            return shots
        found = thirds(subject.data.info.class_counts)
        return {"head": found["head"], "tail": found["tail"]}

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return figures ``plane`` and ``line``."""
        return {"plane": _draw_plane(results), "line": _draw_line(results)}


def _ends(tables: Tables) -> dict[str, tuple[float, float]]:
    """Return the loss of each group at the model, and its mean over both ends of the line."""
    found = {}
    for group, line in tables["line"].groupby("group", sort=False):
        losses = line.sort_values("x")["loss"].to_numpy()
        found[str(group)] = float(losses[len(losses) // 2]), float((losses[0] + losses[-1]) / 2)
    return found


def filter_normalised(
    weights: Sequence[Tensor], seed: int, by_column: Sequence[bool] | None = None
) -> Direction:
    """Return a random direction whose filters have the norms of the filters of the weights.

    Reference: Li et al., Visualizing the Loss Landscape of Neural Nets, NeurIPS 2018,
        arXiv:1712.09913.
    Departures: none known; the direction of vectors and scalars (biases, normalisation) is zero,
        as in the authors' code by default.

    Args:
        weights: parameters, with one filter per index of the first dimension.
        seed: random seed; weights of equal shapes have the same Gaussians.
        by_column: for each parameter, whether filters are indexed by the last dimension instead.

    Returns:
        One tensor per parameter.
    """
    generator = torch.Generator().manual_seed(seed)
    swaps = [False] * len(weights) if by_column is None else by_column
    direction = []
    for weight, swap in zip(weights, swaps, strict=True):
        if weight.dim() < 2:
            direction.append(torch.zeros_like(weight))
            continue
        drawn = torch.randn(weight.shape, generator=generator).to(weight)
        dims = tuple(range(weight.dim() - 1)) if swap else tuple(range(1, weight.dim()))
        lengths = torch.linalg.vector_norm(drawn, dim=dims, keepdim=True)
        wanted = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
        direction.append(drawn * (wanted / lengths.clamp(min=torch.finfo(weight.dtype).tiny)))
    return direction


@torch.no_grad()
def surface(
    losses: Callable[[Direction], np.ndarray],
    weights: Sequence[Tensor],
    directions: Sequence[Direction],
    sides: Sequence[np.ndarray],
) -> np.ndarray:
    """Return losses at ``weights + a d_1 + b d_2 + ...`` for all a, b, ... of a grid.

    Args:
        losses: function from parameters to one or several losses [G].
        weights: parameters at the origin, which are not modified.
        directions: d_1, d_2, ..., each with one tensor per parameter.
        sides: values of a, of b, ..., one array per direction.

    Returns:
        Losses, float64 [len(a), len(b), ..., G].
    """
    found = []
    for steps in np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, len(sides)):
        moved = list(weights)
        for step, direction in zip(steps, directions, strict=True):
            moved = [w + float(step) * d for w, d in zip(moved, direction, strict=True)]
        found.append(np.atleast_1d(np.asarray(losses(moved), dtype=np.float64)))
    return np.stack(found).reshape(*(len(side) for side in sides), -1)


def _draw_plane(results: Mapping[str, Tables]) -> Figure:
    """Draw filled contours: one row per subject, one column per group, with a common scale."""
    from matplotlib.colors import LogNorm

    groups = list(next(iter(results.values()))["plane"]["group"].unique())
    every = np.concatenate([tables["plane"]["loss"].to_numpy() for tables in results.values()])
    finite = every[np.isfinite(every)]
    low = max(float(finite.min()), 1e-3) if len(finite) else 1e-3
    high = max(float(finite.max()), low * 10) if len(finite) else 1.0
    levels = np.geomspace(low * 0.999, high * 1.001, 22)
    figure = blank(3.3 * len(groups) + 1.4, 3.6 * len(results) + 0.6)
    panels = figure.subplots(len(results), len(groups), sharex=True, sharey=True, squeeze=False)
    shade: Any = None
    for row, (name, tables) in zip(panels, results.items(), strict=True):
        for axes, group in zip(row, groups, strict=True):
            own = tables["plane"][tables["plane"]["group"] == group]
            grid = own.pivot(index="y", columns="x", values="loss")
            z = np.nan_to_num(grid.to_numpy(), nan=high, posinf=high).clip(low, high)
            x, y = grid.columns.to_numpy(float), grid.index.to_numpy(float)
            norm = LogNorm(low, high)
            shade = axes.contourf(x, y, z, levels=levels, norm=norm, cmap="cividis")
            axes.contour(x, y, z, levels=levels[::3], colors="white", linewidths=0.6)
            axes.plot(0, 0, "+", color="white", markersize=9, markeredgewidth=1.6)
            axes.set_aspect("equal")
            axes.set_title(f"{name}\n{_described(tables, group)}", fontsize=9)
        row[0].set_ylabel("direction 2, lengths of weights", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("direction 1, lengths of weights", fontsize=9)
    ticks = [t for e in range(-3, 9) for t in (10.0**e, 3 * 10.0**e) if low <= t <= high]
    bar = figure.colorbar(shade, ax=panels, ticks=ticks, shrink=0.85)
    bar.ax.set_yticklabels([f"{t:g}" for t in ticks])
    bar.set_label("mean cross-entropy, nats")
    return figure


def _draw_line(results: Mapping[str, Tables]) -> Figure:
    """Draw one panel per group and one line per subject."""
    from matplotlib.ticker import LogLocator

    groups = list(next(iter(results.values()))["line"]["group"].unique())
    figure = blank(3.6 * len(groups) + 0.8, 3.7)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    colour = colours(results)
    for axes, group in zip(panels, groups, strict=True):
        for i, (name, tables) in enumerate(results.items()):
            own = tables["line"][tables["line"]["group"] == group]
            style = STYLES[i % len(STYLES)]
            axes.plot(own["x"], own["loss"], style, color=colour[name], label=name, linewidth=1.7)
        axes.set_title(_described(next(iter(results.values())), group), fontsize=10)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.set_xlabel("direction 1, lengths of weights")
        tidy(axes)
    panels[0].set_ylabel("mean cross-entropy, nats")
    if len(results) > 1:
        shared_legend(figure)
    return figure


def _described(tables: Tables, group: str) -> str:
    """Return the label of a group with its sample size."""
    row = tables["sample"][tables["sample"]["group"] == group].iloc[0]
    classes = f"{row['classes']} class{'es' if row['classes'] > 1 else ''}"
    return f"{group}, {classes}, {row['images']} {row['split']} images"
