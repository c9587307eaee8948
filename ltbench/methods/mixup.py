from __future__ import annotations

from dataclasses import replace

import torch
from scipy.special import betaincinv
from torch import Tensor

from ltbench.distributed import ranks
from ltbench.losses import cross_entropy_rows, mixup_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows


class Mixup(Method):
    """Cross-entropy on convex combinations of image pairs and their labels.

    Reference: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018,
        arXiv:1710.09412, Eqn 1; for long tails: Zhong et al., CVPR 2021, arXiv:2104.00466.
    Departures: none known in the loss. One lambda and one permutation per batch, as in the
        authors' code. Both come from one generator, lambda by inverting the Beta distribution
        function, so that runs are reproducible; the permutation is of the global batch, so that
        the number of ranks does not matter. A mixed image is one row with the class of its first
        label (PLOT's paper leaves that open). With gradient accumulation each micro-batch is
        mixed within itself.
    """

    Config = options.Mixup
    config: options.Mixup

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Mix the batch with a permutation of itself; all ranks draw the same."""
        alpha, generator = self.config.alpha, at.generator("mixup")
        uniform = torch.rand((), generator=generator, dtype=torch.float64)
        batch = replace(batch, sizes=batch.per_rank)
        return mix(
            batch,
            lam=float(betaincinv(alpha, alpha, uniform.item())),
            permutation=torch.randperm(sum(batch.sizes), generator=generator),
        )

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image, with the class of its first label."""
        logits = self.predict(batch.views[0])
        if batch.partner is None:
            rows = cross_entropy_rows(logits, batch.labels)
        else:
            rows = mixup_rows(logits, batch.labels, batch.partner, batch.lam)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())


def mix(batch: Batch, lam: float, permutation: Tensor) -> Batch:
    """Return ``lam`` times each image plus ``1 - lam`` times its partner.

    Args:
        batch: images of this rank.
        lam: weight of the first image, in [0, 1].
        permutation: partner of each image of the global batch, ranks in order; on the CPU.
    """
    sizes = batch.per_rank
    *others, partner = ranks.fetch_rows(
        [*batch.views, batch.labels], torch.split(permutation, list(sizes)), sizes
    )
    views = tuple(
        lam * view + (1 - lam) * other for view, other in zip(batch.views, others, strict=True)
    )
    return replace(batch, views=views, partner=partner, lam=lam)
