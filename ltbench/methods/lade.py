from __future__ import annotations

import torch
from torch import Tensor

from ltbench.distributed import differentiable
from ltbench.losses import log_prior, logit_adjusted_rows
from ltbench.losses.class_counts import checked_counts
from ltbench.losses.logits import LADE_FLOOR, lade_bound_of_sums, lade_sums
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows


class LADE(Method):
    """Prior-adjusted cross-entropy with a regulariser that pulls logits towards log density ratios.

    Reference: Hong et al., Disentangling Label Distribution for Long-Tailed Visual Recognition,
        CVPR 2021, arXiv:2012.00321.
    Departures: the regulariser's means are over the images of all ranks (of one micro-batch with
        gradient accumulation). It couples the images of a batch and belongs to no class, so
        class-wise updates treat it as a shared term. Defaults are the authors' for CIFAR-100-LT;
        their configuration files and commands disagree elsewhere. Predictions assume a uniform
        test prior.
    """

    Config = options.LADE
    config: options.LADE
    offset: Tensor
    prior: Tensor
    floored: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the prior and its logarithms from the class counts."""
        counts = checked_counts(self.info.class_counts)
        for name, values in (
            ("offset", log_prior(counts)),
            ("prior", counts / counts.sum()),
            ("floored", log_prior(counts, LADE_FLOOR)),
        ):
            self.register_buffer(name, values, persistent=False)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image, and the regulariser of the global batch."""
        logits = self.predict(batch.views[0])
        rows = logit_adjusted_rows(logits, batch.labels, self.offset)
        shared = None
        if self.config.alpha > 0:
            shared = self.config.alpha * self.bound(logits, batch)
        return Rows(rows, batch.labels, images=len(rows), shared=shared, logits=logits.detach())

    def bound(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the regulariser of the global batch, from sums over classes on each rank.

        Args:
            logits: of this rank's images [B, C].
            batch: these images.
        """
        present, own, spread = lade_sums(logits, batch.labels, self.floored)
        largest = differentiable.from_largest(spread)
        sums = torch.stack([present, own, (spread - largest).exp()])
        present, own, share = differentiable.all_reduce(sums)
        images, lam = sum(batch.per_rank), self.config.lam
        return lade_bound_of_sums(present, own, largest + share.log(), images, self.prior, lam)
