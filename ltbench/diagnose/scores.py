"""How well a score separates two sets of images; higher scores should mean ``known``."""

from __future__ import annotations

import numpy as np


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Return the probability that a known image scores above an unknown one; ties count half.

    Args:
        known: scores of the positives [N].
        unknown: scores of the negatives [M].

    Raises:
        ValueError: a side is empty, or a score is not finite.
    """
    above, equal = _compare(known, unknown)
    return (above + equal / 2) / (len(known) * len(unknown))


def fpr_at(known: np.ndarray, unknown: np.ndarray, recall: float = 0.95) -> float:
    """Return the share of unknown images accepted where a share ``recall`` of the known ones is.

    Accepted is what scores at least the threshold, which is the highest one that accepts that
    share of the known images.

    Args:
        known: scores of the positives [N].
        unknown: scores of the negatives [M].
        recall: smallest share of known images to accept, in (0, 1].

    Raises:
        ValueError: a side is empty, or a score is not finite.
    """
    _check(known, unknown)
    wanted = int(np.ceil(recall * len(known) - 1e-9))
    threshold = np.sort(known)[len(known) - max(wanted, 1)]
    return float(np.mean(unknown >= threshold))


def accepted(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of scores at or above each threshold [T]."""
    ordered = np.sort(scores)
    shares: np.ndarray = 1 - np.searchsorted(ordered, thresholds, side="left") / len(ordered)
    return shares


def _compare(known: np.ndarray, unknown: np.ndarray) -> tuple[int, int]:
    """Return in how many pairs the known image scores higher, and in how many both are equal."""
    _check(known, unknown)
    ordered = np.sort(unknown)
    below = np.searchsorted(ordered, known, side="left")
    upto = np.searchsorted(ordered, known, side="right")
    return int(below.sum()), int((upto - below).sum())


def _check(known: np.ndarray, unknown: np.ndarray) -> None:
    if not len(known) or not len(unknown):
        raise ValueError(f"expected scores on both sides, found {len(known)} and {len(unknown)}")
    if not (np.isfinite(known).all() and np.isfinite(unknown).all()):
        raise ValueError("scores must be finite")
