from __future__ import annotations

from torch import Tensor

from ltbench.losses.experts import sade_offsets, sade_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.methods.ride import Experts


class SADE(Experts):
    """Three experts, trained for a long-tailed, a uniform and an inversely long-tailed test prior.

    Reference: Zhang et al., Self-Supervised Aggregation of Diverse Experts for Test-Agnostic
        Long-Tailed Recognition, NeurIPS 2022, arXiv:2107.09249, Eqns 2-4.
    Departures: experts are averaged with equal weights, as for the published results on balanced
        test sets; weights learnt on unlabelled test images are ``sade_expert_weights`` of
        ``ltbench.losses.experts``, outside a run. Experts have the backbone's width; the recipes
        narrow it as the authors do. A classifier of the previous stage is replaced.
    """

    Config = options.SADE
    config: options.SADE
    offsets: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the experts and the training offsets of their logits."""
        super().setup(previous)
        offsets = sade_offsets(self.info.class_counts, self.config.tau)
        self.register_buffer("offsets", offsets, persistent=False)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one row per image: the summed losses of the three experts."""
        logits = self.expert_logits(batch.views[0])
        rows = sade_rows(logits, batch.labels, self.offsets)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach().mean(dim=1))
