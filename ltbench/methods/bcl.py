from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.distributed import differentiable, ranks
from ltbench.losses import logit_adjusted_rows, logit_adjustment_offset
from ltbench.losses.contrastive import balanced_contrastive_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.methods.previous import continued_cosine
from ltbench.models.batchnorm import SyncBatchNorm2d
from ltbench.models.heads import CosineHead


class BCL(Method):
    """Logit-adjusted cosine classifier plus a class-balanced contrastive loss on two more views.

    The first view is classified; the second and third are contrasted with each other and with
    class prototypes, which are projections of the classifier's weights.

    Reference: Zhu et al., Balanced Contrastive Learning for Long-Tailed Visual Recognition,
        CVPR 2022, arXiv:2207.09052, Eqn 5-8.
    Departures: contrast and the projection's normalisation are over the images of all ranks.
        Layers before a normalisation have no bias, which would cancel, and the normalisation of
        the prototypes has no running statistics, which would be unused. A contrastive row has the
        class of its anchor. With gradient accumulation each micro-batch is contrasted within
        itself. A cosine classifier of the previous stage is kept, any other is replaced.
    """

    kind: ClassVar[Kind] = "contrastive"
    views: ClassVar[int] = 3

    Config = options.BCL
    config: options.BCL
    offset: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create both projections and the log prior."""
        width, dim = self.backbone.num_features, self.config.dim
        self.projection = projection(width, dim, SyncBatchNorm2d(width))
        norm = nn.BatchNorm1d(width, track_running_stats=False)  # over classes: same on all ranks
        self.prototypes = projection(width, dim, norm)
        offset = logit_adjustment_offset(self.info.class_counts)
        self.register_buffer("offset", offset, persistent=False)

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the previous classifier if it is a cosine with this scale, else a new one."""
        features, classes = self.backbone.num_features, self.info.num_classes
        return continued_cosine(previous, features, classes, self.config.scale)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one classification row per image and one contrastive row per anchor view."""
        config, labels, count = self.config, batch.labels, len(batch.labels)
        assert isinstance(self.head, CosineHead)
        features = self.backbone(torch.cat(batch.views))  # [3B, D]
        logits = self.head(features[:count])
        anchors = unit(self.projection(features))[count:]  # [2B, d]
        anchor_labels = labels.repeat(2)
        sizes = [2 * n for n in batch.per_rank]
        classes, others = differentiable.all_gather_labelled(anchor_labels, anchors, sizes)
        contrast = balanced_contrastive_rows(
            anchors,
            anchor_labels,
            others,
            classes,
            unit(self.prototypes(self.head.weight.T)),
            start=ranks.first_row(sizes),
            temperature=config.temperature,
        )
        rows = torch.cat([logit_adjusted_rows(logits, labels, self.offset).to(contrast), contrast])
        weight = torch.full_like(rows, config.mu / 2)
        weight[:count] = config.lam
        return Rows(
            rows,
            labels.repeat(3),
            images=count,
            weight=weight,
            logits=logits.detach(),
        )


def projection(width: int, dim: int, norm: nn.Module) -> nn.Sequential:
    """Return an MLP with one normalised hidden layer: features [B, width] to [B, dim]."""
    return nn.Sequential(
        nn.Linear(width, width, bias=False), norm, nn.ReLU(), nn.Linear(width, dim)
    )


def unit(x: Tensor) -> Tensor:
    """Return L2-normalised rows, in single precision or higher."""
    return F.normalize(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x, dim=1)
