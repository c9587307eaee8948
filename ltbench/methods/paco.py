from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.distributed import differentiable, ranks
from ltbench.losses import log_prior
from ltbench.losses.contrastive import paco_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.methods.bcl import projection
from ltbench.models.batchnorm import SyncBatchNorm2d


class Queued(Method):
    """Base of methods that contrast two views with a queue of projected features."""

    kind: ClassVar[Kind] = "contrastive"
    views: ClassVar[int] = 2

    queue: Tensor
    queue_labels: Tensor
    queue_next: Tensor

    def make_queue(self, size: int, dim: int) -> None:
        """Create a queue of ``size`` unit vectors of ``dim`` numbers that belong to no class."""
        self.register_buffer("queue", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("queue_labels", torch.full((size,), -1))
        self.register_buffer("queue_next", torch.tensor(0))  # position of the next key

    @torch.no_grad()
    def enqueue(self, keys: Tensor, labels: Tensor) -> None:
        """Replace the oldest keys of the queue by those of a step, of all ranks.

        Args:
            keys: unit vectors [K, d]; of more than fit, the last ones are kept.
            labels: class of each [K].
        """
        size = len(self.queue)
        end = self.queue_next + len(keys)
        kept = min(len(keys), size)
        places = (end - kept + torch.arange(kept, device=keys.device)) % size
        self.queue[places] = keys[len(keys) - kept :].to(self.queue)
        self.queue_labels[places] = labels[len(labels) - kept :]
        self.queue_next.copy_(end % size)


class PaCo(Queued):
    """Supervised contrastive loss with a momentum queue and learnable class centres.

    The centres are the linear classifier on pooled features, with the log of the training prior;
    predictions have no prior. The first view gives the anchors, the second the keys. The momentum
    encoder averages the weights only: its batch normalisation runs in training mode on the images
    of the keys, with its own running statistics.

    Reference: Cui et al., Parametric Contrastive Learning, ICCV 2021, arXiv:2107.12028, Eqn 4-5;
        the momentum encoder and queue are those of He et al., Momentum Contrast for Unsupervised
        Visual Representation Learning, CVPR 2020, arXiv:1911.05722.
    Departures: the queue starts with unit vectors that belong to no class, where the authors'
        code has random labels and normalises along the other axis. It may have any length, and
        holds the latest keys. The projection is normalised over the images of all ranks, where
        the authors normalise per rank and shuffle the keys between ranks; for the backbone use
        `batchnorm: sync` on several ranks. An anchor is contrasted with the anchors and keys of
        all ranks, where the authors' code uses those of its own GPU and the queue. The first
        layer of the projection has no bias, which its normalisation would cancel. A row has the
        class of its anchor. With gradient accumulation each micro-batch is contrasted with itself
        and the queue, which is updated once per step. A recipe that sets `freeze` must include
        `twin`.
    """

    freeze: ClassVar[tuple[str, ...]] = ("twin",)

    Config = options.PaCo
    config: options.PaCo
    offset: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the projection, the momentum encoder and an unlabelled queue."""
        dim, width = self.config.dim, self.backbone.num_features
        self.projection = projection(width, dim, SyncBatchNorm2d(width))
        if self.config.projection_init == "kaiming_normal":
            nn.init.kaiming_normal_(self.projection.get_parameter("3.weight"))
        parts = {"backbone": self.backbone, "projection": self.projection}
        self.twin = copy.deepcopy(nn.ModuleDict(parts)).requires_grad_(False)
        self.register_buffer("offset", log_prior(self.info.class_counts), persistent=False)
        self.make_queue(self.config.queue, dim)

    @torch.no_grad()
    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Update the momentum encoder once per step and compute the keys of the global batch."""
        if at.micro == 0:
            for mine, own in self._pairs():
                mine.lerp_(own.to(mine), 1 - self.config.momentum)
        features = self.twin["projection"](self.twin["backbone"](batch.views[1]))
        sizes = batch.per_rank
        keys = ranks.all_gather(F.normalize(features, dim=1), sizes)
        labels = ranks.all_gather(batch.labels, sizes)
        extra = {**batch.extra, "keys": keys, "key_labels": labels}
        return replace(batch, extra=extra, sizes=sizes)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one row per anchor; contrasts are anchors and keys of all ranks and the queue."""
        config, keys, labels = self.config, batch.extra["keys"], batch.extra["key_labels"]
        features = self.backbone(batch.views[0])
        logits = self.head(features)
        anchors = F.normalize(self.projection(features).to(keys), dim=1)
        sizes = batch.per_rank
        rows = paco_rows(
            logits.to(keys) + self.offset.to(keys),
            anchors,
            batch.labels,
            torch.cat([differentiable.all_gather(anchors, sizes), keys, self.queue]),
            torch.cat([labels, labels, self.queue_labels]),
            start=ranks.first_row(sizes),
            alpha=config.alpha,
            beta=config.beta,
            gamma=config.gamma,
            temperature=config.temperature,
        )
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())

    def after_step(self, batches: Sequence[Batch], at: Progress) -> None:
        """Replace the oldest keys of the queue by those of the step."""
        keys = torch.cat([batch.extra["keys"] for batch in batches])
        labels = torch.cat([batch.extra["key_labels"] for batch in batches])
        self.enqueue(keys, labels)

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        current = [*self.backbone.parameters(), *self.projection.parameters()]
        return list(zip(self.twin.parameters(), current, strict=True))
