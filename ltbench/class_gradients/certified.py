"""Certified multi-objective direction from approximate class gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ltbench.class_gradients.engine import Engine, Pass
from ltbench.class_gradients.gram import with_products
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

    Args:
        direction: the solver's direction, exact for its weights.
        weights: point of the simplex [K].
        gaps: true duality gap after 0, 1, ... rounds, the last one that of ``direction``; relative
            to ``c^2 |g_0|^2`` for CAGrad and to ``|g_0|`` for MGDA.
    """

    direction: Direction
    weights: Vector
    gaps: tuple[float, ...]


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
) -> Certified:
    """Solve with an approximate Gram matrix, corrected at the solver's iterates.

    A round takes the solver's weights w, computes g_w by one backward pass and, by one
    forward-mode pass, ``g_k . d`` for all classes, with d the direction of w. These are the exact
    slopes of the solver's objective and give the true duality gap; they are also an exact product
    with the Gram matrix, which is corrected to reproduce it. Then the problem is solved again. The
    cost of a round does not depend on K.

    Args:
        engine: computes class gradients.
        passes: the micro-batches of this rank.
        gram: approximate inner products of the class gradients [K, K].
        solver: CAGrad, or MGDA without normalisation.
        preference: importance of each objective [K] for CAGrad; ``None`` is equal.
        average: exact average of the class gradients, if known.
        tolerance: gap at which to stop.
        rounds: maximum number of rounds.

    Raises:
        UserError: the solver cannot be certified.
    """
    check_certifiable(type(solver).__name__.lower(), solver.config)
    size, device = len(gram), engine.part[0].device

    def mixture(v: Vector) -> Direction:
        weights = torch.as_tensor(v, device=device)
        return engine.gradient(passes, lambda one: one.objectives(weights), scalar=False)

    if average is None:
        average = mixture(np.full(size, 1 / size))
    b = check_preference(preference, size)
    preferred = average if np.allclose(b, 1 / size) else mixture(b)
    problem = _Problem.of(solver, size, average, preferred, b)
    weights = solver.solve(gram, preference=preference).weights
    g_w = mixture(weights)
    bound, gaps = -np.inf, list[float]()
    points, products = list[Vector](), list[Vector]()
    for _ in range(rounds):
        slopes = engine.slopes(passes, size, problem.steepest(g_w)).cpu().numpy()
        bound = max(bound, float(slopes.min()))
        gaps.append(problem.gap(g_w, bound))
        if not gaps[-1] > tolerance:
            break
        points.append(problem.b + problem.share(g_w) * weights)
        products.append(slopes)
        weights = problem.corrected(with_products(gram, points, products), weights, slopes)
        g_w = mixture(weights)
    else:
        gaps.append(problem.gap(g_w, bound))  # with the best bound of the previous rounds
    return Certified(problem.direction(g_w), weights, tuple(gaps))


@dataclass
class _Problem:
    """Minimise ``F(w) = g_w . g_b + reach |g_w|`` over the simplex; g_b = 0 for MGDA.

    Args:
        reach: c |g_0| for CAGrad, 1 for MGDA.
        preferred: g_b for CAGrad, ``None`` for MGDA.
        b: its weights [K].
        average: g_0 for CAGrad, ``None`` for MGDA.
        unit: scale of the gap.
        rescale: factor of the direction.
    """

    reach: float
    preferred: Direction | None
    b: Vector
    average: Direction | None
    unit: float
    rescale: float

    @classmethod
    def of(
        cls, solver: Solver, size: int, average: Direction, preferred: Direction, b: Vector
    ) -> _Problem:
        """Return the problem of a solver."""
        norm, tiny = _length(average), float(np.finfo(np.float64).tiny)
        if isinstance(solver, CAGrad):
            c = solver.config.c
            scale = factor(solver.config.rescale, size, c)
            unit = max((c * norm) ** 2, tiny)
            return cls(c * norm, preferred, b, average, unit, scale)
        assert isinstance(solver, MGDA)
        scale = factor(solver.config.rescale, size)
        return cls(1.0, None, 0 * b, None, max(norm, tiny), scale)

    def gap(self, g_w: Direction, bound: float) -> float:
        """Return the distance of F from a lower bound, relative to ``unit``."""
        value = self.reach * _length(g_w)
        if self.preferred is not None:
            value += dot(g_w, self.preferred)
        return max(value - bound, 0.0) / self.unit

    def steepest(self, g_w: Direction) -> Direction:
        """Return d with ``dF / dw_k = g_k . d``."""
        own = _scaled(g_w, self.share(g_w))
        return own if self.preferred is None else added(self.preferred, own)

    def direction(self, g_w: Direction) -> Direction:
        """Return the solver's direction."""
        found = g_w
        if self.average is not None:
            found = added(self.average, _scaled(g_w, self.share(g_w)))
        return _scaled(found, self.rescale)

    def corrected(self, gram: Vector, weights: Vector, slopes: Vector) -> Vector:
        """Return the minimiser for a Gram matrix, with F's true slopes at ``weights``.

        A linear term enforces them, so the true minimum is a fixed point.
        """
        unit = max(float(gram.diagonal().mean()), float(np.finfo(np.float64).tiny))
        matrix, reach = gram / unit, self.reach / unit**0.5
        norm = max(length(matrix, weights), float(np.finfo(np.float64).tiny))
        return minimise(matrix, slopes / unit - reach * (matrix @ weights) / norm, reach)[0]

    def share(self, g_w: Direction) -> float:
        """Return ``reach / |g_w|``."""
        norm = _length(g_w)
        return self.reach / norm if norm > 0 else 0.0


def dot(a: Direction, b: Direction) -> float:
    """Return the inner product of two directions, accumulated over parameters in float64."""
    inner = [
        torch.dot(x.flatten(), y.flatten())
        for x, y in zip(a, b, strict=True)
        if x is not None and y is not None
    ]
    return float(torch.stack(inner).double().sum()) if inner else 0.0


def _scaled(a: Direction, factor: float) -> Direction:
    return each(lambda gs: torch._foreach_mul(gs, factor), a)


def _length(a: Direction) -> float:
    return float(dot(a, a) ** 0.5)
