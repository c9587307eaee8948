from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ltbench.errors import UserError
from ltbench.losses.class_counts import checked_counts
from ltbench.losses.collaborative import ncl_rows, nclpp_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.models.branches import Branches, ExpertHead, ExpertMean


class NCL(Method):
    """Several networks that learn balanced softmax together, on all classes and on hard ones.

    Each is also distilled into the others. The networks are separate from the first layer on, and
    see the same images.

    Reference: Li et al., Nested Collaborative Learning for Long-Tailed Visual Recognition,
        CVPR 2022, arXiv:2203.15359.
    Departures: without the contrastive branch, which the authors' settings use on Places-LT only.
        Classes that are not hard have the logit 0 in the partial softmax, as in the authors' code.
        With ``prediction: single`` it is the first network that predicts, where the authors print
        the one that is best on the test set. An image is one row: the losses of all networks and
        their divergences. A classifier of the previous stage is replaced.
    """

    kind: ClassVar[Kind] = "architecture"

    Config = options.NCL
    config: options.NCL
    head: ExpertHead
    log_counts: Tensor

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return new classifiers."""
        cfg, width = self.config, self.backbone.num_features
        return ExpertHead(cfg.experts, width, self.info.num_classes, cfg.scale, bias=True)

    def setup(self, previous: Method | None) -> None:
        """Create the other networks and the log counts.

        Raises:
            UserError: more hard classes are asked for than there are classes.
        """
        cfg, classes = self.config, self.info.num_classes
        self.hard = max(1, int(0.3 * classes)) if cfg.hard is None else cfg.hard
        if self.hard > classes:
            raise UserError(
                f"ncl: hard must be at most the number of classes {classes}, found {self.hard}; "
                "lower it"
            )
        first, trained = self.backbone.stages[0], previous is not None
        self.branches = Branches(self.backbone, cfg.experts, first, trained=trained)
        log_counts = checked_counts(self.info.class_counts).log()
        self.register_buffer("log_counts", log_counts, persistent=False)

    def network_logits(self, images: Tensor) -> Tensor:
        """Return the logits of every network [B, E, C] for images [B, 3, H, W]."""
        logits: Tensor = self.head(self.branches(images))
        return logits

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one row per image: the losses of all networks and their divergences."""
        logits = self.network_logits(batch.views[0])
        rows = ncl_rows(logits, batch.labels, self.log_counts, self.hard, self.config.diversity)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach().mean(dim=1))

    def predict(self, images: Tensor) -> Tensor:
        """Return the mean logits of the networks, or those of the first one [B, C]."""
        if self.config.prediction == "single":
            logits: Tensor = self.head.experts[0](self.backbone(images))
            return logits
        return self.network_logits(images).mean(dim=1)

    def export(self) -> nn.Module:
        """Return the networks that predict as a plain module."""
        if self.config.prediction == "single":
            return nn.Sequential(self.backbone, self.head.experts[0])
        return ExpertMean(self.branches.standalone(), self.head)


class NCLPlusPlus(NCL):
    """NCL with several augmented copies of each image, which are distilled into each other too.

    Reference: Tan et al., NCL++: Nested Collaborative Learning for Long-Tailed Visual Recognition,
        Pattern Recognition 2024, arXiv:2306.16709.
    Departures: those of `ncl`. The slope of p log p is 0 at 0, where the authors' code has no
        number in current PyTorch. A copy of an image is one row of its class.
    """

    Config = options.NCLPlusPlus
    config: options.NCLPlusPlus

    @property
    def views(self) -> int:  # type: ignore[override]
        """Copies of each image."""
        return self.config.copies

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one row per copy of an image; those of an image weigh as much as one."""
        cfg, count = self.config, len(batch.labels)
        logits = self.network_logits(torch.cat(batch.views))  # [m B, E, C]
        labels = batch.labels.repeat(cfg.copies)
        rows = nclpp_rows(logits, labels, self.log_counts, self.hard, cfg.copies, cfg.diversity)
        return Rows(
            rows,
            labels,
            images=count,
            weight=torch.full_like(rows, 1 / cfg.copies),
            logits=logits.detach()[:count].mean(dim=1),
        )
