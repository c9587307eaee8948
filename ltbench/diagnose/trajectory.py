from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from ltbench import schema
from ltbench.curves import SERIES
from ltbench.diagnose import panels
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.gradients import SMALL, spread
from ltbench.errors import UserError
from ltbench.metrics import GROUPS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Trajectory(Diagnostic):
    """The classes' gradients from step to step of training, from the log that training wrote."""

    title = "Class gradients over training"
    shown = (
        "For the most frequent, a middle and the rarest class, the cosine of the gradient with "
        "the average g_0 and with d, the gradient that the update handed to the optimizer (paper: "
        "Fig 8), the length over that of g_0 (appendix 6), and the solver's weights where there "
        "are any; over all classes, how many pairs conflict and how many conflicts are dominated; "
        "loss and accuracy on the training batches by shot group. Dotted lines part the stages."
    )
    computed = (
        "Training with diagnose.every=N looks at every N-th step: at the weights before the step, "
        "on the batch of the step, it takes the gradients of the method's loss by the looked-at "
        "part, class by class; in stages that do not train the part, by all that is trained. A "
        "class's objective is its share of the batch loss; g_0 is the average over the classes "
        "present. d is .grad as the optimizer met it: for plain training a multiple of g_0, for "
        "SAM the gradient at the climbed weights, for PLOT the solver's direction there. Thick "
        "lines are running means, thin ones single looks. The paper draws g_0 without PLOT and d "
        "with it; here both are drawn for all."
    )
    see = (
        "Without PLOT, whether the frequent class lies near g_0 while the rare one is left out or "
        "opposed, and how early. With PLOT, whether the cosines with d come together while the "
        "solver is at work, and what happens when it stops. A rare class that is in few batches "
        "has few looks."
    )

    class Options(schema.Config):
        """Options of the diagnostic."""

        classes: int = Field(3, ge=2, le=6)
        """Classes drawn, evenly spread from the most to the least frequent."""
        smooth: int = Field(0, ge=0)
        """Looks that a running mean goes over; 0 is a twentieth of them."""

    options: Options

    def measure(self, subject: Subject) -> Tables:
        """Return the log of the subject's run: steps, and classes (a sample of many).

        Raises:
            UserError: the subject has no log.
        """
        from ltbench.diagnose.watch import read_log

        if subject.folder is None:
            raise UserError("the log lies in the folder of a run; give run=FOLDER")
        steps, classes = (read_log(subject.folder, name) for name in ("steps", "classes"))
        info = subject.data.info
        order = np.argsort(-np.array(info.class_counts), kind="stable")
        rank = {int(k): i for i, k in enumerate(order)}
        drawn = {int(order[i]) for i in spread(len(order), self.options.classes)}
        kept = drawn | {int(order[i]) for i in spread(len(order), SMALL)}
        classes = classes[classes["class"].isin(kept)].reset_index(drop=True)
        classes = classes.assign(
            name=[info.class_names[k] for k in classes["class"]],
            images=[info.class_counts[k] for k in classes["class"]],
            rank=[rank[k] for k in classes["class"]],
            drawn=classes["class"].isin(drawn),
        )
        return {"steps": steps, "classes": classes}

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Draw cosines, lengths, conflicts, and what shot groups make of it."""
        figures = {
            "cosines": self._classes(
                results,
                {"cosine_mean": "cosine with g_0", "cosine_direction": "cosine with d"},
                zero=True,
            ),
            "norms": self._classes(results, {"norm_ratio": "length over that of g_0"}),
            "conflicts": self._conflicts(results),
            "groups": self._groups(results),
        }
        weighed = {
            name: tables
            for name, tables in results.items()
            if tables["classes"]["solver_weight"].notna().any()
        }
        if weighed:
            figures["weights"] = self._classes(weighed, {"solver_weight": "weight by the solver"})
        return figures

    def _classes(
        self, results: Mapping[str, Tables], what: Mapping[str, str], *, zero: bool = False
    ) -> Figure:
        """Draw quantities of the drawn classes, a column for each subject."""

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
        axes[1].legend(frameon=False, fontsize="small")
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
        """Draw looks thinly and their running mean."""
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
    """Draw a row for each quantity and a column for each subject."""
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
    axes[0, 0].legend(frameon=False, fontsize="small")
    return figure


def _starts(steps: pd.DataFrame) -> dict[int, int]:
    """Return at which step, counted over all stages, each stage begins."""
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
