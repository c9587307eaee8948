from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from pydantic import Field
from torch import nn

from ltbench import plotting as panels
from ltbench.class_gradients.agreement import agreement, between_groups
from ltbench.config import schema
from ltbench.config.registry import natural
from ltbench.data.shots import GROUPS, shot_groups
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.features import by_frequency
from ltbench.diagnose.subject import State, states
from ltbench.errors import UserError
from ltbench.methods.base import Method
from ltbench.train.feed import Feed
from ltbench.train.stage import StageRun
from ltbench.train.step_gradients import Mode, StepGradients, spread, step_gradients
from ltbench.updates.base import StepRun

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STATES = 3  # columns of a figure at most
NUMBERED = 12  # classes up to which a heat map shows its numbers


class Conflicts(Diagnostic):
    """Agreement of the classes' gradients, at the end of training and at its checkpoints."""

    title = "Conflicts between the gradients of classes"
    shown = (
        "Cosines of the gradients of each two classes, ordered by class frequency (paper: Fig 1 "
        "and 2); how many pairs conflict and how many conflicts are dominated, at each checkpoint "
        "(Fig 5); by class, the length of its gradient over that of the average g_0, its cosine "
        "with g_0, and what it adds to the loss of a batch, B_k l_k / B (appendix 6 and 9). With "
        "several parts, the same by part of the network (appendix 8)."
    )
    computed = (
        "A class's objective is its share of the method's training loss on a batch, and g_0 is "
        "the average of the gradients of the classes present. Batches are the first ones of the "
        "epoch that would follow (of the last epoch for a finished stage), with the sampler, the "
        "augmentation, the mixing and the training mode of that stage; running statistics are "
        "not moved. Two classes conflict if their cosine is negative; an ordered pair (i, j) is "
        "dominated if |g_i| < |g_j| and cos(g_0, g_i) < 0. A pair's cosine is the mean over the "
        "batches that hold both. Up to 20 classes are differentiated one by one; with more, one "
        "backward pass serves all, which neglects how images reach each other through batch "
        "statistics and tends to find fewer conflicts (conflicts.gradients=exact avoids it). A "
        "part is differentiated in stages that freeze it too. Of many classes, the matrix shows "
        "an evenly spread sample; counts are over all that are present.\n\n"
        "The paper shows single steps early in training; checkpoints are later. The log of "
        "training (diagnose.every=N, shown by trajectory) has the early steps."
    )
    see = (
        "Blue fields are pairs that pull against each other. In plain training on a long tail, "
        "gradients of frequent classes are the longest and lie near g_0, while rare ones may point "
        "away from it: dominated conflicts. The paper claims fewer of both with PLOT, and norm "
        "ratios that are nearer to each other. Cosines near 0 are no agreement: late in training, "
        "when the loss is small, most are."
    )

    class Options(schema.Config):
        """Options of the diagnostic."""

        batches: int = Field(4, ge=1, le=10_000)
        """Training batches at each checkpoint."""
        parts: tuple[str, ...] = Field(("last",), min_length=1)
        """Parts of the network: last, a stage's name, head, backbone or whole."""
        gradients: Mode = "auto"
        """exact, one backward pass per class; fast, one in all; auto is exact for up to 20."""
        checkpoints: bool = True
        """Include the checkpoints in the run's folder."""
        classes: int = Field(20, ge=2, le=50)
        """Classes of the matrix at most."""

    options: Options

    def measure(self, subject: Subject) -> Tables:
        """Return cosines, classes, groups and counts at each checkpoint and the end.

        Raises:
            UserError: the last stage does not train and there is no checkpoint of one before.
        """
        import pandas as pd

        found: dict[str, list[dict[str, Any]]] = {
            name: [] for name in ("summary", "conflicts", "classes", "groups", "cosines")
        }
        every = list(states(subject)) if self.options.checkpoints else [*states(subject)][-1:]
        for state in every:
            if not state.method.trains:
                continue
            for part, looks in self._looks(subject, state).items():
                where = {"state": state.label, "stage": state.index, "part": part}
                for name, rows in self._rows(subject, looks).items():
                    found[name] += [{**where, **row} for row in rows]
        if not found["conflicts"]:
            raise UserError(
                f"`{subject.recipe.stages[-1].method.name}` has no training loss; give a run's "
                "folder with the checkpoints of the stage before"
            )
        return {name: pd.DataFrame(rows) for name, rows in found.items()}

    def _looks(self, subject: Subject, state: State) -> dict[str, list[StepGradients]]:
        method = copy.deepcopy(state.method)
        found: dict[str, list[StepGradients]] = {part: [] for part in self.options.parts}
        device = subject.device
        stage = StageRun(Feed(subject.recipe, subject.data, device), state.index, method)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            for micro, at in stage.first_steps(state.epoch, self.options.batches):
                for name in self.options.parts:
                    with only(method, name) as (run, part):
                        mode = self.options.gradients
                        found[name].append(step_gradients(run, micro, at, part, mode=mode))
        return found

    def _rows(
        self, subject: Subject, looks: Sequence[StepGradients]
    ) -> dict[str, list[dict[str, Any]]]:
        info, size = subject.data.info, subject.data.info.num_classes
        shots = shot_groups(info.class_counts, subject.recipe.shot_rule)
        group = {k: name for name, classes in shots.items() for k in classes}
        order = by_frequency(info.class_counts)
        rank = {k: i for i, k in enumerate(order)}
        sample = {order[i] for i in spread(size, self.options.classes)}
        pairs: dict[tuple[int, int], list[float]] = {}
        groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
        by_class: dict[int, list[tuple[float, ...]]] = {}
        counts: list[dict[str, Any]] = []
        for number, one in enumerate(looks):
            agree = agreement(one.products, len(one.classes))
            here = one.classes[one.chosen].tolist()
            names = [group[k] for k in here]
            counts.append(
                {
                    "batch": number,
                    "gradients": one.mode,
                    "classes": len(one.classes),
                    "pairs": agree.pairs,
                    "conflicts": agree.conflicts,
                    "dominated": agree.dominated,
                    "mean_norm": agree.mean_norm,
                    "loss": float(one.share.sum()),
                }
            )
            summed = _summed(one.products[:-1, :-1], names)
            for pair, value in between_groups(agree.cosine, names).items():
                groups.setdefault(pair, []).append((value, summed[pair]))
            for i, a in enumerate(here):
                own = int(one.chosen[i])
                by_class.setdefault(a, []).append(
                    (
                        float(agree.norm[i]),
                        float(agree.ratio[i]),
                        float(agree.with_mean[i]),
                        float(one.loss[own]),
                        float(one.share[own]),
                        float(one.rows[own] / one.rows.sum()),
                    )
                )
                for j, b in enumerate(here):
                    if rank[a] < rank[b] and a in sample and b in sample:
                        pairs.setdefault((a, b), []).append(float(agree.cosine[i, j]))
        keys = ("norm", "norm_ratio", "cosine_mean", "loss", "loss_share", "batch_share")
        classes = [
            {
                "class": k,
                "name": info.class_names[k],
                "images": info.class_counts[k],
                "rank": rank[k],
                "group": group[k],
                "in_matrix": k in sample,
                "batches": len(by_class[k]),
                **dict(zip(keys, np.mean(by_class[k], axis=0).tolist(), strict=True)),
            }
            for k in order
            if k in by_class
        ]
        shares = {
            f"{key}_percent": 100
            * float(np.mean([row[key] / max(1, row["pairs"]) for row in counts]))
            for key in ("conflicts", "dominated")
        }
        ratios = [row["norm_ratio"] for row in classes]
        return {
            "summary": [
                {
                    **shares,
                    "mean_cosine": _mean([v for values in pairs.values() for v in values]),
                    "smallest_ratio": min(ratios),
                    "largest_ratio": max(ratios),
                    "mean_norm": float(np.mean([row["mean_norm"] for row in counts])),
                    "loss": float(np.mean([row["loss"] for row in counts])),
                }
            ],
            "conflicts": counts,
            "classes": classes,
            "groups": [
                {
                    "group_i": a,
                    "group_j": b,
                    "mean_cosine": _mean([v[0] for v in values]),
                    "cosine_of_sums": _mean([v[1] for v in values]),
                }
                for (a, b), values in groups.items()
            ],
            "cosines": [
                {"class_i": a, "class_j": b, "cosine": float(np.mean(v)), "batches": len(v)}
                for (a, b), v in pairs.items()
            ],
        }

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Draw the matrices, the counts and the classes."""
        figures = {
            "cosines": _matrices(results),
            "conflicts": _counts(results),
            "by_class": _by_class(results),
        }
        if any(t["conflicts"]["part"].nunique() > 1 for t in results.values()):
            figures["parts"] = _parts(results)
        return figures


@contextmanager
def only(method: Method, name: str) -> Iterator[tuple[StepRun, list[nn.Parameter]]]:
    """Context manager in which only one part of a method has gradients, trained or not.

    Raises:
        UserError: there is no such part.
    """
    trained = [p.requires_grad for p in method.parameters()]
    known = {"whole", "head", "backbone", "last", *method.backbone.stages}
    if name not in known:
        raise UserError(f"no part is called `{name}`; known: {', '.join(sorted(known))}")
    try:
        method.requires_grad_(True)
        run = StepRun(method, torch.optim.SGD(method.parameters(), lr=0.0))
        part = run.part(name)
        method.requires_grad_(False)
        for p in part:
            p.requires_grad_(True)
        yield run, part
    finally:
        for p, flag in zip(method.parameters(), trained, strict=True):
            p.requires_grad_(flag)


def _summed(gram: np.ndarray, groups: Sequence[str]) -> dict[tuple[str, str], float]:
    """Return cosines of the summed gradients of shot groups; NaN where one has none."""
    member = np.array([[name == g for name in groups] for g in GROUPS], dtype=float)
    table = member @ gram @ member.T
    norm = np.sqrt(table.diagonal().clip(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = table / norm / norm[:, None]
    return {
        (a, b): float(cosine[i, j]) if norm[i] > 0 and norm[j] > 0 else float("nan")
        for i, a in enumerate(GROUPS)
        for j, b in enumerate(GROUPS)
        if i <= j
    }


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not np.isnan(v)]
    return float(np.mean(known)) if known else float("nan")


def _of(table: pd.DataFrame, state: str | None = None, part: str | None = None) -> pd.DataFrame:
    """Return the rows of a state and a part; of the first part if none is given."""
    table = table[table["part"] == (table["part"].iloc[0] if part is None else part)]
    return table if state is None else table[table["state"] == state]


def _ends(tables: Tables) -> list[str]:
    """Return the labels of the last state of each stage, the last few of them."""
    last = tables["conflicts"].groupby("stage", sort=True)["state"].last()
    return [str(label) for label in last][-STATES:]


def _matrices(results: Mapping[str, Tables]) -> Figure:
    """Draw a row of matrices for each subject, the end of each stage in a column."""
    columns = max(len(_ends(t)) for t in results.values())
    figure = panels.blank(1.2 + 4.6 * columns, 4.4 * len(results))
    axes = figure.subplots(len(results), columns, squeeze=False)
    off = [_of(t["cosines"])["cosine"].abs().max() for t in results.values()]
    reach = next((r for r in (0.1, 0.2, 0.3, 0.5) if np.nanmax([*off, 0.0]) <= r), 1.0)
    image = None
    for row, (name, tables) in zip(axes, results.items(), strict=True):
        for place, axis in enumerate(row):
            if place >= len(_ends(tables)):
                axis.set_axis_off()
                continue
            state = _ends(tables)[place]
            image = _matrix(axis, tables, state, reach)
            axis.set_title(f"{name}\n{state}", fontsize="medium")
    if image is not None:
        bar = figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.8, pad=0.01)
        bar.set_label("cosine of the gradients of two classes")
    return figure


def _matrix(axis: Axes, tables: Tables, state: str, reach: float) -> Any:
    classes = _of(tables["classes"], state)
    classes = classes[classes["in_matrix"]].sort_values("rank")
    place = {k: i for i, k in enumerate(classes["class"])}
    size = len(place)
    values = np.full((size, size), np.nan)
    for row in _of(tables["cosines"], state).itertuples():
        i, j = place[cast(int, row.class_i)], place[cast(int, row.class_j)]
        values[i, j] = values[j, i] = row.cosine
    axis.set_facecolor("#dddddd")
    image = axis.imshow(values, cmap="RdBu_r", vmin=-reach, vmax=reach)
    if size <= NUMBERED:
        for i, j in np.argwhere(~np.isnan(values)):
            dark = abs(values[i, j]) > 0.6 * reach
            text = f"{round(values[i, j], 2) + 0.0:.2f}".replace("0.", ".", 1)
            axis.text(
                *(j, i, text),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
            )
    labels = [f"{n} ({c:,})" for n, c in zip(classes["name"], classes["images"], strict=True)]
    short = [label if len(label) <= 22 else label[:20] + "..." for label in labels]
    axis.set_xticks(range(size), short, rotation=90, fontsize=7)
    axis.set_yticks(range(size), short, fontsize=7)
    axis.set_xlabel("class (training images)")
    return image


def _counts(results: Mapping[str, Tables]) -> Figure:
    """Draw the share of conflicting and of dominated pairs at each state."""
    import pandas as pd

    every = pd.concat([_of(t["conflicts"]) for t in results.values()])
    labels = _ordered(every)
    figure = panels.blank(max(7.5, 3 + 1.2 * len(labels)), 3.8)
    left, right = figure.subplots(1, 2)
    _bars(left, results, "conflicts", labels, "state")
    _bars(right, results, "dominated", labels, "state")
    left.set_title("conflicts: negative cosine", fontsize="medium")
    right.set_title("dominated conflicts", fontsize="medium")
    right.legend(frameon=False, fontsize="small")
    return figure


def _parts(results: Mapping[str, Tables]) -> Figure:
    """Draw conflicts and dominated conflicts by part, at the end of the first stage."""
    first = {
        name: {"conflicts": t["conflicts"][t["conflicts"]["state"] == _ends(t)[0]]}
        for name, t in results.items()
    }
    labels = list(dict.fromkeys(p for t in first.values() for p in t["conflicts"]["part"]))
    figure = panels.blank(max(7.5, 3 + 1.2 * len(labels)), 3.6)
    left, right = figure.subplots(1, 2)
    _bars(left, first, "conflicts", labels, "part")
    _bars(right, first, "dominated", labels, "part")
    states = ", ".join(dict.fromkeys(_ends(t)[0] for t in results.values()))
    left.set_title(f"conflicts, {states}", fontsize="medium")
    right.set_title("dominated conflicts", fontsize="medium")
    right.legend(frameon=False, fontsize="small")
    return figure


def _bars(
    axis: Axes, results: Mapping[str, Tables], what: str, labels: Sequence[str], key: str
) -> None:
    """Draw bars of a share of pairs by subject; whiskers are the standard deviation of batches."""
    width, colour = 0.8 / len(results), panels.colours(results)
    for i, (name, tables) in enumerate(results.items()):
        table = tables["conflicts"] if key == "part" else _of(tables["conflicts"])
        share = 100 * table[what] / table["pairs"].clip(lower=1)
        grouped = share.groupby(table[key])
        mean, deviation = grouped.mean(), grouped.std(ddof=0)
        places = [n for n, label in enumerate(labels) if label in mean.index]
        axis.bar(
            [n + (i - (len(results) - 1) / 2) * width for n in places],
            [mean[labels[n]] for n in places],
            0.92 * width,
            yerr=[deviation[labels[n]] for n in places],
            color=colour[name],
            error_kw={"elinewidth": 1, "ecolor": "#444444"},
            label=name,
        )
    axis.set_xticks(range(len(labels)), [label.replace(", ", "\n") for label in labels])
    axis.tick_params(axis="x", labelsize="small")
    axis.set_ylabel("share of all pairs of classes, %")
    axis.set_ylim(bottom=0)
    panels.tidy(axis, grid="y")


def _ordered(table: pd.DataFrame) -> list[str]:
    """Return the labels of states in the order of training."""
    labels = table.drop_duplicates("state")["state"]
    return sorted(map(str, labels), key=natural)


def _by_class(results: Mapping[str, Tables]) -> Figure:
    """Draw norm ratio, cosine with the average, and share of the loss, class by class."""
    columns = max(len(_ends(t)) for t in results.values())
    figure = panels.blank(1.5 + 3.6 * columns, 7.5)
    axes = figure.subplots(3, columns, squeeze=False, sharex="col", sharey="row")
    colour, marker = panels.colours(results), panels.markers(results)
    rows = (
        ("norm_ratio", "length of gradient\nover that of g_0"),
        ("cosine_mean", "cosine with g_0"),
        ("loss_share", "share of the batch loss\nB_k l_k / B"),
    )
    for name, tables in results.items():
        for column, state in enumerate(_ends(tables)):
            classes = _of(tables["classes"], state).sort_values("rank")
            few = len(classes) <= 50
            for axis, (key, _) in zip(axes[:, column], rows, strict=True):
                axis.plot(
                    classes["rank"],
                    classes[key],
                    marker[name],
                    color=colour[name],
                    markersize=5 if few else 2.5,
                    linestyle="-" if few else "none",
                    linewidth=1,
                    alpha=0.9 if few else 0.6,
                    label=name,
                )
            title = axes[0, column].get_title()
            axes[0, column].set_title(title if state in title else state, fontsize="medium")
    for axis, (_, label) in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(label)
    for axis in axes.ravel():
        panels.tidy(axis)
    for axis in axes[1]:
        axis.axhline(0, color=panels.GREY, linewidth=0.8)
    for axis in axes[2]:
        axis.set_xlabel("class, from the most to the least frequent")
    axes[0, 0].legend(frameon=False, fontsize="small")
    return figure
