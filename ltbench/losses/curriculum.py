"""Rules of a curriculum of augmentation strengths by class."""

from __future__ import annotations

import torch
from torch import Tensor


def trial_counts(levels: Tensor, most: int = 10, base: int = 10) -> Tensor:
    """Return how many images of each class are tried at each strength.

    Reference: Ahn et al., CUDA: Curriculum of Data Augmentation for Long-Tailed Recognition,
        ICLR 2023, arXiv:2302.05499, Algorithm 2.
    Departures: none known.

    Args:
        levels: strength of each class, 0 to ``most``, int64 [C].
        most: largest strength, >= 0.
        base: images at strength 0, >= 1; there are ``base * (s + 1)`` at strength s.

    Returns:
        Counts, int64 [C, most + 1]; 0 above the level of a class.
    """
    strength = torch.arange(most + 1, device=levels.device)
    return torch.where(strength <= levels[:, None], base * (strength + 1), 0)


def next_levels(
    levels: Tensor, correct: Tensor, trials: Tensor, accept: float = 0.6, most: int = 10
) -> Tensor:
    """Return the next strength of each class: one more if it passes at all, else one less.

    Reference: Ahn et al., CUDA: Curriculum of Data Augmentation for Long-Tailed Recognition,
        ICLR 2023, arXiv:2302.05499, Algorithm 2.
    Departures: none known from the authors' code for CIFAR.

    Args:
        levels: strength of each class, 0 to ``most``, int64 [C].
        correct: right answers of each class at each strength, int64 [C, most + 1].
        trials: images tried, see ``trial_counts``.
        accept: share of right answers that has to be exceeded at every strength up to the level.
        most: largest strength, >= 0.

    Returns:
        Strengths, int64 [C], 0 to ``most``.
    """
    strength = torch.arange(correct.shape[1], device=levels.device)
    share = correct.double() / trials.clamp(min=1)  # rounded correctly: 6 of 10 is not above 0.6
    passed = ((share > accept) | (strength > levels[:, None])).all(dim=1)
    return (levels + torch.where(passed, 1, -1)).clamp(0, most)
