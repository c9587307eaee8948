"""Certified multi-objective direction from approximate class gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltbench.class_gradients.engine import Engine, Pass
from ltbench.class_gradients.gram import with_products
from ltbench.distributed import ranks
from ltbench.distributed.copies import to_device
from ltbench.gradients import Gradient, added, each
from ltbench.moo._gram import check_preference, factor, length
from ltbench.moo._simplex import minimise
from ltbench.moo.base import Solver, Vector
from ltbench.moo.cagrad import CAGrad
from ltbench.moo.certifiable import check_certifiable
from ltbench.moo.mgda import MGDA

Direction = Gradient  # one entry per parameter of the part


@dataclass(frozen=True)
class Certified:
    """Direction with a bound on the suboptimality of its weights.

    Gaps are relative to ``c^2 |g_0|^2`` for CAGrad and to ``|g_0|`` for MGDA.

    Args:
        direction: the solver's direction, exact for its weights.
        weights: point of the simplex [K].
        measured: true duality gap after 0, 1, ... rounds.
        gap: that of ``direction``, a scalar of the device.
    """

    direction: Direction
    weights: Vector
    measured: tuple[float, ...]
    gap: Tensor

    @property
    def gaps(self) -> tuple[float, ...]:
        """True duality gap after 0, 1, ... rounds, the last one that of ``direction``."""
        return (*self.measured, float(self.gap))


def certify(
    engine: Engine,
    passes: Sequence[Pass],
    gram: Vector,
    solver: Solver,
    *,
    preference: Vector | None = None,
    average: Direction | None = None,
    tolerance: float = 1e-3,
    rounds: int = 1,
    places: NDArray[np.intp] | None = None,
    size: int | None = None,
) -> Certified:
    """Solve with an approximate Gram matrix, corrected at the solver's iterates.

    A round takes the solver's weights w, computes g_w by one backward pass and, by one
    forward-mode pass, ``g_k . d`` for all classes, with d the direction of w. These are the exact
    slopes of the solver's objective and give the true duality gap; they are also an exact product
    with the Gram matrix, which is corrected to reproduce it. Then the problem is solved again. The
    cost of a round does not depend on K. A round reads one block of numbers from the device.

    Ranks round differently on different processors. So the weights of each mixture, and what is
    computed from its gradient, are those of rank 0: the ranks do the same rounds, and their
    directions are equal bit for bit.

    Args:
        engine: computes class gradients.
        passes: the micro-batches of this rank.
        gram: approximate inner products of the class gradients [K, K].
        solver: CAGrad, or MGDA without normalisation.
        preference: importance of each objective [K] for CAGrad; ``None`` is equal.
        average: exact average of the class gradients, if known.
        tolerance: gap at which to stop.
        rounds: maximum number of rounds.
        places: objective of the passes behind each row of ``gram`` [K]; by default all.
        size: number of objectives of the passes; K by default.

    Raises:
        UserError: the solver cannot be certified.
    """
    check_certifiable(type(solver).__name__.lower(), solver.config)
    number, device = len(gram), engine.part[0].device
    places = np.arange(number) if places is None else places
    size = number if size is None else size

    def mixture(v: Vector) -> Direction:
        spread = np.zeros(size)
        spread[places] = v
        weights = ranks.from_main_(to_device(torch.as_tensor(spread), device))
        return engine.gradient(passes, lambda one: one.objectives(weights), scalar=False)

    if average is None:
        average = mixture(np.full(number, 1 / number))
    b = check_preference(preference, number)
    preferred = average if np.allclose(b, 1 / number) else mixture(b)
    problem = _Problem.of(solver, number, average, preferred, b, device)
    weights = solver.solve(gram, preference=preference).weights
    at = _Point(problem, mixture(weights))
    bound, gaps = -np.inf, list[float]()
    points, products = list[Vector](), list[Vector]()
    for _ in range(rounds):
        found = engine.slopes(passes, size, at.steepest)
        reach, unit, share, value, *all_slopes = torch.cat([at.numbers, found]).tolist()
        slopes = np.asarray(all_slopes)[places]
        bound = max(bound, float(slopes.min()))
        gaps.append(max(value - bound, 0.0) / unit)
        if not gaps[-1] > tolerance:
            break
        points.append(problem.b + share * weights)
        products.append(slopes)
        corrected = with_products(gram, points, products)
        weights = _corrected(corrected, weights, slopes, reach)
        at = _Point(problem, mixture(weights))
    _, unit_there, _, value_there = at.numbers
    gap = (value_there - bound).clamp(min=0) / unit_there  # the best bound of the previous rounds
    measured = tuple(gaps[:-1] if len(gaps) > len(points) else gaps)
    return Certified(at.direction, weights, measured, gap)


@dataclass
class _Problem:
    """Minimise ``F(w) = g_w . g_b + reach |g_w|`` over the simplex; g_b = 0 for MGDA.

    Scalars are float64 tensors of the device.

    Args:
        reach: c |g_0| for CAGrad, 1 for MGDA.
        preferred: g_b for CAGrad, ``None`` for MGDA.
        b: its weights [K].
        average: g_0 for CAGrad, ``None`` for MGDA.
        unit: scale of the gap.
        rescale: factor of the direction.
        device: of the gradients.
    """

    reach: Tensor
    preferred: Direction | None
    b: Vector
    average: Direction | None
    unit: Tensor
    rescale: float
    device: torch.device

    @classmethod
    def of(
        cls,
        solver: Solver,
        size: int,
        average: Direction,
        preferred: Direction,
        b: Vector,
        device: torch.device,
    ) -> _Problem:
        """Return the problem of a solver."""
        norm, tiny = dot(average, average).sqrt(), float(np.finfo(np.float64).tiny)
        if isinstance(solver, CAGrad):
            c = solver.config.c
            scale = factor(solver.config.rescale, size, c)
            unit = ((c * norm) ** 2).clamp(min=tiny)
            return cls(c * norm, preferred, b, average, unit, scale, device)
        assert isinstance(solver, MGDA)
        scale = factor(solver.config.rescale, size)
        unit = norm.clamp(min=tiny)
        return cls(torch.ones_like(norm), None, 0 * b, None, unit, scale, device)


@dataclass
class _Point:
    """A mixture of class gradients, and what the problem says of it."""

    problem: _Problem
    g_w: Direction

    @cached_property
    def numbers(self) -> Tensor:
        """Reach and unit of the problem, share and value of the mixture, as on rank 0 [4].

        The share is ``reach / |g_w|``, 0 for a zero gradient; the value is F.
        """
        problem, norm = self.problem, dot(self.g_w, self.g_w).sqrt()
        share = torch.where(norm > 0, problem.reach / norm, 0.0)
        value = problem.reach * norm
        if problem.preferred is not None:
            value = value + dot(self.g_w, problem.preferred)
        found = torch.stack([problem.reach, problem.unit, share, value])
        return ranks.from_main_(found.to(problem.device))

    @property
    def steepest(self) -> Direction:
        """Direction d with ``dF / dw_k = g_k . d``."""
        preferred = self.problem.preferred
        return self._own if preferred is None else added(preferred, self._own)

    @property
    def direction(self) -> Direction:
        """The solver's direction."""
        average = self.problem.average
        found = self.g_w if average is None else added(average, self._own)
        return each(lambda gs: torch._foreach_mul(gs, self.problem.rescale), found)

    @cached_property
    def _own(self) -> Direction:
        share = self.numbers[2]
        return each(lambda gs: torch._foreach_mul(gs, share.to(gs[0].dtype)), self.g_w)


