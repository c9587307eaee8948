"""The exact multi-objective direction from approximate class gradients, with a certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltbench.class_gradients.engine import ClassGradients, Engine, Pass
from ltbench.errors import UserError
from ltbench.moo._gram import check_preference, factor, length
from ltbench.moo._simplex import minimise
from ltbench.moo.base import Solver, Vector
from ltbench.moo.cagrad import CAGrad
from ltbench.moo.mgda import MGDA

Direction = list[Tensor]  # one tensor per parameter of the part


@dataclass(frozen=True)
class Certified:
    """A direction, and how far from optimal its weights can be.

    Args:
        direction: the solver's direction, exact for its weights.
        weights: point of the simplex [K].
        gaps: true duality gap after 0, 1, ... corrections, relative to c^2 |g_0|^2 for CAGrad and
            to the length of the average gradient for MGDA. The direction is that of the
            last gap, or, if that was above the tolerance, of one more correction.
    """

    direction: Direction
    weights: Vector
    gaps: tuple[float, ...]


def certify(
    engine: Engine,
    passes: Sequence[Pass],
    gradients: ClassGradients,
    solver: Solver,
    *,
    preference: Vector | None = None,
    tolerance: float = 1e-3,
    rounds: int = 1,
) -> Certified:
    """Solve with class gradients that are right wherever the solver looks.

    A round takes the solver's weights w, computes g_w by one backward pass and, by one
    forward-mode pass, the exact slope of the solver's objective in every weight. These give the
    true duality gap. A linear term makes the slopes of the approximate objective equal to them,
    and it is solved again. What a round costs does not depend on K.

    Args:
        engine: what measured the gradients.
        passes: those it measured.
        gradients: approximate class gradients, with their sum exact or not.
        solver: CAGrad, or MGDA without normalisation.
        preference: importance of each objective [K] for CAGrad; ``None`` is equal.
        tolerance: gap at which no further correction is made.
        rounds: corrections at most.

    Raises:
        UserError: the solver has no certificate of this kind.
    """
    problem = _problem_of(solver, engine, passes, len(gradients.gram), preference)
    gram = gradients.gram.cpu().numpy()
    weights = solver.solve(gram, preference=preference).weights
    gaps: list[float] = []
    while True:
        w = torch.as_tensor(weights, device=gradients.gram.device)
        g_w = engine.mixture(passes, w)
        if len(gaps) == rounds:
            break
        slopes = engine.slopes(passes, len(w), problem.steepest(g_w)).cpu().numpy()
        gaps.append(max(float(weights @ slopes - slopes.min()), 0.0) / problem.unit)
        if not gaps[-1] > tolerance:
            break
        weights = _corrected(gram, weights, slopes, problem.reach)
    return Certified(problem.direction(g_w), weights, tuple(gaps))


def _corrected(gram: Vector, weights: Vector, slopes: Vector, reach: float) -> Vector:
    """Minimise ``w . l + reach sqrt(w^T G w)`` with l such that its slopes at `weights` are exact.

    The curvature is that of the approximate gradients; where it has a minimum at `weights`, so
    has the exact problem.
    """
    unit = float(gram.diagonal().mean())
    matrix, size = gram / unit, reach / unit**0.5
    linear = slopes / unit - size * (matrix @ weights) / length(matrix, weights)
    return minimise(matrix, linear, size)[0]


@dataclass
class _Problem:
    """Minimise ``F(w) = g_w . g_b + reach |g_w|`` over the simplex.

    Args:
        reach: c |g_0| for CAGrad, 1 for MGDA.
        preferred: g_b for CAGrad, nothing for MGDA.
        average: g_0 for CAGrad, nothing for MGDA.
        unit: what gaps are relative to.
        rescale: what the direction is multiplied by.
    """

    reach: float
    preferred: Direction | None
    average: Direction | None
    unit: float
    rescale: float

    def steepest(self, g_w: Direction) -> Direction:
        """Return d with ``dF / dw_k = g_k . d``."""
        size = dot(g_w, g_w) ** 0.5
        own = scale(g_w, self.reach / size if size > 0 else 0.0)
        return own if self.preferred is None else add(self.preferred, own, 1.0)

    def direction(self, g_w: Direction) -> Direction:
        """Return the solver's direction."""
        if self.average is None:
            return scale(g_w, self.rescale)
        size = dot(g_w, g_w) ** 0.5
        share = self.reach / size if size > 0 else 0.0
        return scale(add(self.average, g_w, share), self.rescale)


def _problem_of(
    solver: Solver, engine: Engine, passes: Sequence[Pass], size: int, preference: Vector | None
) -> _Problem:
    device = engine.part[0].device
    tiny = torch.finfo(torch.float64).tiny
    if isinstance(solver, CAGrad) and solver.config.c > 0:
        average = engine.mixture(passes, torch.full((size,), 1 / size, device=device))
        preferred = average
        if preference is not None:
            b = check_preference(preference, size)
            if not np.allclose(b, 1 / size):
                preferred = engine.mixture(passes, torch.as_tensor(b, device=device))
        c = solver.config.c
        reach, rescale = c * dot(average, average) ** 0.5, factor(solver.config.rescale, size, c)
        return _Problem(reach, preferred, average, max(reach**2, tiny), rescale)
    if isinstance(solver, MGDA) and solver.config.normalization == "none":
        mean = engine.mixture(passes, torch.full((size,), 1 / size, device=device))
        unit = max(dot(mean, mean) ** 0.5, tiny)
        return _Problem(1.0, None, None, unit, factor(solver.config.rescale, size))
    raise UserError(
        "certified class gradients need the solver cagrad with c > 0 or mgda without "
        f"normalisation, found {type(solver).__name__}; choose one, or `class_gradients: fast`"
    )


def dot(a: Direction, b: Direction) -> float:
    """Return the inner product of two directions, summed over parameters in float64."""
    inner = [torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]
    return float(torch.stack(inner).double().sum())


def add(a: Direction, b: Direction, factor: float) -> Direction:
    """Return ``a + factor * b``."""
    return list(torch._foreach_add(a, b, alpha=factor))


def scale(a: Direction, factor: float) -> Direction:
    """Return ``factor * a``."""
    return list(torch._foreach_mul(a, factor))
