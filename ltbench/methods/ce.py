from __future__ import annotations

from ltbench.losses import cross_entropy_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows


class CE(Method):
    """Plain cross-entropy (empirical risk minimisation).

    Reference: the common baseline; schedules follow Cao et al., NeurIPS 2019, arXiv:1906.07413
        (CIFAR) and Kang et al., ICLR 2020, arXiv:1910.09217 (large data sets).
    Departures: none known.
    """

    Config = options.CE

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image."""
        logits = self.predict(batch.views[0])
        rows = cross_entropy_rows(logits, batch.labels)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())