def _corrected(gram: Vector, weights: Vector, slopes: Vector, reach: float) -> Vector:
    """Return the minimiser for a Gram matrix, with F's true slopes at ``weights``.

    A linear term enforces them, so the true minimum is a fixed point.
    """
    unit = max(float(gram.diagonal().mean()), float(np.finfo(np.float64).tiny))
    matrix, scaled = gram / unit, reach / unit**0.5
    norm = max(length(matrix, weights), float(np.finfo(np.float64).tiny))
    return minimise(matrix, slopes / unit - scaled * (matrix @ weights) / norm, scaled)[0]


def dot(a: Direction, b: Direction) -> Tensor:
    """Return the inner product of two directions, a scalar in float64."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if not pairs:
        return torch.zeros((), dtype=torch.float64)
    if pairs[0][0].device.type == "cpu":
        return torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in pairs]).double().sum()
    # On a GPU, three kernels instead of one or more for each parameter.
    ordered = [(in_order(x, x), in_order(y, x)) for x, y in pairs]
    first, second = (torch.cat(parts) for parts in zip(*ordered, strict=True))
    return (first * second).sum(dtype=torch.float64)


def in_order(x: Tensor, like: Tensor) -> Tensor:
    """Return the entries of a tensor in the order that another one of its shape has in memory."""
    order = sorted(range(x.dim()), key=like.stride, reverse=True)
    return x.permute(order).reshape(-1)
