from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from ltbench.class_gradients.agreement import agreement, between_groups
from ltbench.config import schema
from ltbench.data.shots import GROUPS, shot_groups
from ltbench.diagnose.base import Diagnostic, Figures, Subject, Tables
from ltbench.diagnose.features import by_frequency
from ltbench.diagnose.figures import conflicts as figures
from ltbench.diagnose.progress import timed
from ltbench.diagnose.sentences import change, differ, mean_percent, number
from ltbench.diagnose.subject import State, states
from ltbench.errors import UserError
from ltbench.methods.base import Method
from ltbench.train import checkpoint
from ltbench.train.feed import Feed
from ltbench.train.stage import StageRun
from ltbench.train.step_gradients import Mode, StepGradients, spread, step_gradients
from ltbench.updates.base import StepRun

if TYPE_CHECKING:
    import pandas as pd


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

    captions: ClassVar[dict[str, str]] = {
        "cosines": "Cosine of the gradients of each pair of classes, at the end of each stage. "
        "Grey: no batch had both.",
        "conflicts": "Share of conflicting pairs and of dominated conflicts at each checkpoint, "
        "mean over batches; whiskers are ± one standard deviation over the batches.",
        "by_class": "Each class at the end of each stage, mean over the batches that contain it.",
        "parts": "As above, by part of the network, at the end of the first stage; whiskers are "
        "± one standard deviation over the batches.",
    }
    headings: ClassVar[dict[str, str]] = {
        "summary": "Conflicts by checkpoint",
        "conflicts": "Conflicts by batch",
        "classes": "Gradients by class",
        "groups": "Cosines within and between shot groups",
        "cosines": "Cosines of pairs of classes",
    }

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
        every = [state for state in every if state.method.trains]
        step = self.stepper(len(every) * self.options.batches * len(self.options.parts))
        for state in every:
            for part, looks in self._looks(subject, state, step).items():
                where = {"state": state.label, "stage": state.index, "part": part}
                for name, rows in self._rows(subject, looks).items():
                    found[name] += [{**where, **row} for row in rows]
        if not found["conflicts"]:
            raise UserError(
                f"`{subject.recipe.stages[-1].method.name}` has no training loss; give a run's "
                "folder with the checkpoints of the stage before"
            )
        return {name: pd.DataFrame(rows) for name, rows in found.items()}

    def estimate(self, subject: Subject, forward: float) -> float:
        """Time one batch of the trained model, for all batches of all checkpoints."""
        *_, state = states(replace(subject, folder=None))
        if not state.method.trains:
            return 0.0
        one = type(self)(self.options.model_copy(update={"batches": 1}))
        seconds = timed(lambda: one._looks(subject, state, lambda: None))
        home = subject.folder if self.options.checkpoints else None
        saved = 0 if home is None else len(checkpoint.folders(home / "checkpoints"))
        return seconds * max(1, saved) * self.options.batches

    def describe(self, tables: Tables) -> list[str]:
        """Say how conflicts changed in each stage, or how many there are at the end."""
        table = figures.of_part(tables["conflicts"])
        found = []
        for _, stage in table.groupby("stage", sort=True):
            ends = list(dict.fromkeys(stage["state"]))
            (first, last) = (_shares(stage, label) for label in (ends[0], ends[-1]))
            if len(ends) > 1:
                found.append(
                    f"from {ends[0]} to {ends[-1]} the share of conflicting pairs of classes "
                    f"{change(first['conflicts'], last['conflicts'])}, that of dominated conflicts "
                    f"{change(first['dominated'], last['dominated'])} (mean ± standard error over "
                    f"{len(last['conflicts'])} batches)."
                )
            else:
                found.append(
                    f"at {ends[-1]}, {mean_percent(last['conflicts'])} of the pairs of classes "
                    f"conflict, and {mean_percent(last['dominated'])} are dominated conflicts "
                    f"(mean ± standard error over {len(last['conflicts'])} batches)."
                )
        end = figures.ends(tables)[0]
        classes = figures.of_part(tables["classes"], end).sort_values("norm_ratio")
        short, long = (
            f"{row['name']} ({row['images']:,} training images, {number(row['norm_ratio'])})"
            for row in (classes.iloc[0], classes.iloc[-1])
        )
        return [
            *found,
            f"at {end}, relative to the average gradient, the longest gradient is that of class "
            f"{long}, the shortest that of class {short}.",
        ]

    def compare(self, results: Mapping[str, Tables]) -> list[str]:
        """Say which of the models has fewer conflicts at the end of its first stage."""
        shares = {}
        for name, tables in results.items():
            end = figures.ends(tables)[0]
            shares[name] = _shares(figures.of_part(tables["conflicts"], end), end)
        found = []
        for key, what in (("conflicts", "conflicts"), ("dominated", "dominated conflicts")):
            ordered = sorted(shares, key=lambda name: float(np.mean(shares[name][key])))
            parts = [f"{name} {mean_percent(shares[name][key])}" for name in ordered]
            low, high = (shares[name][key] for name in (ordered[0], ordered[-1]))
            verdict = "" if differ(low, high) else "; they do not differ beyond the noise"
            found.append(
                f"{what} at the end of the first stage, fewest first: {', '.join(parts)}{verdict}."
            )
        return found

    def _looks(
        self, subject: Subject, state: State, step: Callable[[], None]
    ) -> dict[str, list[StepGradients]]:
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
                        step()
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
        for place, one in enumerate(looks):
            agree = agreement(one.products, len(one.classes))
            here = one.classes[one.chosen].tolist()
            names = [group[k] for k in here]
            counts.append(
                {
                    "batch": place,
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
        drawn = {
            "cosines": figures.matrices(results),
            "conflicts": figures.counts(results),
            "by_class": figures.by_class(results),
        }
        if any(t["conflicts"]["part"].nunique() > 1 for t in results.values()):
            drawn["parts"] = figures.parts(results)
        return drawn


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


def _shares(table: pd.DataFrame, state: str) -> dict[str, np.ndarray]:
    """Return the shares of conflicts and of dominated conflicts in each batch of a state."""
    rows = table[table["state"] == state]
    pairs = rows["pairs"].clip(lower=1)
    return {key: (rows[key] / pairs).to_numpy() for key in ("conflicts", "dominated")}


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
