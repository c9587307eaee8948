from __future__ import annotations

from torch import Tensor

from ltbench.distributed import ranks
from ltbench.losses import log_prior, logit_adjusted_rows
from ltbench.losses.class_counts import checked_counts
from ltbench.losses.logits import LADE_FLOOR, lade_bound
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
            sizes = batch.per_rank
            everyone = ranks.all_gather_with_gradient(logits, sizes)
            labels = ranks.all_gather(batch.labels, sizes)
            bound = lade_bound(everyone, labels, self.prior, self.floored, self.config.lam)
            shared = self.config.alpha * bound
        return Rows(rows, batch.labels, images=len(rows), shared=shared, logits=logits.detach())
