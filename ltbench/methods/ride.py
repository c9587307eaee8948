from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ltbench.distributed import ranks
from ltbench.losses import effective_number_weights, ldam_margins
from ltbench.losses.experts import diversity_rows, expert_ldam_rows, ride_temperatures
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.models.branches import Branches, ExpertHead, ExpertMean


class Experts(Method):
    """Base of methods with experts: a shared trunk, separate later stages and cosine heads."""

    kind: ClassVar[Kind] = "architecture"

    Config = options.Experts
    config: options.Experts

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return new cosine classifiers."""
        cfg = self.config
        return ExpertHead(cfg.experts, self.backbone.num_features, self.info.num_classes, cfg.scale)

    def setup(self, previous: Method | None) -> None:
        """Create the stages of the additional experts."""
        cfg, trained = self.config, previous is not None
        self.branches = Branches(self.backbone, cfg.experts, cfg.branch_at, trained=trained)

    def expert_logits(self, images: Tensor) -> Tensor:
        """Return the logits of every expert [B, E, C] for images [B, 3, H, W]."""
        logits: Tensor = self.head(self.branches(images))
        return logits

    def predict(self, images: Tensor) -> Tensor:
        """Return the mean logits of the experts [B, C]."""
        return self.expert_logits(images).mean(dim=1)

    def export(self) -> nn.Module:
        """Return backbone, experts and classifiers as a plain module."""
        return ExpertMean(self.branches.standalone(), self.head)


class RIDE(Experts):
    """Several experts, each trained with LDAM and pushed apart, most on rare classes.

    Reference: Wang et al., Long-Tailed Recognition by Routing Diverse Distribution-Aware Experts,
        ICLR 2021, arXiv:2010.01809, Eqns 2-4.
    Departures: the first stage of training only, without the routing of images to fewer experts
        and without distillation. Experts have the backbone's width; the recipes narrow it as the
        authors do. Experts are compared with their mean, and class temperatures apply only from
        ``reweight_from`` on, as in the authors' code. An image is one row: its part of the
        weighted mean of all experts' losses, and their diversity. With gradient accumulation the
        weighted mean is that of each micro-batch. A classifier of the previous stage is replaced.
    """

    Config = options.RIDE
    config: options.RIDE
    margins: Tensor
    class_weights: Tensor
    temperatures: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the experts, and margins, weights and temperatures from the class counts."""
        super().setup(previous)
        cfg, counts = self.config, self.info.class_counts
        for name, values in (
            ("margins", ldam_margins(counts, cfg.max_margin)),
            ("class_weights", effective_number_weights(counts, cfg.beta)),
            ("temperatures", ride_temperatures(counts, cfg.temperature_factor)),
        ):
            self.register_buffer(name, values, persistent=False)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one row per image: the losses of all experts and their diversity."""
        cfg, labels = self.config, batch.labels
        logits = self.expert_logits(batch.views[0])
        rows = expert_ldam_rows(logits, labels, self.margins, cfg.scale)
        temperatures = torch.ones_like(self.temperatures)
        if cfg.reweight_from is not None and at.epoch >= cfg.reweight_from:
            temperatures = self.temperatures
            rows = rows * mean_share(self.class_weights, labels).to(rows)
        rows = rows + cfg.diversity * diversity_rows(logits, temperatures)
        return Rows(rows, labels, images=len(rows), logits=logits.detach().mean(dim=1))


def mean_share(class_weights: Tensor, labels: Tensor) -> Tensor:
    """Return row weights divided by their mean: a plain mean with them is a weighted mean.

    Args:
        class_weights: class weights [C].
        labels: class of each row of this rank [B]; the mean is over all ranks.
    """
    weights = class_weights[labels]
    sums = torch.stack([weights.sum(), weights.new_full((), float(len(labels)))])
    total, images = ranks.all_reduce_(sums).unbind()
    return weights * (images / total)
