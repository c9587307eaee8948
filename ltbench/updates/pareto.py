"""From the losses of a step to the direction that a multi-objective solver picks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ltbench import dist
from ltbench.backbones.batchnorm import frozen_statistics
from ltbench.class_gradients.certified import certify
from ltbench.class_gradients.engine import Engine, Loss, Pass
from ltbench.class_gradients.gram import with_exact_sum
from ltbench.gradients import Gradient, added, each
from ltbench.moo.base import Solution, Solver, Vector
from ltbench.updates.objectives import ClassObjectives

Index = NDArray[np.intp]


@dataclass
class Task:
    """One step's objectives and how they are to be weighed.

    Args:
        engine: of the class gradients.
        passes: the micro-batches of this rank.
        objectives: what classes share over all ranks.
        chosen: classes that may be objectives [K]; those absent from the batch are none.
        rest: trained parameters outside the part.
        solver: weighs the objectives.
        preference: importance of each class [C], or ``None`` for equal.
        seed: for solvers with a random order.
        shared: whether a part of the loss belongs to no row.
    """

    engine: Engine
    passes: list[Pass]
    objectives: ClassObjectives
    chosen: Tensor
    rest: list[nn.Parameter]
    solver: Solver
    preference: Tensor | None
    seed: int
    shared: bool

    @property
    def together(self) -> bool:
        """Whether the objectives and what is left out add up to the ordinary loss."""
        return self.objectives.summed_by_ordinary and not self.shared

    def solve(self, gram: Vector, losses: Vector, classes: Vector) -> Solution:
        """Let the solver weigh the objectives of some classes."""
        return self.solver.solve(
            gram, losses=losses, preference=self.preference_of(classes), seed=self.seed
        )

    def preference_of(self, classes: Vector) -> Vector | None:
        """Return the importance of some classes."""
        if self.preference is None:
            return None
        return np.asarray(self.preference.double().numpy()[classes.astype(np.int64)])

    def numbers(self, *more: Tensor) -> tuple[Vector, ...]:
        """Copy mean loss, count and number of the chosen classes, and more, in one transfer."""
        own = (self.objectives.means, self.objectives.counts)
        tensors = [*(t[self.chosen] for t in own), self.chosen, *more]
        flat = torch.cat([t.double().reshape(-1) for t in tensors]).cpu().numpy()
        parts = np.split(flat, np.cumsum([t.numel() for t in tensors])[:-1])
        return tuple(p.reshape(t.shape) for p, t in zip(parts, tensors, strict=True))


@dataclass
class Found:
    """Gradients to step along, and what is known of the objectives.

    Args:
        ordinary: gradient of the loss by the parameters outside the part.
        direction: the solver's direction in the part.
        classes: those that are objectives [K].
        weights: point of the simplex that the solver found [K].
        gram: inner products of the objectives [K, K].
        gap: duality gap of the solver's weights, see `Solution` and `certify`.
    """

    ordinary: Gradient
    direction: Gradient
    classes: Vector
    weights: Vector
    gram: Vector
    gap: float


def exact(task: Task) -> Found:
    """Solve with exact class gradients; one backward pass per class."""
    engine, passes = task.engine, task.passes
    losses, counts, classes, gram = task.numbers(engine.exact(passes, len(task.chosen)))
    present = np.flatnonzero(counts > 0)
    gram = gram[np.ix_(present, present)]
    solution = task.solve(gram, losses[present], classes[present])
    ordinary = engine.gradient(passes, _ordinary, task.rest) if task.rest else []
    direction = _mixed(task, _spread(solution, present, len(counts)))
    return Found(ordinary, direction, classes[present], solution.weights, gram, solution.gap)


def fast(task: Task) -> Found:
    """Solve with approximate class gradients; the direction is exact for the solver's weights."""
    summing, look = _survey(task, task.rest)
    losses, counts, classes, products = task.numbers(look)
    present = np.flatnonzero(counts > 0)
    gram = _gram_of(present, products)
    solution = task.solve(gram, losses[present], classes[present])
    direction = _mixed(task, _spread(solution, present, len(counts)))
    ordinary = summing.wait()  # under way while the solver and the pass for the direction ran
    return Found(ordinary, direction, classes[present], solution.weights, gram, solution.gap)


def certified(task: Task, tolerance: float, rounds: int) -> Found:
    """Solve with class gradients that are put right where the solver looks."""
    size = len(task.chosen)
    left_out = bool((task.objectives.counts > 0).sum() > size)
    known = task.together and not left_out  # then the ordinary gradient is that of the sum
    part = task.engine.part if known else []
    summing, look = _survey(task, [*task.rest, *part])
    found = summing.wait()
    ordinary, total = found[: len(task.rest)], found[len(task.rest) :]
    _, _, classes, products = task.numbers(look)
    gram = _gram_of(np.arange(size), products)
    result = certify(
        task.engine,
        task.passes,
        gram,
        task.solver,
        preference=task.preference_of(classes),
        average=each(lambda gs: torch._foreach_div(gs, size), total) if known else None,
        tolerance=tolerance,
        rounds=rounds,
    )
    direction = result.direction
    if left_out or task.shared:
        direction = added(direction, _mixed(task, np.zeros(size)))
    return Found(ordinary, direction, classes, result.weights, gram, result.gaps[-1])


def _survey(task: Task, parameters: list[nn.Parameter]) -> tuple[dist.GradientSum, Tensor]:
    """Return an ordinary gradient, and inner products of the objectives' gradients."""
    return task.engine.survey(task.passes, len(task.chosen), parameters, together=task.together)


def _gram_of(present: Index, products: Vector) -> Vector:
    """Return inner products of the objectives that are present, from those of ``survey``."""
    of_none, of_sum = len(products) - 2, len(products) - 1
    used = np.concatenate([present, [of_none, of_sum]])
    return with_exact_sum(products[np.ix_(used, used)])[:-1, :-1]


def _spread(solution: Solution, present: Index, size: int) -> Vector:
    """Return the coefficients of all chosen classes [K]; absent ones have none."""
    coefficients = np.zeros(size)
    coefficients[present] = solution.coefficients
    return coefficients


def _mixed(task: Task, coefficients: Vector) -> Gradient:
    """Return the exact mixture of objectives, plus what belongs to none."""
    v = torch.as_tensor(coefficients, device=task.chosen.device)
    return task.engine.gradient(task.passes, lambda one: one.mixture(v))


def _ordinary(one: Pass) -> Tensor:
    return one.rest


def repeatable(forward: Callable[[], Loss], module: nn.Module) -> Callable[[], Loss]:
    """Return a forward pass that draws the same random numbers each time it is called.

    Running statistics follow the first call alone.

    Args:
        forward: the pass.
        module: what it runs.
    """
    start: list[Tensor] = []
    device = next(module.parameters()).device
    devices = [device] if device.type == "cuda" else []

    def run() -> Loss:
        if not start:
            start.append(torch.get_rng_state())
            start.extend(torch.cuda.get_rng_state(d) for d in devices)
            return forward()
        with torch.random.fork_rng(devices=devices), frozen_statistics(module):
            torch.set_rng_state(start[0])
            for d, state in zip(devices, start[1:], strict=True):
                torch.cuda.set_rng_state(state, d)
            return forward()

    return run
