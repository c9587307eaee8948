"""Separation of known and unknown images by a score, which should be higher for known ones."""

from __future__ import annotations

import numpy as np


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """Return the area under the ROC curve; ties count half.

    Args:
        known: scores of the positives [N].
        unknown: scores of the negatives [M].

    Raises:
        ValueError: there are no positives or no negatives, or a score is not finite.
    """
    from sklearn.metrics import roc_auc_score

    _check(known, unknown)
    truth = np.repeat([1, 0], [len(known), len(unknown)])
    return float(roc_auc_score(truth, np.concatenate([known, unknown])))


def fpr_at(known: np.ndarray, unknown: np.ndarray, recall: float = 0.95) -> float:
    """Return the false positive rate at a given true positive rate.

    Images with a score of at least the threshold are accepted; the threshold is the highest one
    that accepts at least the share ``recall`` of the known images.

    Args:
        known: scores of the positives [N].
        unknown: scores of the negatives [M].
        recall: smallest true positive rate, in (0, 1].

    Raises:
        ValueError: there are no positives or no negatives, or a score is not finite.
    """
    _check(known, unknown)
    wanted = int(np.ceil(recall * len(known) - 1e-9))
    threshold = np.sort(known)[len(known) - max(wanted, 1)]
    return float(np.mean(unknown >= threshold))


def accepted(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the fraction of scores at or above each threshold [T]."""
    ordered = np.sort(scores)
    shares: np.ndarray = 1 - np.searchsorted(ordered, thresholds, side="left") / len(ordered)
    return shares


def _check(known: np.ndarray, unknown: np.ndarray) -> None:
    if not len(known) or not len(unknown):
        raise ValueError(f"expected scores on both sides, found {len(known)} and {len(unknown)}")
    if not (np.isfinite(known).all() and np.isfinite(unknown).all()):
        raise ValueError("scores must be finite")
