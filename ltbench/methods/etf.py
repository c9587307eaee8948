from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ltbench.distributed import ranks
from ltbench.losses.etf import batch_lengths, dot_regression_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.methods.mixup import Mixup
from ltbench.models.heads import ETFHead


class ETF(Mixup):
    """Mixup with a fixed classifier of equal angles, onto which features are regressed.

    The network needs at least as many features as there are classes.

    Reference: Yang et al., Inducing Neural Collapse in Imbalanced Learning: Do We Really Need a
        Learnable Classifier at the End of Deep Neural Network?, NeurIPS 2022, arXiv:2203.09081.
    Departures: the directions of the released settings have lengths that weight the classes of a
        batch equally, which the paper does not have; here that is ``lengths: batch``. They count
        the first labels of the global batch (each micro-batch with gradient accumulation). A
        mixed image is one row with the class of its first label. A classifier of the previous
        stage is replaced.
    """

    Config = options.ETF
    config: options.ETF
    head: ETFHead

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return a new fixed classifier."""
        return ETFHead(self.backbone.num_features, self.info.num_classes, self.config.unit)

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Mix the batch, unless ``alpha`` is 0, and find the lengths of the directions."""
        if self.config.alpha > 0:
            batch = super().prepare(batch, at)
        if self.config.lengths == "unit":
            return batch
        one = torch.ones_like(batch.labels, dtype=torch.float64)
        counts = one.new_zeros(self.info.num_classes).index_add_(0, batch.labels, one)
        lengths = batch_lengths(ranks.all_reduce_(counts))
        return replace(batch, extra={**batch.extra, "lengths": lengths})

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image, with the class of its first label."""
        features = self.head.normalised(self.backbone(batch.views[0]))
        directions: Tensor = self.head.directions
        if "lengths" in batch.extra:
            directions = directions * batch.extra["lengths"].to(directions)
        weight = self.config.length_weight
        rows = dot_regression_rows(features, batch.labels, directions, weight)
        if batch.partner is not None:
            other = dot_regression_rows(features, batch.partner, directions, weight)
            rows = batch.lam * rows + (1 - batch.lam) * other
        logits = self.head.logits(features.detach())
        return Rows(rows, batch.labels, images=len(rows), logits=logits)
