"""Gradients as lists aligned with parameters; ``None`` is a missing gradient, unlike zero.

Optimizers skip a parameter without a gradient: neither weight decay nor momentum acts on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Gradient = list[Tensor | None]  # one entry per parameter


def held(gradient: Sequence[Tensor | None]) -> list[Tensor]:
    """Return the entries that are not ``None``."""
    return [g for g in gradient if g is not None]


def added(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Gradient:
    """Return the sum of two gradients; an entry is ``None`` only where both are."""
    out = [y if x is None else x for x, y in zip(a, b, strict=True)]
    both = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x is not None and y is not None]
    if both:
        left: list[Any] = [a[i] for i in both]
        right: list[Any] = [b[i] for i in both]
        for i, total in zip(both, torch._foreach_add(left, right), strict=True):
            out[i] = total
    return out


def each(
    operation: Callable[[list[Tensor]], Sequence[Tensor]], gradient: Sequence[Tensor | None]
) -> Gradient:
    """Apply an operation on lists of tensors to the entries that are not ``None``."""
    there = held(gradient)
    made = iter(operation(there) if there else ())
    return [None if g is None else next(made) for g in gradient]
