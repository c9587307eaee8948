"""Branches whose features combine maps of different depths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ltbench.errors import UserError
from ltbench.models.backbone import Backbone
from ltbench.models.branches import Branches

PROBE = 64  # side of the image that probes the shapes of the stages' maps

Shape = tuple[int, int]  # channels and height of feature maps


class FusedBranches(Branches):
    """Branches whose last maps are multiplied by aligned maps of inner stages of the trunk.

    The branches take turns through the stages of the trunk after the first one. Strided 3x3
    convolutions align the maps of that stage with the branch's last ones; the features are the
    mean of the product of both over positions.

    Reference: Jin et al., Long-Tailed Visual Recognition via Self-Heterogeneous Integration with
        Knowledge Excavation, CVPR 2023, arXiv:2304.01279 (SHIKE), depth-wise knowledge fusion.
    Departures: none known on CIFAR, the only data set with code; other networks follow its rule.

    Args:
        backbone: the backbone to branch, with feature maps.
        count: number of branches E, at least 1.
        at: first stage of the tails, as for ``Branches``; at least two stages come before it.
        trained: as for ``Branches``.

    Raises:
        UserError: there is no such stage, too few come before it, or one has no feature maps.
    """

    def __init__(
        self, backbone: Backbone, count: int, at: str = "last", trained: bool = False
    ) -> None:
        super().__init__(backbone, count, at, trained)
        if len(self._before) < 2:
            raise UserError(
                f"`branch_at: {at}` leaves the branches no inner stage to combine with: at least "
                "two stages must come before it; name a later one of "
                f"{', '.join(backbone.stages)}"
            )
        shapes = self._shapes()
        inner = len(self._before) - 1
        starts = (branch % inner for branch in range(count))
        self.shallow = nn.ModuleList(alignment(shapes[start:]) for start in starts)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of all branches on the same images [B, E, D]."""
        _, *inner = taps = self.taps(images)
        features = []
        for branch, align in enumerate(self.shallow):
            deep = self.tail_maps(branch, taps[-1])
            shallow = align(inner[branch % len(inner)])
            features.append(self.backbone.pool(deep * shallow))
        return torch.stack(features, dim=1)

    @torch.no_grad()
    def _shapes(self) -> list[Shape]:
        """Return the shape of the maps of each stage after the first."""
        training = [module for module in self.backbone.modules() if module.training]
        self.backbone.eval()
        image = next(self.backbone.parameters()).new_zeros(1, 3, PROBE, PROBE)
        maps = self.taps(image)[1:]
        for stage in self._own[:-1]:
            maps.append(self.backbone.do(stage.steps, maps[-1]))
        maps.append(self.backbone.maps(image))
        for module in training:
            module.training = True
        if any(x.dim() != 4 for x in maps):
            raise UserError(
                "this method needs the feature maps of inner stages, which the backbone does not "
                "have; take a ResNet"
            )
        return [(x.shape[1], x.shape[2]) for x in maps]


def alignment(shapes: Sequence[Shape]) -> nn.Sequential:
    """Return convolutions from the maps of a stage to those of the last stage after it.

    There is a 3x3 convolution with normalisation for each later stage that changes the shape, with
    that stage's channels and stride, and a ReLU after the first one.

    Args:
        shapes: of the maps of the stage and of all later ones.

    Raises:
        UserError: a stage changes the size by another factor than 2.
    """
    layers: list[nn.Module] = []
    for (channels, height), (wider, lower) in pairwise(shapes):
        if (channels, height) == (wider, lower):
            continue
        stride = round(height / lower)
        if stride not in (1, 2):
            raise UserError(
                f"maps of inner stages can be halved, found a stage that turns {height} rows into "
                f"{lower}; take a ResNet, or a later `branch_at`"
            )
        layers += [
            nn.Conv2d(channels, wider, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(wider),
        ]
        if len(layers) == 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)
