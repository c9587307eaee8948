from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from ltbench import plotting as panels
from ltbench.config import schema
from ltbench.data.shots import GROUPS
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.features import by_frequency
from ltbench.diagnose.sentences import change
from ltbench.errors import UserError
from ltbench.plotting import SERIES
from ltbench.train.step_gradients import SMALL, spread

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Trajectory(Diagnostic):
    """Class gradients over the steps of training, from the log of the run."""

    title = "Class gradients over training"
    shown = (
        "For the most frequent, a medium and the rarest class: the cosine of the gradient with "
        "the average g_0 and with d, the gradient that the update passes to the optimizer (paper: "
        "Fig 8), the norm relative to g_0 (appendix 6), and the solver's weights, if any; over all "
        "classes, the shares of conflicting pairs and of dominated conflicts; loss and accuracy on "
        "the training batches by shot group. Dotted lines separate the stages."
    )
    computed = (
        "Training with diagnose.every=N measures every N-th step: at the weights before the step, "
        "on the batch of the step, it computes the gradient of the method's loss of each class "
        "with respect to the measured part, or to all trained parameters in stages that do not "
        "train the part. The objective of a class is its part of the batch loss; g_0 is the "
        "average over the classes present. d is .grad as used by the optimizer: a multiple of g_0 "
        "for plain training, the gradient at the perturbed weights for SAM, the solver's direction "
        "there for PLOT. Thick lines are running means, thin ones single measurements. The paper "
        "shows g_0 without PLOT and d with it; here both are shown for all models."
    )
    see = (
        "Without PLOT, whether the gradient of the frequent class is close to g_0 while that of "
        "the rare class is orthogonal or opposed, and how early. With PLOT, whether the cosines "
        "with d converge while the solver is active, and what happens when it stops. A rare class "
        "is present in few batches and has few measurements."
    )

    captions: ClassVar[dict[str, str]] = {
        "cosines": "Cosine of the gradients of single classes with the average g_0 and with the "
        "direction d of the step.",
        "norms": "Length of the gradients of single classes relative to g_0.",
        "conflicts": "Share of conflicting pairs and of dominated conflicts at each measured step.",
        "groups": "Loss and accuracy on the training batches by shot group.",
        "weights": "Weights of the solver for single classes.",
    }
    headings: ClassVar[dict[str, str]] = {"steps": "Measured steps", "classes": "Classes by step"}

    class Options(schema.Config):
        """Options of the diagnostic."""

        classes: int = Field(3, ge=2, le=6)
        """Number of classes shown, evenly spaced from the most to the least frequent."""
        smooth: int = Field(0, ge=0)
        """Window of the running means in measurements; 0 is a twentieth of all."""

    options: Options

    def measure(self, subject: Subject) -> Tables:
        """Return the log of the run: ``steps``, and ``classes`` (a sample if there are many).

        Raises:
            UserError: the subject has no log.
        """
        from ltbench.train.watch import FOLDER, read_log

        if subject.folder is None or not (subject.folder / FOLDER).is_dir():
            raise UserError(
                "needs the log of class gradients that a run writes with diagnose.every=N, e.g. "
                f"`ltbench run recipe={subject.recipe.name} seed={subject.recipe.seed} "
                "diagnose.every=10 out=NEW`; the weights are the same with and without it"
            )
        steps, classes = (read_log(subject.folder, name) for name in ("steps", "classes"))
        info = subject.data.info
        order = by_frequency(info.class_counts)
        rank = {k: i for i, k in enumerate(order)}
        drawn = {order[i] for i in spread(len(order), self.options.classes)}
        kept = drawn | {order[i] for i in spread(len(order), SMALL)}
        classes = classes[classes["class"].isin(kept)].reset_index(drop=True)
        classes = classes.assign(
            name=[info.class_names[k] for k in classes["class"]],
            images=[info.class_counts[k] for k in classes["class"]],
            rank=[rank[k] for k in classes["class"]],
            drawn=classes["class"].isin(drawn),
        )
        return {"steps": steps, "classes": classes}

    def images(self, subject: Subject) -> int:
        """Return 0: only the log of the run is read."""
        return 0

    def describe(self, tables: Tables) -> list[str]:
        """Say how conflicts changed from the first to the last fifth of each stage."""
        found = []
        for stage, steps in tables["steps"].groupby("stage", sort=True):
            fifth = max(1, len(steps) // 5)
            ends = []
            for key in ("conflicts", "dominated"):
                share = (steps[key] / steps["pairs"].clip(lower=1)).to_numpy()
                ends.append(change(share[:fifth], share[-fifth:]))
            found.append(
                f"stage {int(str(stage)) + 1}, from the first to the last fifth of {len(steps):,} "
                f"measured steps: the share of conflicting pairs of classes {ends[0]}, that of "
                f"dominated conflicts {ends[1]} (mean ± standard error over steps)."
            )
        return found

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return figures of cosines, norms, conflicts, shot groups and solver weights, if any."""
        figures = {
            "cosines": self._classes(
                results,
                {"cosine_mean": "cosine with g_0", "cosine_direction": "cosine with d"},
                zero=True,
            ),
            "norms": self._classes(results, {"norm_ratio": "norm relative to g_0"}),
            "conflicts": self._conflicts(results),
            "groups": self._groups(results),
        }
        weighed = {
            name: tables
            for name, tables in results.items()
            if tables["classes"]["solver_weight"].notna().any()
        }
        if weighed:
            figures["weights"] = self._classes(weighed, {"solver_weight": "weight of the solver"})
        return figures

    def _classes(
        self, results: Mapping[str, Tables], what: Mapping[str, str], *, zero: bool = False
    ) -> Figure:
        """Draw quantities of the selected classes, one column per subject."""

        def one(axis: Axes, tables: Tables, key: str) -> None:
            classes = tables["classes"][tables["classes"]["drawn"]]
            at = _axis(tables["steps"])
            chosen = classes.drop_duplicates("class").sort_values("rank")
            for i, (k, name, images) in enumerate(
                zip(chosen["class"], chosen["name"], chosen["images"], strict=True)
            ):
                own = classes[classes["class"] == k]
                x = np.array([at(s, c) for s, c in zip(own["stage"], own["count"], strict=True)])
                label = f"{name} ({images:,} images)"
                self._line(axis, x, own[key], panels.COLOURS[i], label)
            if zero:
                axis.axhline(0, color=panels.GREY, linewidth=0.8)

        return _grid(results, what, one)

    def _conflicts(self, results: Mapping[str, Tables]) -> Figure:
        figure = panels.blank(9, 3.8)
        axes = figure.subplots(1, 2, sharex=True)
        colour = panels.colours(results)
        for axis, key, title in (
            (axes[0], "conflicts", "conflicts: negative cosine"),
            (axes[1], "dominated", "dominated conflicts"),
        ):
            for name, tables in results.items():
                steps = tables["steps"]
                share = 100 * steps[key] / steps["pairs"].clip(lower=1)
                self._line(axis, _places(steps), share, colour[name], name)
                _borders(axis, steps)
            axis.set_title(title, fontsize="medium")
            axis.set_xlabel("optimizer step")
            axis.set_ylabel("share of all pairs of classes, %")
            axis.set_ylim(bottom=0)
            panels.tidy(axis)
        panels.shared_legend(figure)
        return figure

    def _groups(self, results: Mapping[str, Tables]) -> Figure:
        def one(axis: Axes, tables: Tables, key: str) -> None:
            steps = tables["steps"]
            for group in GROUPS:
                if f"{key}_{group}" in steps:
                    label, colour = SERIES[group]
                    scale = 100 if key == "accuracy" else 1
                    values = scale * steps[f"{key}_{group}"]
                    self._line(axis, _places(steps), values, colour, label)

        what = {"loss": "loss by shot group", "accuracy": "accuracy by shot group, %"}
        return _grid(results, what, one)

    def _line(
        self, axis: Axes, x: Sequence[float] | np.ndarray, values: Any, colour: str, label: str
    ) -> None:
        """Draw measurements as thin lines and their running mean as a thick line."""
        import pandas as pd

        series = pd.Series(np.asarray(values, dtype=float))
        window = self.options.smooth or max(1, len(series) // 20)
        mean = series.rolling(window, center=True, min_periods=1).mean()
        if window > 1:
            axis.plot(x, series, color=colour, linewidth=0.6, alpha=0.3)
        marker = "o" if len(series) < 30 else None
        axis.plot(x, mean, color=colour, linewidth=1.6, marker=marker, markersize=3, label=label)


def _grid(
    results: Mapping[str, Tables],
    what: Mapping[str, str],
    one: Callable[[Axes, Tables, str], None],
) -> Figure:
    """Draw one row per quantity and one column per subject."""
    figure = panels.blank(1.5 + 4.6 * len(results), 0.8 + 2.8 * len(what))
    axes = figure.subplots(len(what), len(results), squeeze=False, sharex="col", sharey="row")
    for row, (key, label) in zip(axes, what.items(), strict=True):
        for axis, tables in zip(row, results.values(), strict=True):
            one(axis, tables, key)
            _borders(axis, tables["steps"])
            panels.tidy(axis)
        row[0].set_ylabel(label)
    for axis, name in zip(axes[0], results, strict=True):
        axis.set_title(name, fontsize="medium")
    for axis in axes[-1]:
        axis.set_xlabel("optimizer step")
    panels.shared_legend(figure)
    return figure


def _starts(steps: pd.DataFrame) -> dict[int, int]:
    """Return the first step of each stage, counted over all stages."""
    starts, total = {}, 0
    for stage, length in (steps.groupby("stage")["count"].max() + 1).items():
        starts[int(str(stage))] = total
        total += int(length)
    return starts


def _axis(steps: pd.DataFrame) -> Callable[[int, int], int]:
    starts = _starts(steps)
    return lambda stage, count: starts[stage] + count


def _places(steps: pd.DataFrame) -> np.ndarray:
    at = _axis(steps)
    return np.array([at(s, c) for s, c in zip(steps["stage"], steps["count"], strict=True)])


def _borders(axis: Axes, steps: pd.DataFrame) -> None:
    for start in list(_starts(steps).values())[1:]:
        axis.axvline(start, color=panels.GREY, linestyle=":", linewidth=1)
