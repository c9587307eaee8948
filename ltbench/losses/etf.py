"""Fixed classifier of equal angles and the regression onto its directions.

Features are [B, D] of any floating type; half precision is raised to single. Labels are [B], int64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ltbench.losses.precision import full

SHORTEST = 1e-8  # smallest length of features in a denominator; as in the authors' code


def etf_directions(orthonormal: Tensor) -> Tensor:
    """Return the directions of a simplex equiangular tight frame, one column per class.

    They have length 1 and pairwise inner products -1 / (C - 1).

    Reference: Yang et al., Inducing Neural Collapse in Imbalanced Learning: Do We Really Need a
        Learnable Classifier at the End of Deep Neural Network?, NeurIPS 2022, arXiv:2203.09081,
        Eqn 1.
    Departures: none known.

    Args:
        orthonormal: U, whose columns are orthonormal [D, C], with D >= C >= 2.

    Returns:
        sqrt(C / (C - 1)) U (I - 11^T / C) [D, C].

    Raises:
        ValueError: the matrix has fewer than two columns, or fewer rows than columns.
    """
    rows, classes = orthonormal.shape
    if not rows >= classes >= 2:
        raise ValueError(f"expected D >= C >= 2, found {rows} rows and {classes} columns")
    return math.sqrt(classes / (classes - 1)) * (orthonormal - orthonormal.mean(1, keepdim=True))


def batch_lengths(counts: Tensor) -> Tensor:
    """Return lengths of the directions that give the classes of a batch equal weight.

    Reference: the authors' code of Yang et al., NeurIPS 2022, arXiv:2203.09081.
    Departures: none known.

    Args:
        counts: images of each class in the batch [C].

    Returns:
        sqrt(B / (K n_k)) for the K classes present, 1 for the others [C].
    """
    present = counts > 0
    mean = counts.sum() / present.sum().clamp(min=1)
    return torch.where(present, mean / counts.clamp(min=1), 1.0).sqrt()


def dot_regression_rows(
    features: Tensor, labels: Tensor, directions: Tensor, length_weight: float = 0.0
) -> Tensor:
    """Return the dot-regression loss of each row, (h m - |m| |h|)^2 / (2 |h|).

    It is (1 - cos)^2 / 2 for h and m of length 1; the lengths of h in it are constants for the
    gradient.

    Reference: Yang et al., Inducing Neural Collapse in Imbalanced Learning: Do We Really Need a
        Learnable Classifier at the End of Deep Neural Network?, NeurIPS 2022, arXiv:2203.09081,
        Eqn 9.
    Departures: the lengths are those of the features themselves, as in the authors' code; in the
        paper they are constants.

    Args:
        features: h [B, D].
        labels: [B].
        directions: m of each class, one per column, of any length [D, C].
        length_weight: weight of the length of the features, which is added, >= 0.

    Returns:
        Losses [B].

    Raises:
        ValueError: ``length_weight`` is negative.
    """
    if not length_weight >= 0:
        raise ValueError(f"`length_weight` must be >= 0, found {length_weight}")
    h, own = full(features), directions.T[labels]
    own = own.to(h)
    length = torch.linalg.vector_norm(h.detach(), dim=1).clamp(min=SHORTEST)
    away = (h * own).sum(dim=1) - torch.linalg.vector_norm(own, dim=1) * length
    rows: Tensor = away**2 / (2 * length)
    if length_weight:
        rows = rows + length_weight * torch.linalg.vector_norm(h, dim=1)
    return rows
