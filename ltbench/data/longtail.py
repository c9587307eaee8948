"""Long-tail profiles and subsampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ltbench.errors import UserError
from ltbench.seeding import derive, keyed_permutation

Profile = Literal["exp", "step"]


def class_profile(
    n_max: int, num_classes: int, imbalance_ratio: float, profile: Profile = "exp"
) -> tuple[int, ...]:
    """Return the number of images that each class keeps, largest class first.

    Reference:
        Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019,
        arXiv:1901.05555 (exponential); Buda et al., A systematic study of the class imbalance
        problem in convolutional neural networks, 2018, arXiv:1710.05381 (step).

    Departures:
        none known from the code of LDAM-DRW, whose closed form is used: repeated multiplication
        by the root of the ratio loses an image in some of the last classes.

    Args:
        n_max: images of the largest class, at least 1.
        num_classes: number of classes C.
        imbalance_ratio: largest over smallest class, at least 1; truncation can make the true
            ratio larger (CIFAR-100 at 200 ends with 2 images per class).
        profile: ``"exp"`` decays exponentially; ``"step"`` keeps all images of the first half of
            the classes and divides the others by the ratio.

    Returns:
        Images per class [C].

    Raises:
        UserError: a value is out of range.
    """
    if n_max < 1 or num_classes < 1 or imbalance_ratio < 1:
        raise UserError(
            "a long tail needs n_max >= 1, num_classes >= 1 and imbalance_ratio >= 1; found "
            f"n_max={n_max}, num_classes={num_classes}, imbalance_ratio={imbalance_ratio:g}"
        )
    smallest = 1.0 / imbalance_ratio
    if profile == "step":
        head = num_classes // 2
        return (n_max,) * head + (int(n_max * smallest),) * (num_classes - head)
    last = max(num_classes - 1, 1)
    return tuple(int(n_max * smallest ** (c / last)) for c in range(num_classes))


def subsample(labels: np.ndarray, counts: Sequence[int], seed: int) -> np.ndarray:
    """Draw ``counts[c]`` images of each class c.

    The images of a class are ordered by a permutation that depends on the seed and the class only,
    and the first ones are kept; smaller subsets of the same seed are nested in larger ones.

    Args:
        labels: class of each image, int [N].
        counts: images to keep of each class [C].
        seed: seed of the draw.

    Returns:
        Sorted indices, int64 [sum of counts].

    Raises:
        UserError: a class has fewer images than requested.
    """
    kept = []
    for c, count in enumerate(counts):
        mine = np.flatnonzero(labels == c)
        if len(mine) < count:
            raise UserError(
                f"class {c} must keep {count} images but has {len(mine)}; lower n_max or raise "
                "the imbalance ratio"
            )
        kept.append(mine[keyed_permutation(derive(seed, "subsample", c), len(mine))[:count]])
    return np.sort(np.concatenate(kept)).astype(np.int64)
