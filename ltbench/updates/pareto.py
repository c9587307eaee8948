"""Multi-objective direction of one step, from its losses by a solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ltbench.class_gradients.certified import certify
from ltbench.class_gradients.engine import Engine, Loss, Pass
from ltbench.class_gradients.gram import with_exact_sum
from ltbench.distributed import ranks
from ltbench.distributed.copies import to_device
from ltbench.gradients import Gradient, added, each
from ltbench.models.batchnorm import frozen_statistics
from ltbench.moo.base import Solution, Solver, Vector
from ltbench.updates.objectives import ClassObjectives

Index = NDArray[np.intp]


@dataclass
class Task:
    """Multi-objective problem of one step.

    Args:
        engine: computes class gradients.
        passes: the micro-batches of this rank.
        objectives: statistics of the classes over all ranks.
        chosen: classes that may be objectives [K]; those absent from the batch are not.
        rest: trained parameters outside the part.
        solver: multi-objective solver.
        preference: importance of each class [C], or ``None`` for equal.
        shared: whether the loss has a term that belongs to no row.
    """

    engine: Engine
    passes: list[Pass]
    objectives: ClassObjectives
    chosen: Tensor
    rest: list[nn.Parameter]
    solver: Solver
    preference: Tensor | None
    shared: bool

    @property
    def additive(self) -> bool:
        """True if the objectives and the rows of no objective add up to the ordinary loss."""
        return self.objectives.additive and not self.shared

    @property
    def left_out(self) -> bool:
        """True if a class of the batch is no objective."""
        here = self.objectives.counts > 0
        return len(self.chosen) < len(here) and bool(here.sum() > here[self.chosen].sum())

    def solve(self, gram: Vector, losses: Vector, classes: Vector, seed: int) -> Solution:
        """Solve for the objectives of some classes; ``seed`` is for solvers with a random order."""
        preference = self.preference_of(classes)
        return self.solver.solve(gram, losses=losses, preference=preference, seed=seed)

    def preference_of(self, classes: Vector) -> Vector | None:
        """Return the importance of some classes."""
        if self.preference is None:
            return None
        return np.asarray(self.preference.double().numpy()[classes.astype(np.int64)])

    def numbers(self, *more: Tensor) -> Numbers:
        """Return mean loss, count and index of the chosen classes, and ``more``."""
        own = [self.objectives.means, self.objectives.counts]
        if len(self.chosen) < len(own[0]):
            own = [t[self.chosen] for t in own]
        return Numbers.of(*own, self.chosen, *more)

    def release(self) -> None:
        """Release the recorded passes, with their graphs."""
        self.engine.release()
        self.passes.clear()


@dataclass
class Numbers:
    """Tensors that the host reads in one transfer.

    Args:
        flat: all of them, in float64.
        shapes: shape of each.
    """

    flat: Tensor
    shapes: list[torch.Size]

    @classmethod
    def of(cls, *tensors: Tensor) -> Numbers:
        """Pack tensors."""
        flat = torch.cat([t.double().reshape(-1) for t in tensors])
        return cls(flat, [t.shape for t in tensors])

    def read(self) -> tuple[Vector, ...]:
        """Copy the tensors to the host, which waits for them."""
        parts = np.split(self.flat.cpu().numpy(), np.cumsum([s.numel() for s in self.shapes])[:-1])
        return tuple(p.reshape(s) for p, s in zip(parts, self.shapes, strict=True))


@dataclass
class Solved:
    """Objectives of a step and what the solver found.

    Args:
        classes: classes that are objectives [K].
        weights: point of the simplex that the solver found [K].
        gram: inner products of the objectives [K, K].
        gap: duality gap of the solver's weights, see `Solution` and `certify`.
    """

    classes: Vector
    weights: Vector
    gram: Vector
    gap: float | Tensor


@dataclass
class Direction:
    """Gradients for the optimizer.

    Args:
        ordinary: gradient of the loss with respect to the parameters outside the part.
        direction: the solver's direction in the part.
    """

    ordinary: Gradient
    direction: Gradient


@dataclass
class Measured:
    """Approximate class gradients of a step, on the device.

    Args:
        task: the problem that they belong to.
        summing: ordinary gradient outside the part; its sum over ranks is still pending.
        numbers: those of the chosen classes, and the products of ``Engine.fast``.
    """

    task: Task
    summing: ranks.GradientSum
    numbers: Numbers


def exact(task: Task, seed: int) -> tuple[Direction, Solved]:
    """Solve with exact class gradients; one backward pass per class."""
    engine, passes = task.engine, task.passes
    losses, counts, classes = task.numbers().read()
    present = np.flatnonzero(counts > 0)
    products = engine.exact(passes, len(counts), present.tolist()).cpu().numpy()
    gram = products[np.ix_(present, present)]
    solution = task.solve(gram, losses[present], classes[present], seed)
    ordinary = engine.gradient(passes, _ordinary, task.rest) if task.rest else []
    direction = _mixture(task, _coefficients(task, solution, present, len(counts)))
    found = Solved(classes[present], solution.weights, gram, solution.gap)
    return Direction(ordinary, direction), found


def measured(task: Task) -> Measured:
    """Return approximate class gradients; the first of three steps, on the device.

    ``solved`` and ``mixed`` follow. The direction is exact for the solver's weights.
    """
    summing, table = _approximate(task, task.rest)
    return Measured(task, summing, task.numbers(table))


def solved(found: Measured, seed: int) -> tuple[Tensor, Solved]:
    """Solve on the host, and return the coefficients of the chosen classes [K] on the device."""
    task = found.task
    losses, counts, classes, products = found.numbers.read()
    present = np.flatnonzero(counts > 0)
    gram = _gram_of(present, products)
    solution = task.solve(gram, losses[present], classes[present], seed)
    coefficients = _coefficients(task, solution, present, len(counts))
    return coefficients, Solved(classes[present], solution.weights, gram, solution.gap)


def mixed(found: Measured, coefficients: Tensor) -> Direction:
    """Return the gradients for the optimizer, on the device."""
    direction = _mixture(found.task, coefficients)
    ordinary = found.summing.wait()  # overlapped with the solver and the pass for the direction
    return Direction(ordinary, direction)


def certified(task: Task, tolerance: float, rounds: int) -> tuple[Direction, Solved]:
    """Solve with approximate class gradients, corrected at the solver's iterates."""
    left_out = task.left_out
    known = task.additive and not left_out  # then the ordinary gradient is that of the sum
    part = task.engine.part if known else []
    summing, table = _approximate(task, [*task.rest, *part])
    found = summing.wait()
    ordinary, total = found[: len(task.rest)], found[len(task.rest) :]
    _, counts, classes, products = task.numbers(table).read()
    present = np.flatnonzero(counts > 0)
    gram, classes = _gram_of(present, products), classes[present]
    result = certify(
        task.engine,
        task.passes,
        gram,
        task.solver,
        preference=task.preference_of(classes),
        average=each(lambda gs: torch._foreach_div(gs, len(present)), total) if known else None,
        tolerance=tolerance,
        rounds=rounds,
        places=present,
        size=len(counts),
    )
    direction = result.direction
    if left_out or task.shared:
        direction = added(direction, _mixture(task, _on_device(task, np.zeros(len(counts)))))
    return Direction(ordinary, direction), Solved(classes, result.weights, gram, result.gap)


