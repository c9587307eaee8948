"""The exact multi-objective direction from approximate class gradients, with a certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltbench.class_gradients.engine import ClassGradients, Engine, Pass
from ltbench.errors import UserError
from ltbench.moo._gram import check_preference, factor
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
            to the mean squared length of the gradients for MGDA. The direction is that of the
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
    forward-mode pass, the exact inner product of every class gradient with the gradient of the
    solver's objective at w. These give the true duality gap, and replace the part of all
    approximate class gradients along that direction. Then the solver runs again. What a round
    costs does not depend on K.

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
    corrected = _Corrected(gradients)
    gaps: list[float] = []
    while True:
        solution = solver.solve(corrected.gram.cpu().numpy(), preference=preference)
        w = torch.as_tensor(solution.weights, device=corrected.gram.device)
        g_w = engine.mixture(passes, w)
        if len(gaps) == rounds:
            break
        steepest = problem.steepest(g_w)
        slopes = engine.slopes(passes, len(w), steepest)
        gaps.append(max(float(w @ slopes - slopes.min()), 0.0) / problem.unit(corrected.gram))
        if not gaps[-1] > tolerance:
            break
        corrected.replace(steepest, slopes)
    return Certified(problem.direction(g_w), solution.weights, tuple(gaps))


class _Corrected:
    """Approximate class gradients whose parts along some directions are exact."""

    def __init__(self, gradients: ClassGradients) -> None:
        self.gradients, self.gram = gradients, gradients.gram.clone()
        self._seen: list[tuple[Direction, Tensor]] = []  # orthonormal, exact products [K]

    def replace(self, direction: Direction, slopes: Tensor) -> None:
        """Make inner products along one more direction exact.

        Args:
            direction: any.
            slopes: exact inner product of each gradient with it [K].
        """
        rest = direction
        for other, exact in self._seen:
            share = dot(other, rest)
            rest, slopes = add(rest, other, -share), slopes - share * exact
        length = dot(rest, rest) ** 0.5
        if length <= 1e-6 * dot(direction, direction) ** 0.5:
            return
        unit, slopes = scale(rest, 1 / length), slopes / length
        approximate = self.gradients.products(unit)
        error = slopes - approximate
        cross = torch.outer(approximate, error)
        self.gram += cross + cross.T + torch.outer(error, error)
        self._seen.append((unit, slopes))


@dataclass
class _CAGradProblem:
    """F(w) = g_w . g_b + c |g_0| |g_w|."""

    c: float
    average: Direction  # g_0
    preferred: Direction  # g_b
    rescale: float

    def steepest(self, g_w: Direction) -> Direction:
        return add(self.preferred, g_w, self._reach(g_w))

    def direction(self, g_w: Direction) -> Direction:
        return scale(add(self.average, g_w, self._reach(g_w)), self.rescale)

    def unit(self, gram: Tensor) -> float:
        return max(self.c**2 * dot(self.average, self.average), torch.finfo(torch.float64).tiny)

    def _reach(self, g_w: Direction) -> float:
        length = dot(g_w, g_w) ** 0.5
        return self.c * dot(self.average, self.average) ** 0.5 / length if length > 0 else 0.0


@dataclass
class _MGDAProblem:
    """F(w) = |g_w|^2, half of whose gradient is g_k . g_w."""

    rescale: float

    def steepest(self, g_w: Direction) -> Direction:
        return g_w

    def direction(self, g_w: Direction) -> Direction:
        return scale(g_w, self.rescale)

    def unit(self, gram: Tensor) -> float:
        return max(float(gram.diagonal().mean()) / 2, torch.finfo(torch.float64).tiny)


def _problem_of(
    solver: Solver, engine: Engine, passes: Sequence[Pass], size: int, preference: Vector | None
) -> _CAGradProblem | _MGDAProblem:
    if isinstance(solver, CAGrad) and solver.config.c > 0:
        device = engine.part[0].device
        average = engine.mixture(passes, torch.full((size,), 1 / size, device=device))
        preferred = average
        if preference is not None:
            b = check_preference(preference, size)
            if not np.allclose(b, 1 / size):
                preferred = engine.mixture(passes, torch.as_tensor(b, device=device))
        c = solver.config.c
        return _CAGradProblem(c, average, preferred, factor(solver.config.rescale, size, c))
    if isinstance(solver, MGDA) and solver.config.normalization == "none":
        return _MGDAProblem(factor(solver.config.rescale, size))
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
