from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ltbench.distributed import differentiable
from ltbench.distributed.copies import to_device
from ltbench.losses.dirichlet import (
    dirmixe_centres,
    dirmixe_losses,
    dirmixe_offsets,
    draw_test_priors,
    upper_semivariance,
)
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.methods.ride import Experts


class DirMixE(Experts):
    """Three experts, trained for test priors drawn around the long tail, uniform and the reverse.

    Late in training, losses far above their mean over the draws are penalised.

    Reference: Yang et al., Harnessing Hierarchical Label Distribution Variations in Test Agnostic
        Long-tail Recognition, ICML 2024, arXiv:2405.07780.
    Departures: priors are drawn anew in each step, where the authors' code draws those of an epoch
        once and shuffles them in later epochs. The penalty goes over the images of all ranks (of
        one micro-batch with gradient accumulation); it belongs to no class, so class-wise updates
        treat it as a shared term. Experts are averaged with equal weights; weights learnt on
        unlabelled test images are ``sade_expert_weights`` of ``ltbench.losses.experts``, outside a
        run. Experts have the backbone's width; the recipes narrow it as the authors do. A
        classifier of the previous stage is replaced.
    """

    Config = options.DirMixE
    config: options.DirMixE

    def setup(self, previous: Method | None) -> None:
        """Create the experts, and the centres of the priors from the class counts."""
        super().setup(previous)
        self._centres = dirmixe_centres(self.info.class_counts)  # on the CPU, where they are drawn

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Draw the test priors of this step; all ranks draw the same."""
        cfg, generator = self.config, at.generator("dirmixe")
        priors, experts = draw_test_priors(self._centres, cfg.draws, cfg.concentration, generator)
        offsets = dirmixe_offsets(priors, self.info.class_counts, cfg.power)
        found = {"offsets": offsets, "experts": experts}
        device = batch.labels.device
        extra = {name: to_device(values, device) for name, values in found.items()}
        return replace(batch, sizes=batch.per_rank, extra={**batch.extra, **extra})

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one row per image, the mean over the draws, and the penalty on their spread."""
        logits = self.expert_logits(batch.views[0])
        offsets, experts = batch.extra["offsets"], batch.extra["experts"]
        losses = dirmixe_losses(logits, batch.labels, offsets, experts)
        start = self.config.penalty_from
        late = start is not None and at.epoch >= start and self.config.penalty > 0
        shared = self.config.penalty * self.spread(losses, batch.per_rank) if late else None
        mean = logits.detach().mean(dim=1)
        return Rows(
            losses.mean(dim=1), batch.labels, images=len(losses), shared=shared, logits=mean
        )

    def spread(self, losses: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Return the upper semi-variance of the draws' losses on the global batch.

        Args:
            losses: of this rank's images under each draw [B, S].
            sizes: images of each rank.
        """
        return upper_semivariance(differentiable.all_reduce(losses.sum(dim=0)) / sum(sizes))
