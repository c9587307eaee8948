"""Rare-class sample generation: transfer of head variation to tail feature maps, and its losses.

Maps are [B, D, H, W] of any floating type; half precision is raised to single. They are not
detached; to stop gradients into the network, detach them first.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.losses.class_counts import Counts, checked_counts
from ltbench.losses.precision import full
from ltbench.losses.rows import cross_entropy_rows

VectorOrder = Literal["memory", "channels"]

PAIR_WIDTH = 256  # hidden channels of the pair classifier, as in the authors' code


def head_classes(class_counts: Counts, share: float = 0.2) -> Tensor:
    """Return the mask of head classes: the ``int(share * C)`` most frequent, at least one.

    Reference: Wang et al., RSG: A Simple but Effective Module for Learning Imbalanced Datasets,
        CVPR 2021, arXiv:2106.09859; the share is in the released code only.
    Departures: selected by count, where the release takes the first labels on CIFAR; ties go to
        the lower index.

    Args:
        class_counts: training images of each class [C].
        share: share of head classes, in (0, 1).

    Returns:
        Booleans [C].

    Raises:
        ValueError: ``share`` is out of range.
        UserError: a count is not positive.
    """
    if not 0 < share < 1:
        raise ValueError(f"`share` must be in (0, 1), found {share}")
    counts = checked_counts(class_counts)
    order = counts.argsort(descending=True, stable=True)
    chosen = order[: max(1, int(share * len(counts)))]
    return torch.zeros_like(counts, dtype=torch.bool).index_fill(0, chosen, True)


def head_tail_pairs(is_head: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return pairs of head and tail images of a batch, for the transfer of variation.

    The larger group is split into segments of the size of the smaller one; in each segment the two
    are paired by position, so members of the smaller group recur.

    Reference: Wang et al., RSG, CVPR 2021, arXiv:2106.09859; the pairing is that of the released
        code.
    Departures: none known.

    Args:
        is_head: mask of images of head classes [B].
        strength: share of the larger group that is used, in (0, 1]; at least one segment.

    Returns:
        Indices of head and tail images [P] each; none if a group is empty.

    Raises:
        ValueError: ``strength`` is out of range.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"`strength` must be in (0, 1], found {strength}")
    heads, tails = is_head.nonzero()[:, 0], (~is_head).nonzero()[:, 0]
    fewer, more = sorted((len(heads), len(tails)))
    segments = max(1, int(more * strength / fewer)) if fewer else 0
    if len(heads) >= len(tails):
        return heads[: segments * fewer], tails.repeat(segments)
    return heads.repeat(segments), tails[: segments * fewer]


def center_rows(maps: Tensor, shares: Tensor, centers: Tensor) -> Tensor:
    """Return the squared distance of each map from its class's centers, weighted by its shares.

    A center is one vector for all positions, so the distance is the spread of the map about its
    own mean plus that of the mean from the center, and no tensor is larger than the maps.

    Reference: Wang et al., RSG, CVPR 2021, arXiv:2106.09859 (center estimation).
    Departures: none known.

    Args:
        maps: [B, D, H, W].
        shares: of each center in a map, rows sum to 1 [B, K].
        centers: those of each map's class [B, K, D].

    Returns:
        Losses [B].
    """
    maps, shares, centers = full(maps), full(shares), full(centers)
    means = maps.mean(dim=(2, 3))  # [B, D]
    spread = ((maps - means[:, :, None, None]) ** 2).sum(dim=(1, 2, 3))
    away = ((means[:, None] - centers) ** 2).sum(dim=2)  # [B, K]
    return spread + maps.shape[2:].numel() * (shares * away).sum(dim=1)


def variation_rows(
    variation: Tensor, moved: Tensor, tails: Tensor, order: VectorOrder = "memory"
) -> Tensor:
    """Return the maximised vector loss: difference of a moved variation in norm and direction.

    Reference: Wang et al., RSG, CVPR 2021, arXiv:2106.09859 (maximised vector loss).
    Departures: the paper compares vectors of channels, one for each position; the released code
        takes D consecutive values in memory, i.e. positions of a channel; this is the default,
        since the published figures come from it.

    Args:
        variation: head maps minus their center [P, D, H, W].
        moved: the same after the transformation [P, D, H, W].
        tails: tail maps minus their center [P, D, H, W].
        order: ``memory`` or ``channels``, the definition of a vector of D values.

    Returns:
        Losses [P], summed over vectors.

    Raises:
        ValueError: ``order`` is unknown.
    """
    if order not in ("memory", "channels"):
        raise ValueError(f"`order`: expected memory or channels, found {order}")
    size = moved.shape[1]

    def vectors(x: Tensor) -> Tensor:  # [P, H W, D]
        x = full(x)
        x = x if order == "memory" else x.movedim(1, -1)
        return x.reshape(len(x), x[0].numel() // size if len(x) else 0, size)

    v, new, tail = vectors(variation), vectors(moved), vectors(tails)
    agreement = F.normalize(tail, dim=2) * F.normalize(new, dim=2)
    rows: Tensor = (new.norm(dim=2) - v.norm(dim=2)).abs().sum(dim=1)
    return rows + (agreement - 1).abs().sum(dim=(1, 2))


class PairClassifier(nn.Module):
    """Classifier of pairs of maps: logits of "different class" and "same class".

    Reference: Wang et al., RSG, CVPR 2021, arXiv:2106.09859 (contrastive module).
    Departures: none known.

    Args:
        channels: channels D of each map.
        width: hidden channels.
    """

    def __init__(self, channels: int, width: int = PAIR_WIDTH) -> None:
        super().__init__()
        self.mix = _convolution(2 * channels, width, 1)
        self.look = _convolution(width, width, 3)
        self.classify = nn.Linear(width, 2)
        nn.init.normal_(self.classify.weight)
        nn.init.zeros_(self.classify.bias)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return logits [P, 2] for two maps [P, D, H, W]."""
        x = self.look(self.mix(torch.cat([first, second], dim=1)).relu())
        logits: Tensor = self.classify(x.mean(dim=(2, 3)))
        return logits


