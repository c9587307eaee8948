from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ltbench.distributed import ranks
from ltbench.losses import logit_adjusted_rows, logit_adjustment_offset
from ltbench.losses.vmf import means_with_sums, proco_logits
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.methods.bcl import unit
from ltbench.methods.previous import continued_cosine
from ltbench.models.batchnorm import SyncBatchNorm2d
from ltbench.models.heads import LinearHead

START = 0.9  # norm of the random mean of a class without images; as in the authors' code


class ProCo(Method):
    """Logit-adjusted classifier plus contrast of two more views with a density of each class.

    The densities are von Mises-Fisher on the unit sphere of projected features, estimated from the
    views of the current and the previous epoch: contrast with infinitely many samples.

    Reference: Du et al., Probabilistic Contrastive Learning for Long-Tailed Visual Recognition,
        TPAMI 2024, arXiv:2403.06726.
    Departures: Bessel functions are exact, where the authors' recurrence is wrong for large
        concentrations and needs its slope clipped. The projection is normalised over the images of
        all ranks, and its layer before the normalisation has no bias, which would cancel. A step's
        views enter the estimates as its first pass sees them, for all passes of an update (SAM,
        PLOT). With gradient accumulation the estimates of a micro-batch include its own views
        only, besides those of earlier steps. A contrastive row has the class of its image. A
        classifier of the previous stage is kept if it is of the same kind, any other is replaced.
    """

    kind: ClassVar[Kind] = "contrastive"
    views: ClassVar[int] = 3

    Config = options.ProCo
    config: options.ProCo
    offset: Tensor
    means: Tensor
    amounts: Tensor
    next_means: Tensor
    next_amounts: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the projection, the estimates and the log prior."""
        width, classes, dim = self.backbone.num_features, self.info.num_classes, self.config.dim
        hidden = self.config.hidden or width
        self.projection = nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            SyncBatchNorm2d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, dim),
        )
        offset = logit_adjustment_offset(self.info.class_counts)
        self.register_buffer("offset", offset, persistent=False)
        for name in ("means", "next_means"):  # of the last epoch and this one; of this one only
            self.register_buffer(name, START * F.normalize(torch.randn(classes, dim), dim=1))
        for name in ("amounts", "next_amounts"):
            self.register_buffer(name, torch.zeros(classes))

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the previous classifier if it is of the kind asked for, else a new one."""
        features, classes = self.backbone.num_features, self.info.num_classes
        if self.config.scale is not None:
            return continued_cosine(previous, features, classes, self.config.scale)
        if previous is not None and isinstance(previous.head, LinearHead):
            return previous.head
        return LinearHead(features, classes)

    @torch.no_grad()
    def on_epoch(self, at: Progress) -> None:
        """Begin with the estimates of the last epoch, and a fresh one for the next."""
        self.means.copy_(self.next_means)
        self.amounts.copy_(self.next_amounts)
        drawn = torch.randn(self.means.shape, generator=at.generator("means"))
        self.next_means.copy_(START * F.normalize(drawn, dim=1))
        self.next_amounts.zero_()

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Count the global batch by class, and make room for the sums of its projected views."""
        labels, sizes = batch.labels, batch.per_rank
        ones = self.amounts.new_ones(len(labels))
        more = torch.zeros_like(self.amounts).index_add(0, labels, ones)
        extra = {
            **batch.extra,
            "amounts": ranks.all_reduce_(more),
            "sums": self.means.new_zeros(2, *self.means.shape),
            "passed": torch.zeros((), dtype=torch.bool, device=labels.device),
        }
        return replace(batch, extra=extra, sizes=sizes)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one classification row per image and one contrastive row per further view."""
        config, labels, count = self.config, batch.labels, len(batch.labels)
        features = self.backbone(torch.cat(batch.views))  # [3B, D]
        logits = self.head(features)[:count]
        anchors = unit(self.projection(features))[count:].view(2, count, self.config.dim)
        means, amounts, more = self.means, self.amounts, batch.extra["amounts"]
        steps = []
        # Each view is contrasted with estimates that include it.
        for sums in self._first_pass(batch, anchors.detach()):
            means, amounts = means_with_sums(means, amounts, sums, more)
            steps.append(means)
        contrast = proco_logits(anchors, torch.stack(steps), config.temperature).flatten(0, 1)
        classified = logit_adjusted_rows(logits, labels, self.offset)
        contrasted = logit_adjusted_rows(contrast, labels.repeat(2), self.offset)
        rows = torch.cat([classified, contrasted.to(classified)])
        weight = torch.full_like(rows, config.alpha / 2)
        weight[:count] = 1.0
        return Rows(rows, labels.repeat(3), images=count, weight=weight, logits=logits.detach())

    @torch.no_grad()
    def after_step(self, batches: Sequence[Batch], at: Progress) -> None:
        """Add the views of the step to both estimates."""
        for means, amounts in (
            (self.means, self.amounts),
            (self.next_means, self.next_amounts),
        ):
            for batch in batches:
                for sums in batch.extra["sums"]:
                    new = means_with_sums(means, amounts, sums, batch.extra["amounts"])
                    for kept, value in zip((means, amounts), new, strict=True):
                        kept.copy_(value)

    @torch.no_grad()
    def _first_pass(self, batch: Batch, anchors: Tensor) -> Tensor:
        """Return the sums of each class's projected views in the first pass [2, C, p].

        They are over the global batch and are kept in it; all ranks take part in the exchange in
        every pass, of the sums or, if those are more, of the features.

        Args:
            batch: images of this rank.
            anchors: their projected views [2, B, p].
        """
        labels, rows, sizes = batch.labels, anchors.transpose(0, 1), batch.per_rank
        few = sum(sizes) < len(self.means)
        if few:
            labels, rows = ranks.all_gather(labels, sizes), ranks.all_gather(rows, sizes)
        found = torch.zeros_like(batch.extra["sums"])
        for own, view in zip(found, rows.to(found).unbind(dim=1), strict=True):
            own.index_add_(0, labels, view)
        if not few:
            ranks.all_reduce_(found)
        sums, passed = batch.extra["sums"], batch.extra["passed"]
        sums.copy_(torch.where(passed, sums, found))
        passed.fill_(True)
        return sums
