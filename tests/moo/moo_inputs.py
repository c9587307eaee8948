"""Gradients that solvers must survive, as rows [K, P]."""

from __future__ import annotations

import numpy as np


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _low_rank(seed: int, k: int) -> np.ndarray:
    return _normal(seed, k, 4) @ _normal(seed + 1, 4, 300) + 0.3 * _normal(seed + 2, k, 300)


def _lengths(seed: int, k: int, decades: float) -> np.ndarray:
    return 10.0 ** -np.random.default_rng(seed).uniform(0, decades, (k, 1))


REGULAR = {
    "two": _normal(0, 2, 3),
    "three": _normal(1, 3, 10),
    "ten": _normal(2, 10, 200),
    "sixty": _normal(3, 60, 500),
    "agreeing": _normal(4, 12, 50) + 2 * _normal(5, 50),
    "low_rank_and_noise": _low_rank(6, 30),
    "long_tailed_lengths": _low_rank(9, 20) * _lengths(10, 20, 3),
    "more_tasks_than_parameters": _normal(11, 40, 5),
    "duplicated": np.repeat(_normal(12, 5, 8), 3, axis=0),
    "one_parameter": np.abs(_normal(13, 6, 1)) + 0.1,
    "nearly_equal": _normal(14, 1, 30) + 1e-5 * _normal(15, 8, 30),
}
STATIONARY = {  # the convex hull holds 0 on its border
    "opposite": np.array([[1.0, 2.0], [-1.0, -2.0]]),
    "opposite_and_more": np.array([[1.0, 0, 0], [-2.0, 0, 0], [0.5, 1, 0.2], [0.1, 0.4, 1]]),
    "opposite_rays": np.array([[-0.1, 0, -0.1], [-1, 1, -1], [0.1, 0, 0.1], [0, -1e-4, 1e-4]]),
    "zero_row": np.vstack([_normal(16, 4, 6), np.zeros((1, 6)), _normal(17, 3, 6)]),
    "zero_row_agreeing": np.vstack([np.zeros((2, 30)), _normal(18, 5, 30) + 3.0]),
}
ZERO = {"zero_one": np.zeros((1, 3)), "zero_many": np.zeros((5, 3))}
ONE = {"one": np.array([[0.3, -0.4]])}
SCALES = [1e-15, 1e-6, 1.0, 1e6, 1e15]
