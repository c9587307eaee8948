from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ltbench.distributed import differentiable, ranks
from ltbench.losses import log_prior
from ltbench.losses.contrastive import paco_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.methods.bcl import unit
from ltbench.methods.paco import Queued


class GPaCo(Queued):
    """PaCo without its momentum encoder: the features of both views are anchors.

    The centres are the linear classifier on pooled features, with the log of the training prior;
    predictions have no prior. Features of earlier steps' second views are in the queue.

    Reference: Cui et al., Generalized Parametric Contrastive Learning, TPAMI 2023,
        arXiv:2209.12400.
    Departures: as for `paco`, the queue starts with unit vectors that belong to no class, may have
        any length, and an anchor is contrasted with the anchors of all ranks, where the authors'
        code uses those of its own GPU and the queue. As there, each view runs through the network
        on its own, and features enter the queue after the step, those of its first pass. A row has
        the class of its anchor, a view of an image. With gradient accumulation each micro-batch is
        contrasted with itself and the queue, which is updated once per step. The authors'
        multi-task baseline is not a method here; its loss is ``supervised_contrastive_rows`` of
        ``ltbench.losses`` plus balanced softmax.
    """

    Config = options.GPaCo
    config: options.GPaCo
    offset: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the projection and an unlabelled queue."""
        dim, width = self.config.dim, self.backbone.num_features
        self.projection = nn.Sequential(
            *(nn.Linear(width, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU()),
            nn.Linear(width, dim),
        )
        if self.config.projection_init == "kaiming_normal":
            nn.init.kaiming_normal_(self.projection.get_parameter("4.weight"))
        self.register_buffer("offset", log_prior(self.info.class_counts), persistent=False)
        self.make_queue(self.config.queue, dim)
        self._keys: dict[int, tuple[Tensor, Tensor]] = {}  # of a step's first pass, by micro-batch

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Forget the features of the step before."""
        if at.micro == 0:
            self._keys.clear()
        return replace(batch, sizes=batch.per_rank)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one row per view; contrasts are the views of all ranks and the queue."""
        config, images, labels = self.config, len(batch.labels), batch.labels.repeat(2)
        features = torch.cat([self.backbone(view) for view in batch.views])  # [2B, D]
        logits = self.head(features)
        anchors = unit(self.projection(features))  # [2B, d]
        sizes = [2 * n for n in batch.per_rank]
        classes, others = differentiable.all_gather_labelled(labels, anchors, sizes)
        if at.micro not in self._keys:
            keys, owners = (second_views(part, sizes) for part in (others.detach(), classes))
            self._keys[at.micro] = keys, owners
        rows = paco_rows(
            logits.to(anchors) + self.offset.to(anchors),
            anchors,
            labels,
            torch.cat([others, self.queue.to(anchors)]),
            torch.cat([classes, self.queue_labels]),
            start=ranks.first_row(sizes),
            alpha=config.alpha,
            beta=config.beta,
            gamma=config.gamma,
            temperature=config.temperature,
            smoothing=config.smoothing,
        )
        weight = torch.full_like(rows, 0.5)
        return Rows(rows, labels, images=images, weight=weight, logits=logits[:images].detach())

    def after_step(self, batches: Sequence[Batch], at: Progress) -> None:
        """Replace the oldest features of the queue by those of the step's second views."""
        keys, labels = zip(*(self._keys[micro] for micro in range(len(batches))), strict=True)
        self.enqueue(torch.cat(keys), torch.cat(labels))


def second_views(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the rows of second views, of rows of both views, gathered over ranks.

    Args:
        rows: for each rank those of its first views, then those of its second views [2B, ...].
        sizes: rows of each rank, even.
    """
    return torch.cat([part[len(part) // 2 :] for part in torch.split(rows, list(sizes))])
