from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ltbench.losses.branches import bbn_alpha, bbn_features, bbn_horizon
from ltbench.losses.rows import cross_entropy_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows, Stream
from ltbench.models.branches import Branches
from ltbench.models.heads import LinearHead


class BBN(Method):
    """Two branches, one for uniform and one for reversed sampling, mixed on a schedule.

    Reference: Zhou et al., BBN: Bilateral-Branch Network with Cumulative Learning for Long-Tailed
        Visual Recognition, CVPR 2020, arXiv:1912.02413, Eqns 1-5.
    Departures: mixed features have twice the paper's weights, and the features of an image to be
        classified weight 1 instead of 1/2, as in the authors' code. A pair of images is two rows,
        each term of the loss with its own image's class. In the first epoch the second branch
        has weight 0, as in the authors' code. For 90 and 180 epochs their code has a T_max of
        100 and 200: ``horizon: hundreds``. A classifier of the previous stage is replaced.
    """

    kind: ClassVar[Kind] = "architecture"
    streams: ClassVar[Mapping[str, Stream]] = {"reversed": Stream("reversed")}

    Config = options.BBN
    config: options.BBN

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return a new linear classifier on the features of both branches."""
        return LinearHead(2 * self.backbone.num_features, self.info.num_classes)

    def setup(self, previous: Method | None) -> None:
        """Create the second branch."""
        at, trained = self.config.branch_at, previous is not None
        self.branches = Branches(self.backbone, 2, at, trained=trained)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return two loss rows per pair, one for the class of each image."""
        other = batch.streams["reversed"]
        horizon = at.epochs if self.config.horizon == "stage" else bbn_horizon(at.epochs)
        alpha = bbn_alpha(at.epoch + 1, horizon)
        conventional, balanced = (
            self.branches.tail(branch, self.branches.trunk(part.views[0]))
            for branch, part in enumerate((batch, other))
        )
        logits = self.head(bbn_features(conventional, balanced, alpha))
        rows = [cross_entropy_rows(logits, part.labels) for part in (batch, other)]
        weights = [torch.full_like(rows[0], alpha), torch.full_like(rows[1], 1 - alpha)]
        return Rows(
            torch.cat(rows),
            torch.cat([batch.labels, other.labels]),
            images=len(batch.labels),
            weight=torch.cat(weights).detach(),
            logits=logits.detach(),
        )

    def predict(self, images: Tensor) -> Tensor:
        """Return logits [B, C] of both branches on the same images, equally weighted."""
        logits: Tensor = self.head(self.branches(images).flatten(1))
        return logits

    def export(self) -> nn.Module:
        """Return backbone, second branch and classifier as a plain module."""
        return nn.Sequential(self.branches.standalone(), nn.Flatten(), self.head)