class VariationTransfer(nn.Module):
    """Centers of each class, and the transformation of a variation to another class.

    Reference: Wang et al., RSG: A Simple but Effective Module for Learning Imbalanced Datasets,
        CVPR 2021, arXiv:2106.09859.
    Departures: none known.

    Args:
        num_classes: classes C.
        channels: D of the maps.
        centers: centers K of each class.
    """

    def __init__(self, num_classes: int, channels: int, centers: int = 15) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, channels, centers))
        self.bias = nn.Parameter(torch.ones(num_classes, centers))
        self.centers = nn.Parameter(torch.zeros(num_classes, centers, channels))
        self.transform = _convolution(channels, channels, 3)

    # index_select, since the backward pass of indexing by a tensor is not deterministic.

    def shares(self, maps: Tensor, labels: Tensor) -> Tensor:
        """Return the share of each center of its class in a map [B, K]."""
        means = full(maps).mean(dim=(2, 3))
        scores = (means[:, None] @ self.weight.index_select(0, labels).to(means))[:, 0]
        return (scores + self.bias.index_select(0, labels).to(means)).softmax(dim=1)

    def center_rows(self, maps: Tensor, labels: Tensor) -> Tensor:
        """Return the center loss of each map [B]."""
        return center_rows(maps, self.shares(maps, labels), self.centers.index_select(0, labels))

    def variation(self, maps: Tensor, labels: Tensor) -> Tensor:
        """Return maps minus the center with the largest share, detached [B, D, H, W]."""
        with torch.no_grad():
            nearest = self.shares(maps, labels).argmax(dim=1)
            return maps - self.centers[labels, nearest].to(maps)[:, :, None, None]


def same_class_loss(pairs: PairClassifier, maps: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss of the pair classifier on the two halves of a batch.

    Reference: Wang et al., RSG, CVPR 2021, arXiv:2106.09859 (center estimation with sample
        contrast).
    Departures: the last of an odd number of maps is not used.

    Args:
        pairs: the classifier.
        maps: [B, D, H, W].
        labels: [B].

    Returns:
        Scalar, 0 for fewer than two maps.
    """
    half = len(maps) // 2
    same = (labels[:half] == labels[half : 2 * half]).long()
    rows = cross_entropy_rows(pairs(maps[:half], maps[half : 2 * half]), same)
    return rows.sum() / max(half, 1)


def _convolution(channels: int, out: int, size: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, out, size, padding=size // 2)
    nn.init.kaiming_normal_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
