from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ltbench.distributed import ranks
from ltbench.losses.self_distillation import mdcs_confident, mdcs_offsets, mdcs_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.methods.ride import Experts


class MDCS(Experts):
    """Experts of opposite logit adjustment, each distilled from a weak into a strong view.

    The first view is the weak one, the second the strong one. Where an expert is right on the weak
    view, its prediction there is the target of its prediction on the strong view.

    Reference: Zhao et al., MDCS: More Diverse Experts with Consistency Self-distillation for
        Long-tailed Recognition, ICCV 2023, arXiv:2308.09922.
    Departures: the authors' loader for iNaturalist gives one view where their loss needs two.
        Experts have the backbone's width; the recipes narrow it as the authors do. An image is one
        row: the mean of both views' losses, and its part of the mean divergence. With gradient
        accumulation that mean is over each micro-batch. A classifier of the previous stage is
        replaced.
    """

    views: ClassVar[int] = 2

    Config = options.MDCS
    config: options.MDCS
    offsets: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the experts and the offsets of their logits."""
        super().setup(previous)
        offsets = mdcs_offsets(self.info.class_counts, self.config.powers)
        self.register_buffer("offsets", offsets, persistent=False)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one row per image: the experts' losses on both views and their consistency."""
        cfg, labels = self.config, batch.labels
        logits = self.expert_logits(torch.cat(batch.views[:2]))  # [2B, E, C]
        weak, strong = logits.chunk(2)
        rows = mdcs_rows(
            weak,
            strong,
            labels,
            self.offsets,
            cfg.consistency * min((at.epoch + 1) / cfg.warmup, 1.0),
            shares=shares_of(mdcs_confident(weak, labels, self.offsets)),
        )
        return Rows(rows, labels, images=len(rows), logits=weak.detach().mean(dim=1))


def shares_of(chosen: Tensor) -> Tensor:
    """Return the share of chosen images of each expert over all ranks [E].

    Args:
        chosen: whether each image of this rank is chosen, by expert, bool [B, E].
    """
    sums = torch.cat([chosen.sum(dim=0), chosen.new_full((1,), len(chosen), dtype=torch.int64)])
    found = ranks.all_reduce_(sums.double())
    return found[:-1] / found[-1]
