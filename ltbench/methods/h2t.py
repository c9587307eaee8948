from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch

from ltbench.distributed.copies import to_device
from ltbench.losses import cross_entropy_rows
from ltbench.losses.retraining import fused_maps
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows, Stream
from ltbench.methods.previous import require_previous


class H2T(Method):
    """Stage 2 of H2T: classifier trained further on maps with channels of mostly head images.

    A share of the channels of each image's feature maps is replaced by those of a second image,
    drawn from all images alike; the label is that of the first. Meant for a class-balanced sampler
    after any stage, e.g. `mixup`. Predictions are made without fusion.

    Reference: Li et al., Feature Fusion from Head to Tail for Long-Tailed Visual Recognition,
        AAAI 2024, arXiv:2306.06963.
    Departures: the loss is cross-entropy; the paper adds the fusion to other methods as well.
        Channels are drawn once per step, the same for all images, ranks and passes. As in the
        authors' code, normalisation of the frozen backbone stays in training mode and sees both
        draws, one after the other.
    """

    kind: ClassVar[Kind] = "two-stage"
    streams: ClassVar[Mapping[str, Stream]] = {"uniform": Stream("instance")}
    freeze: ClassVar[tuple[str, ...]] = ("backbone",)

    Config = options.H2T
    config: options.H2T

    def setup(self, previous: Method | None) -> None:
        """Check that there is a trained model."""
        require_previous("h2t", previous)

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Draw the channels to replace; all ranks draw the same."""
        order = torch.randperm(self.backbone.num_features, generator=at.generator("h2t"))
        drawn = order[: int(self.config.share * len(order))]
        channels = to_device(drawn, batch.labels.device)
        return replace(batch, extra={**batch.extra, "channels": channels})

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per class-balanced image."""
        maps, others = (
            self.backbone.maps(part.views[0]) for part in (batch, batch.streams["uniform"])
        )
        fused = fused_maps(maps, others, batch.extra["channels"])
        logits = self.head(self.backbone.pool(fused))
        rows = cross_entropy_rows(logits, batch.labels)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())
