from __future__ import annotations

from ltbench.losses import BalancedSoftmaxLoss
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows


class BalancedSoftmax(Method):
    """Cross-entropy with the log class counts added to the logits, in training only.

    Reference: Ren et al., Balanced Meta-Softmax for Long-Tailed Visual Recognition,
        NeurIPS 2020, arXiv:2007.10740, Eqn 3-4.
    Departures: the meta sampler of the same paper is not included.
    """

    Config = options.BalancedSoftmax

    def setup(self, previous: Method | None) -> None:
        """Create the loss from the class counts."""
        self.criterion = BalancedSoftmaxLoss(self.info.class_counts, "none")

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image; logits for prediction are not adjusted by the prior."""
        logits = self.predict(batch.views[0])
        rows = self.criterion(logits, batch.labels)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())
