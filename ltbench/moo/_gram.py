"""Checks and scaling of the input of all solvers."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ltbench.errors import UserError
from ltbench.moo.base import Vector

EPS = float(np.finfo(np.float64).eps)
Rescale = Literal["none", "sum"]


def check_gram(gram: ArrayLike) -> Vector:
    """Return the Gram matrix as a symmetric float64 array [K, K].

    Raises:
        UserError: the matrix is not numeric, empty, not square, or has a value that is not finite.
    """
    matrix = as_array("gram", gram)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise UserError(
            f"`gram` must be a square matrix [K, K] with K >= 1, found shape {list(matrix.shape)}; "
            "pass the inner products of the class gradients"
        )
    if not np.isfinite(matrix).all():
        raise UserError(
            "`gram` must be finite, found NaN or infinity; "
            "skip the step when a loss or a gradient is not finite"
        )
    return np.asarray(matrix / 2 + matrix.T / 2)


def as_array(name: str, values: Any) -> Vector:
    """Return numbers as a float64 array; tensors of any type, device and graph are taken.

    Raises:
        UserError: they are no numbers.
    """
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu().double().numpy()
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        first = str(error).partition("\n")[0]
        raise UserError(
            f"`{name}` must be an array or tensor of numbers, found {type(values).__name__} "
            f"({first})"
        ) from error


def scaled_gram(gram: ArrayLike) -> Vector:
    """Return the checked Gram matrix divided by its mean diagonal; zeros if all gradients are."""
    matrix = check_gram(gram)
    peak = matrix.diagonal().max()
    if peak <= 0:
        return np.zeros_like(matrix)
    matrix = matrix / peak  # first, so that the mean below cannot overflow
    return np.asarray(matrix / matrix.diagonal().clip(0).mean())


def check_preference(preference: ArrayLike | None, size: int) -> Vector:
    """Return the preference [K] with sum 1; ``None`` is equal.

    Raises:
        UserError: wrong length, a negative or non-finite entry, or no positive entry.
    """
    if preference is None:
        return np.full(size, 1 / size)
    vector = _vector("preference", preference, size)
    if vector.min() < 0 or vector.max() <= 0:
        raise UserError(
            "`preference` must be non-negative with at least one positive entry, "
            f"found values from {vector.min():g} to {vector.max():g}"
        )
    vector = vector / vector.max()
    return np.asarray(vector / vector.sum())


def check_losses(losses: ArrayLike | None, size: int, who: str) -> Vector:
    """Return the losses [K] as non-negative float64.

    Raises:
        UserError: they are missing, have the wrong length, or are negative or not finite.
    """
    if losses is None:
        raise UserError(f"{who} needs the loss of each objective, found none; pass `losses` [K]")
    vector = _vector("losses", losses, size)
    if vector.min() < 0:
        raise UserError(
            f"{who} needs non-negative losses, found {vector.min():g}; "
            "use a loss that is bounded below by 0"
        )
    return vector


def length(gram: Vector, weights: Vector) -> float:
    """Return |g_w| = sqrt(w^T G w)."""
    return float(np.sqrt(max(float(weights @ gram @ weights), 0.0)))


def is_rounding(gram: Vector, weights: Vector, square: float) -> bool:
    """Return True if ``square = w^T G w`` is within the rounding error of its own sum."""
    return square <= 8 * EPS * float(weights @ np.abs(gram) @ weights)


def factor(rescale: str, size: int, c: float = 0.0) -> float:
    """Return the factor of the direction for a ``rescale`` option."""
    return {"none": 1.0, "sum": float(size), "official": size / (1 + c**2)}[rescale]


def _vector(name: str, values: ArrayLike, size: int) -> Vector:
    vector = as_array(name, values)
    if vector.shape != (size,):
        found = list(vector.shape) if isinstance(values, Sized) else "a scalar"
        raise UserError(f"`{name}` must have one entry per objective [{size}], found shape {found}")
    if not np.isfinite(vector).all():
        raise UserError(f"`{name}` must be finite, found NaN or infinity")
    return vector
