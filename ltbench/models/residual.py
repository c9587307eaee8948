"""Residual branches on the last feature maps of a backbone, with a shared classifier."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ltbench.losses.branches import reslt_normalised_logits
from ltbench.models.backbone import Backbone
from ltbench.models.heads import LinearHead

Block = Literal["bn", "conv1x1"]
BRANCHES = 3  # for all classes, medium and tail, tail


class ResLTHead(nn.Module):
    """Residual branches with a shared classifier: features of each branch to its logits.

    Args:
        num_features: channels of the maps, and number of features D of each branch.
        num_classes: number of classes C.
        block: type of a branch: a separate batch normalisation, or a part of a 1x1 convolution,
            which is initialised Kaiming-normal over the outputs of three branches.
        branches: number of branches E: for all, for medium and tail, and for tail classes.
    """

    def __init__(
        self, num_features: int, num_classes: int, block: Block, branches: int = BRANCHES
    ) -> None:
        super().__init__()
        self.branches = branches
        self.block: nn.Module
        if block == "bn":
            self.block = nn.ModuleList(nn.BatchNorm2d(num_features) for _ in range(branches))
        else:
            width = branches * num_features
            conv = nn.Conv2d(num_features, width, 1, bias=False)
            nn.init.normal_(conv.weight, std=(2 / (BRANCHES * num_features)) ** 0.5)
            self.block = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = LinearHead(num_features, num_classes)

    def split(self, maps: Tensor) -> Tensor:
        """Return the feature maps of the branches [B, E, D, H, W] from those of the backbone."""
        if isinstance(self.block, nn.ModuleList):
            return torch.stack([norm(maps) for norm in self.block], dim=1)
        joint: Tensor = self.block(maps)
        return joint.view(maps.shape[0], self.branches, *maps.shape[1:])

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, E, C] for features [B, E, D]."""
        logits: Tensor = self.classifier(features)
        return logits


class ResLTNetwork(nn.Module):
    """Backbone and branches as a plain module: images to the summed logits of branches [B, C].

    Args:
        backbone: the feature extractor.
        head: the branches.
        gamma: exponent of the normalisation of the classifier, which then has no bias; ``None``
            uses the classifier as trained.
        after_pooling: run the branches on pooled features.
    """

    def __init__(
        self, backbone: Backbone, head: ResLTHead, gamma: float | None, after_pooling: bool
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.gamma, self.after_pooling = gamma, after_pooling

    def forward(self, images: Tensor) -> Tensor:
        """Return the summed logits."""
        features = branch_features(self.backbone, self.head, images, self.after_pooling)
        if self.gamma is not None:
            weight = self.head.classifier.weight
            return reslt_normalised_logits(features, weight, self.gamma)
        logits: Tensor = self.head(features).sum(dim=1)
        return logits


def branch_features(
    backbone: Backbone, head: ResLTHead, images: Tensor, after_pooling: bool = False
) -> Tensor:
    """Return the pooled features of the branches [B, E, D]."""
    maps = backbone.maps(images)
    if after_pooling:
        return head.split(backbone.pool(maps)[:, :, None, None]).flatten(2)
    pooled = backbone.pool(head.split(maps).flatten(0, 1))
    # Not `len`, which would fix the batch size of an exported model.
    return pooled.view(maps.shape[0], head.branches, maps.shape[1])
