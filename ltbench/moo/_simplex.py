"""Convex minimisation over the simplex, for MGDA and CAGrad."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltbench.moo._gram import EPS
from ltbench.moo.base import Vector

Index = NDArray[np.intp]


def minimise(
    gram: Vector, linear: Vector | None = None, slope: float = 0.0
) -> tuple[Vector, Vector]:
    """Minimise ``w^T G w``, or ``w^T l + s sqrt(w^T G w)`` where ``l`` is given, over the simplex.

    The problem is rewritten for gradients of unit length (``z_k = |g_k| w_k``), which makes it
    insensitive to differences in their lengths. Block principal pivoting solves the optimality
    conditions in a few Cholesky factorisations; if it cycles, a primal active-set method like
    Wolfe's minimum-norm point, whose value never increases, takes over.

    Reference: Wolfe, Finding the nearest point in a polytope, Mathematical Programming 1976;
        Júdice and Pires, A block principal pivoting algorithm for large-scale strictly monotone
        linear complementarity problems, Computers & Operations Research 1994.
    Departures: both are extended from the squared norm to a linear term plus a norm: the minimiser
        on an affine hull keeps a closed form from one factorisation.

    Args:
        gram: symmetric G [K, K] with positive diagonal; negative eigenvalues are clipped.
        linear: l [K], of the form ``G b``.
        slope: s > 0; used with ``linear`` only.

    Returns:
        w [K] on the simplex, and u [K] such that ``l + G u`` is the subgradient that certifies w:
        ``w^T l + s |g_w| - min_k (l + G u)_k`` bounds the error (with l = 0 and u = w in the first
        problem).
    """
    try:
        return _solve(gram, linear, slope)
    except _IndefiniteError:
        values, vectors = np.linalg.eigh(gram)
        clipped = (vectors * values.clip(0)) @ vectors.T
        floor = EPS * clipped.diagonal().max()
        return _solve(clipped + floor * np.eye(len(gram)), linear, slope)


def _solve(gram: Vector, linear: Vector | None, slope: float) -> tuple[Vector, Vector]:
    length = np.sqrt(gram.diagonal())
    unit = (gram / length) / length[:, None]
    cost = None if linear is None else linear / length
    problem = _Problem(unit, cost, 1 / length, slope)
    z, u, settled = _pivot(problem)
    if not settled:
        z, u, settled = _descend(problem, z)
    if not settled and linear is not None:
        z, u = _leave_kink(problem, z, u)
    w = z.clip(0) / length
    return w / w.sum(), u / length


class _IndefiniteError(Exception):
    pass


@dataclass
class _Point:
    """Minimiser over the affine hull of a support, or a direction in which F is unbounded below."""

    z: Vector  # [|S|]
    u: Vector  # [|S|]
    level: float  # common value of (l + G u)_k / a_k on the support
    bounded: bool = True


@dataclass
class _Problem:
    """min l^T z + s sqrt(z^T G z) (or z^T G z) subject to a^T z = 1, z >= 0; unit diagonal in G."""

    gram: Vector
    linear: Vector | None
    a: Vector
    slope: float

    def value(self, z: Vector) -> float:
        square = max(float(z @ self.gram @ z), 0.0)
        if self.linear is None:
            return square
        return float(self.linear @ z) + self.slope * float(np.sqrt(square))

    def affine(self, support: Index) -> _Point:
        """Minimise over the affine hull: z = z0 + (r/s) p, with z0 its minimum-norm point."""
        gram, norm = self.gram[np.ix_(support, support)], np.linalg.norm(self.a[support])
        q = self.a[support] / norm
        rhs = np.stack([q] if self.linear is None else [q, self.linear[support]], axis=1)
        inverse = _cholesky_solve(gram + np.outer(q, q), rhs)
        along = float(q @ inverse[:, 0])
        z0 = inverse[:, 0] / (along * norm)
        square = float(z0 @ gram @ z0)  # |g_z0|^2
        if self.linear is None:
            return _Point(z0, z0, square)
        p = (float(q @ inverse[:, 1]) / along) * inverse[:, 0] - inverse[:, 1]  # q^T p = 0
        fall = -float(self.linear[support] @ p)  # |g_p|^2
        room = 1 - fall / self.slope**2
        if room <= 4 * EPS:
            return _Point(p, p * (self.slope / np.sqrt(fall)), np.nan, bounded=False)
        if square <= 8 * EPS * float(np.abs(z0).sum()) ** 2:  # the hull contains the origin: a kink
            return _Point(z0, p, self._level(support, gram, p))
        ratio = np.sqrt(square / room) / self.slope  # r / s
        z = z0 + ratio * p
        u = z0 / ratio + p
        return _Point(z, u, self._level(support, gram, u))

    def _level(self, support: Index, gram: Vector, u: Vector) -> float:
        if self.linear is None:
            raise ValueError("a level needs a linear term")
        a = self.a[support]
        return float(a @ (self.linear[support] + gram @ u) / (a @ a))

    def violation(self, support: Index, point: _Point) -> tuple[Vector, float]:
        """Return ``l + G u - level a`` [K] and its rounding error."""
        steep = self.gram[:, support] @ point.u
        spread = float(np.abs(point.u).sum())
        if self.linear is None:
            size = float(np.sqrt(max(point.level, 0.0)))
        else:
            steep = steep + self.linear
            size = float(np.abs(self.linear).max()) + self.slope
        return steep - point.level * self.a, 1e-13 * size + 4 * EPS * spread


def _cholesky_solve(matrix: Vector, rhs: Vector) -> Vector:
    """Solve a positive semidefinite system, with a small ridge where it is singular."""
    from scipy.linalg.lapack import dposv, dpotrs

    ridge = 1e-12  # large enough to share weight evenly among equal gradients
    while True:
        lifted = matrix + ridge * np.eye(len(matrix))
        root, x, info = dposv(lifted, rhs, lower=1)
        if info == 0:
            correction, _ = dpotrs(root, rhs - matrix @ x, lower=1)  # undoes the ridge
            return np.asarray(x + correction)
        if ridge > 1e-9:
            raise _IndefiniteError
        ridge *= 100


def _pivot(problem: _Problem) -> tuple[Vector, Vector, bool]:
    """Block principal pivoting: flip all violated indices; stop when violations stop decreasing."""
    size = len(problem.a)
    inside = np.ones(size, dtype=bool)
    fewest, patience = size + 1, 6
    best, least = np.zeros(size), np.inf
    while patience:
        support = np.flatnonzero(inside)
        point = problem.affine(support)
        z, u = _spread(point.z, support, size), _spread(point.u, support, size)
        wrong = np.zeros(size, dtype=bool)
        wrong[support] = point.z < -4 * EPS * np.abs(point.z).max()
        if point.bounded:
            violation, noise = problem.violation(support, point)
            wrong |= ~inside & (violation < -noise)
            if not wrong.any():
                return z.clip(0), u, True
        clipped = z.clip(0)
        clipped /= problem.a @ clipped
        value = problem.value(clipped)
        if value < least:
            best, least = clipped, value
        count = int(wrong.sum())
        if count < fewest:
            fewest, patience = count, 6
        else:
            patience -= 1
        inside ^= wrong
        if not inside.any():
            break
    return best, best, False


def _descend(problem: _Problem, z: Vector) -> tuple[Vector, Vector, bool]:
    """Primal active set: add the worst index, move to the affine minimiser, drop zero entries."""
    size = len(z)
    inside = z > 0
    least, idle = np.inf, 0
    u = z
    while idle <= size + 10:
        while True:
            support = np.flatnonzero(inside)
            point = problem.affine(support)
            target = point.z if point.bounded else z[support] + point.z
            move = target - z[support]
            ahead = target if point.bounded else point.z
            falling = ahead < -4 * EPS * np.abs(ahead).max()
            if not falling.any():
                z = _spread(target.clip(0), support, size)
                break
            reach = np.where(falling, z[support] / np.where(falling, -move, 1), np.inf)
            step = float(reach.min())
            z = _spread((z[support] + step * move).clip(0), support, size)
            dropped = support[reach <= step * (1 + 4 * EPS)]
            z[dropped] = 0
            inside[dropped] = False
        u = _spread(point.u, support, size)
        violation, noise = problem.violation(support, point)
        violation[inside] = 0
        worst = int(violation.argmin())
        if violation[worst] >= -noise:
            return z, u, True
        inside[worst] = True
        value = problem.value(z)
        idle = 0 if value < least else idle + 1
        least = min(least, value)
    return z, u, False


def _leave_kink(problem: _Problem, z: Vector, u: Vector) -> tuple[Vector, Vector]:
    """Move from a kink of F (g_z = 0) to a better point, or certify that there is none.

    Minimise ``l^T v + |g_v|^2 / 2`` over v >= 0. There ``F(v) = |g_v| (s - |g_v|)``: either
    ``|g_v| <= s`` and v certifies that F cannot be negative, or v is a point with F(v) < 0.
    """
    from scipy.optimize import nnls

    if problem.linear is None:
        raise ValueError("the squared norm has no kink")
    values, vectors = np.linalg.eigh(problem.gram)
    kept = values > len(values) * EPS * values[-1]
    root = np.sqrt(values[kept])
    try:
        v, _ = nnls((vectors[:, kept] * root).T, -(vectors[:, kept].T @ problem.linear) / root)
    except RuntimeError:  # its own iteration limit
        return z, u
    length = float(np.sqrt(max(v @ problem.gram @ v, 0.0)))
    if length <= problem.slope:
        return z, v
    best = v / (problem.a @ v)
    if problem.value(best) >= problem.value(z):
        return z, u
    z, u, _ = _descend(problem, best)
    return z, u


def _spread(values: Vector, support: Index, size: int) -> Vector:
    full = np.zeros(size)
    full[support] = values
    return full
