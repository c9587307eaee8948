from __future__ import annotations

from torch import Tensor

from ltbench.losses.experts import balpoe_offsets, balpoe_rows, balpoe_strengths
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.methods.mixup import Mixup
from ltbench.methods.ride import Experts


class BalPoE(Experts, Mixup):
    """Experts trained for different label distributions whose mean logits fit the uniform one.

    The loss of each expert adds the log training prior to its logits, with a strength of its own;
    the mean strength is 1, so that the priors cancel in the mean. Mixup calibrates the experts.

    Reference: Sanchez Aimar et al., Balanced Product of Calibrated Experts for Long-Tailed
        Recognition, CVPR 2023, arXiv:2206.05260.
    Departures: none known in the loss, which is the mean over experts (RIDE and SADE have the
        sum). Mixup is that of `mixup`. CutMix and mixed logits, further options of the authors'
        code, are not included. A mixed image is one row with the class of its first label. A
        classifier of the previous stage is replaced.
    """

    Config = options.BalPoE
    config: options.BalPoE
    offsets: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the experts and the training offsets of their logits."""
        super().setup(previous)
        cfg, strengths = self.config, self.config.strengths
        if isinstance(strengths, str):
            given = balpoe_strengths(cfg.experts, cfg.tau_min, cfg.tau_max, strengths)
            offsets = balpoe_offsets(self.info.class_counts, given)
        else:
            offsets = balpoe_offsets(self.info.class_counts, strengths)
        self.register_buffer("offsets", offsets, persistent=False)

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Mix the batch with a permutation of itself, unless mixup is off."""
        return super().prepare(batch, at) if self.config.alpha > 0 else batch

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one row per image, the mean over experts, with the class of its first label."""
        logits = self.expert_logits(batch.views[0])
        rows = balpoe_rows(logits, batch.labels, self.offsets)
        if batch.partner is not None:
            other = balpoe_rows(logits, batch.partner, self.offsets)
            rows = batch.lam * rows + (1 - batch.lam) * other
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach().mean(dim=1))
