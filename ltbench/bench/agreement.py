"""Agreement of fast and certified class gradients with exact ones, on states of a real run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltbench.class_gradients.engine import Engine, Pass
from ltbench.config import plugins, validation
from ltbench.digest import read_json
from ltbench.errors import UserError
from ltbench.files import reason
from ltbench.methods.base import Batch, Progress
from ltbench.models.batchnorm import frozen_statistics
from ltbench.moo import SOLVERS
from ltbench.moo.cagrad import CAGrad, certified_gap
from ltbench.records.record import RECIPE
from ltbench.train import checkpoint
from ltbench.train.feed import Feed
from ltbench.train.stage import StageRun, saved_method
from ltbench.updates import UPDATES
from ltbench.updates.base import StepRun

C = 0.5
MODES: dict[str, dict[str, Any]] = {
    "exact": {"class_gradients": "exact"},
    "fast": {"class_gradients": "fast"},
    **{
        f"certified, {n} round{'s' * (n > 1)}": {
            "class_gradients": "certified",
            "rounds": n,
            "tolerance": 0.0,
        }
        for n in (1, 2, 3)
    },
}


@dataclass
class Agreement:
    """One mode against exact class gradients in double precision, over some batches.

    Args:
        mode: of ``MODES``, or ``released`` for the public code's solver on exact gradients.
        cosine: of the update with the exact one, by batch.
        norm: length of the update over that of the exact one, by batch.
        weights: total variation between the solver's weights and the exact ones, by batch.
        excess: how far F is above its minimum, in units of c^2 |g_0|^2, by batch.
        gap: true duality gap in the same units, by batch.
    """

    mode: str
    cosine: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    excess: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)


@dataclass
class State:
    """A stage of a run as it stood at a checkpoint.

    Args:
        run: the stage, with the weights of the checkpoint.
        epoch: finished epochs.
    """

    run: StageRun
    epoch: int

    @classmethod
    def load(cls, folder: Path, data: dict[str, Any]) -> State:
        """Read a checkpoint folder inside a run's folder.

        Args:
            folder: e.g. ``RUN/checkpoints/s0-e0010-t000000``.
            data: options of the data set that differ from the run's, e.g. ``root``.

        Raises:
            UserError: it is not such a folder, or damaged.
        """
        described = folder.parent.parent / RECIPE
        if not described.is_file():
            raise UserError(
                f"`model=` must be a checkpoint folder inside a run's folder, such as "
                f"RUN/checkpoints/s0-e0010-t000000; there is no {described}"
            )
        snapshot = checkpoint.read_snapshot(folder)
        index, history = snapshot.stage, snapshot.facts["history"]
        try:
            tree = read_json(described)["tree"]
            tree["data"] = {**tree["data"], **data}
            tree["stages"][index]["micro_batch"] = None  # the whole batch is one task
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"{described} is damaged ({reason(error)}); run the recipe again"
            ) from error
        plugins.load_run(described.parent, tree)
        recipe = validation.build_recipe(tree)
        loaded = recipe.data.config.load()  # type: ignore[attr-defined]
        method = saved_method(snapshot, recipe, loaded.info, str(folder))
        method = method.to(memory_format=torch.channels_last)
        run = StageRun(Feed(recipe, loaded, torch.device("cpu")), index, method)
        return cls(run, history[-1]["epoch"] if history else 0)

    def batches(self, count: int) -> Iterator[tuple[Batch, Progress]]:
        """Yield prepared batches of the next epoch; of the last one if the stage is finished."""
        epoch = min(self.epoch, self.run.training.epochs - 1)
        for (batch,), at in self.run.first_steps(epoch, count):
            yield batch, at


def measure(state: State, count: int, part: str = "last") -> list[Agreement]:
    """Compare the updates of all modes on some batches.

    Args:
        state: of a run.
        count: batches.
        part: parameters under multi-objective control.
    """
    rows = {name: Agreement(name) for name in (*MODES, "released solver")}
    for batch, at in state.batches(count):
        task = _Task(state, batch, at, part)
        table = task.jacobian()
        gram = (table @ table.T).numpy()
        solution = CAGrad(CAGrad.Config(c=C, rescale="sum")).solve(gram)
        best = torch.from_numpy(solution.coefficients) @ table
        results = {name: task.update(options) for name, options in MODES.items()}
        released = SOLVERS.get("slsqp")(
            validation.build_options("SOLVERS", "slsqp", {"c": C, "rescale": "sum"})
        ).solve(gram)
        direction = torch.from_numpy(released.coefficients) @ table
        results["released solver"] = (direction, released.weights)
        slope = C * float(gram.mean()) ** 0.5

        def value(w: np.ndarray, gram: np.ndarray = gram, slope: float = slope) -> float:
            return float(w @ gram.mean(axis=1) + slope * max(w @ gram @ w, 0.0) ** 0.5)

        for name, (direction, weights) in results.items():
            row = rows[name]
            row.cosine.append(float(torch.cosine_similarity(direction, best, dim=0)))
            row.norm.append(float(direction.norm() / best.norm()))
            row.weights.append(float(np.abs(weights - solution.weights).sum() / 2))
            row.excess.append((value(weights) - value(solution.weights)) / slope**2)
            row.gap.append(certified_gap(gram, gram.mean(axis=1), slope, weights))
    return list(rows.values())


def by_layer(state: State, part: str = "last") -> dict[str, tuple[float, float, float]]:
    """Compare single class gradients, all columns of them, on one batch in double precision.

    Returns:
        For each kind of parameter: mean and smallest cosine over classes and parameters between
        fast and exact gradients, and the mean ratio of their lengths.
    """
    batch, at = next(state.batches(1))
    task = _Task(state, batch, at, part)
    table, size = task.jacobian(), task.size
    engine = Engine(task.method, task.part, None)
    with engine.recording(), frozen_statistics(task.method):
        loss = task.forward()
    weight = torch.full((len(batch.labels),), 1 / len(batch.labels), dtype=torch.float64)
    one = Pass(task.forward, task.place, weight, weight, loss=loss)
    if not engine.supports_fast(one):
        raise UserError(f"fast class gradients cannot be used: {engine.problem}")
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    exact = dict(zip(map(id, task.part), _split(table, task.part), strict=True))
    owners = {id(p): m for m in task.method.modules() for p in m._parameters.values()}
    for rows in engine.sampled(one, size, [], additive=True)[1]:
        kind = type(owners[id(rows.parameter)]).__name__
        kind += " weight" if rows.parameter.dim() > 1 else " vector"
        found.setdefault(kind, []).append((rows.rows[:size], exact[id(rows.parameter)]))
    result = {}
    for kind, pairs in found.items():
        cosines = torch.cat([torch.cosine_similarity(a, b, dim=1) for a, b in pairs])
        lengths = torch.cat([a.norm(dim=1) / b.norm(dim=1).clamp(min=1e-300) for a, b in pairs])
        result[kind] = (float(cosines.mean()), float(cosines.min()), float(lengths.mean()))
    return result


class _Task:
    """One batch at a state: its exact class gradients, and the update of any mode."""

    def __init__(self, state: State, batch: Batch, at: Progress, part: str) -> None:
        self.state, self.batch, self.at, self.name = state, batch, at, part
        self.method = copy.deepcopy(state.run.method).double()
        run = StepRun(self.method, torch.optim.SGD(self.method.parameters(), lr=0.0))
        self.part = run.part(part)
        classes, self.place = torch.unique(batch.labels, return_inverse=True)
        self.size = len(classes)

    def forward(self) -> tuple[Tensor, None]:
        """Return the loss rows in double precision."""
        views = tuple(v.double() for v in self.batch.views)
        return self.method.loss(replace(self.batch, views=views), self.at).rows, None

    def jacobian(self) -> Tensor:
        """Return exact class gradients [K, P], one backward pass each, in double precision."""
        with frozen_statistics(self.method):
            rows = self.forward()[0]
        table = []
        for k in range(self.size):
            own = (self.place == k).double() / len(rows)
            found = torch.autograd.grad(rows, self.part, own, retain_graph=True)
            table.append(torch.cat([g.flatten() for g in found]))
        return torch.stack(table)

    def update(self, options: dict[str, Any]) -> tuple[Tensor, np.ndarray]:
        """Return the direction and the solver's weights of a mode, as in training."""
        method = self.state.run.method
        before = {k: v.clone() for k, v in method.state_dict().items()}
        run = StepRun(method, torch.optim.SGD(method.parameters(), lr=0.0))
        values = {
            "part": self.name,
            "rho": 0.0,
            "collapse_weight": 0.0,
            "solver": {"name": "cagrad", "c": C, "rescale": "sum"},
            **options,
        }
        update = UPDATES.get("plot")(validation.build_options("UPDATES", "plot", values))
        log = update.step(run, [self.batch], self.at)
        method.load_state_dict(before)
        direction = torch.cat([p.grad.flatten() for p in run.part(self.name) if p.grad is not None])
        return direction.double(), np.asarray(log["weights"])


def _split(table: Tensor, part: list[nn.Parameter]) -> tuple[Tensor, ...]:
    return torch.split(table, [p.numel() for p in part], dim=1)