def _approximate(task: Task, parameters: list[nn.Parameter]) -> tuple[ranks.GradientSum, Tensor]:
    """Return an ordinary gradient and approximate inner products of the class gradients."""
    return task.engine.fast(task.passes, len(task.chosen), parameters, additive=task.additive)


def _gram_of(present: Index, products: Vector) -> Vector:
    """Return inner products of the objectives that are present, from those of ``fast``."""
    of_none, of_sum = len(products) - 2, len(products) - 1
    used = np.concatenate([present, [of_none, of_sum]])
    return with_exact_sum(products[np.ix_(used, used)])[:-1, :-1]


def _coefficients(task: Task, solution: Solution, present: Index, size: int) -> Tensor:
    """Return the coefficients of all chosen classes [K], 0 for absent ones."""
    coefficients = np.zeros(size)
    coefficients[present] = solution.coefficients
    return _on_device(task, coefficients)


def _on_device(task: Task, coefficients: Vector) -> Tensor:
    """Return those of rank 0: each rank solves, and processors round differently."""
    return ranks.from_main_(to_device(torch.tensor(coefficients), task.chosen.device))


def _mixture(task: Task, coefficients: Tensor) -> Gradient:
    """Return the exact gradient of a mixture of objectives plus the rows of no objective."""
    return task.engine.gradient(task.passes, lambda one: one.mixture(coefficients))


def _ordinary(one: Pass) -> Tensor:
    return one.rest


def repeatable(forward: Callable[[], Loss], module: nn.Module) -> Callable[[], Loss]:
    """Return a forward pass that draws the same random numbers in every call.

    Only the first call updates running statistics.

    Args:
        forward: runs the pass.
        module: the network that it runs.
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
