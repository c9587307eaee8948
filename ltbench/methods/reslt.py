from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ltbench.distributed import ranks
from ltbench.errors import UserError
from ltbench.losses.branches import RESLT_FLOOR, rarest_classes, reslt_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.models.residual import ResLTHead, ResLTNetwork, branch_features


class ResLT(Method):
    """Three branches, for all, for medium and tail, and for tail classes, whose logits are added.

    A branch without classes is omitted, as in the authors' code for iNaturalist.

    Reference: Cui et al., ResLT: Residual Learning for Long-Tailed Recognition, TPAMI 2022,
        arXiv:2101.10633.
    Departures: evaluation runs the branches before pooling, as training does, unless
        ``eval_after_pooling`` is set; the authors' large models run them after it. Groups are
        given as numbers of rarest classes, so labels need not be sorted. An image is one row; the
        divisor of the branch losses is their number in the global batch (in each micro-batch with
        gradient accumulation). A classifier of the previous stage is replaced.
    """

    kind: ClassVar[Kind] = "architecture"

    Config = options.ResLT
    config: options.ResLT
    head: ResLTHead
    medium_and_tail: Tensor
    tail: Tensor

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return new branches and their classifier."""
        classes = self.info.num_classes
        branches = 1 + sum(size > 0 for size in self.config.group_sizes(classes))
        return ResLTHead(self.backbone.num_features, classes, self.config.block, branches)

    def setup(self, previous: Method | None) -> None:
        """Create the masks of the class groups.

        Raises:
            UserError: a group is larger than the number of classes.
        """
        classes = self.info.num_classes
        sizes = self.config.group_sizes(classes)
        if max(sizes) > classes:
            raise UserError(
                f"reslt: medium_and_tail and tail must be at most the number of classes "
                f"{classes}, found {max(sizes)}; lower them"
            )
        for name, size in zip(("medium_and_tail", "tail"), sizes, strict=True):
            members = rarest_classes(self.info.class_counts, size)
            self.register_buffer(name, members, persistent=False)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image."""
        labels = batch.labels
        logits = self.head(branch_features(self.backbone, self.head, batch.views[0]))
        learners = (1 + self.medium_and_tail.double() + self.tail)[labels]  # [B]
        totals = torch.stack([learners.sum(), learners.new_full((), len(labels))])
        losses, images = ranks.all_reduce_(totals).unbind()
        rows = reslt_rows(
            logits,
            labels,
            self.medium_and_tail,
            self.tail,
            self.config.beta,
            contributions=losses / images,
            fused_floor=RESLT_FLOOR if self.config.fused_floor else 0.0,
        )
        return Rows(rows, labels, images=len(rows), logits=logits.detach().sum(dim=1))

    def predict(self, images: Tensor) -> Tensor:
        """Return the summed logits of the branches [B, C]."""
        logits: Tensor = self.export()(images)  # wraps the method's own modules
        return logits

    def export(self) -> nn.Module:
        """Return backbone and branches as a plain module."""
        cfg = self.config
        return ResLTNetwork(self.backbone, self.head, cfg.gamma, cfg.eval_after_pooling)
