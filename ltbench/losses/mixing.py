"""Boxes that are cut and pasted between images, and losses of mixed images.

Images are [B, C, H, W]; a box is (top, left, bottom, right) in pixels, the last two exclusive.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ltbench.losses.precision import full

Box = tuple[int, int, int, int]


def cut_box(
    height: int,
    width: int,
    lam: float,
    centre: tuple[int, int],
    rounding: Literal["down", "up"] = "down",
) -> Box:
    """Return the box of CutMix: sides sqrt(1 - lam) of the image's about a centre, clipped.

    Reference: Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with
        Localizable Features, ICCV 2019, arXiv:1905.04899, Eqn 2.
    Departures: the sides are whole numbers, and a box reaches half a side, rounded down, to both
        sides of its centre, as in the public codes.

    Args:
        height: height of the images in pixels.
        width: width of the images in pixels.
        lam: share of the image that should stay, in [0, 1]; less may be cut at the border.
        centre: row and column of the centre, inside the image.
        rounding: of the sides: down, as in CutMix and CMO, or up, as in GLMC.

    Returns:
        Top, left, bottom, right.

    Raises:
        ValueError: ``lam`` is not in [0, 1], or ``rounding`` is unknown.
    """
    if not 0 <= lam <= 1:
        raise ValueError(f"`lam` must be in [0, 1], found {lam}")
    if rounding not in ("down", "up"):
        raise ValueError(f"`rounding`: expected down or up, found {rounding}")
    share, whole = math.sqrt(1 - lam), math.floor if rounding == "down" else math.ceil
    ends = []
    for size, middle in ((height, centre[0]), (width, centre[1])):
        half = whole(size * share) // 2
        ends.append((min(max(middle - half, 0), size), min(max(middle + half, 0), size)))
    (top, bottom), (left, right) = ends
    return top, left, bottom, right


def kept_share(box: Box, height: int, width: int) -> float:
    """Return the share of an image's area outside a box, in [0, 1]; see ``cut_box``.

    Reference: as ``cut_box``; the public code of CutMix replaces lambda by it.
    Departures: none known.

    Args:
        box: top, left, bottom, right, inside the image.
        height: height of the image in pixels.
        width: width of the image in pixels.
    """
    top, left, bottom, right = box
    return 1 - (bottom - top) * (right - left) / (height * width)


def paste(images: Tensor, others: Tensor, box: Box) -> Tensor:
    """Return images with a box of other images in place of their own pixels.

    Reference: as ``cut_box``, Eqn 1.
    Departures: none known.

    Args:
        images: [B, C, H, W]; not changed.
        others: images that the box comes from, of the same shape.
        box: top, left, bottom, right, the same for all.

    Returns:
        Images [B, C, H, W].
    """
    top, left, bottom, right = box
    pasted = images.clone()
    pasted[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return pasted


def weighted_mixup_rows(
    logits: Tensor, labels: Tensor, partner: Tensor, lam: float | Tensor, class_weights: Tensor
) -> Tensor:
    """Return the cross-entropy of mixed rows against both labels, each weighted by its class.

    Reference: Du et al., Global and Local Mixture Consistency Cumulative Learning for Long-tailed
        Visual Recognitions, CVPR 2023, arXiv:2305.08661 (re-weighted soft labels).
    Departures: none known.

    Args:
        logits: of the mixed images [B, C].
        labels: first labels [B].
        partner: second labels [B].
        lam: share of the first label, in [0, 1]; a scalar tensor is not checked.
        class_weights: [C]; equal weights of 1 give ``mixup_rows``.

    Returns:
        Losses [B].

    Raises:
        ValueError: ``lam`` is not in [0, 1].
    """
    if not isinstance(lam, Tensor) and not 0 <= lam <= 1:
        raise ValueError(f"`lam` must be in [0, 1], found {lam}")
    log_p = full(logits).log_softmax(dim=1)
    weights = class_weights.to(log_p)
    first, second = (
        weights[which] * log_p.gather(1, which[:, None])[:, 0] for which in (labels, partner)
    )
    return -(lam * first + (1 - lam) * second)


def cumulative_rows(
    logits: Tensor,
    reweighted_logits: Tensor,
    labels: Tensor,
    partner: Tensor,
    lam: float | Tensor,
    class_weights: Tensor,
    alpha: float,
) -> Tensor:
    """Return GLMC's classification loss: plain soft labels at first, re-weighted ones later.

    Reference: Du et al., Global and Local Mixture Consistency Cumulative Learning for Long-tailed
        Visual Recognitions, CVPR 2023, arXiv:2305.08661 (cumulative head-tail learning).
    Departures: none known.

    Args:
        logits: of the plain classifier [B, C].
        reweighted_logits: of the re-weighted classifier [B, C].
        labels: first labels [B].
        partner: second labels [B].
        lam: share of the first label, in [0, 1]; a scalar tensor is not checked.
        class_weights: of the re-weighted labels [C].
        alpha: weight of the plain loss, in [0, 1]: 1 - (epoch / epochs)^2.

    Returns:
        Losses [B].

    Raises:
        ValueError: ``lam`` is not in [0, 1].
    """
    ones = torch.ones_like(class_weights)
    plain = weighted_mixup_rows(logits, labels, partner, lam, ones)
    later = weighted_mixup_rows(reweighted_logits, labels, partner, lam, class_weights)
    return alpha * plain + (1 - alpha) * later


def consistency_rows(predicted: Tensor, projected: Tensor) -> Tensor:
    """Return the negative cosine of each prediction with the projection of the other view.

    Reference: Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021,
        arXiv:2011.10566, Eqn 1.
    Departures: none known.

    Args:
        predicted: predictor's outputs [B, d].
        projected: projections of the other view [B, d]; no gradient flows into them.

    Returns:
        Losses [B], in [-1, 1].
    """
    return -F.cosine_similarity(full(predicted), full(projected).detach(), dim=1)
