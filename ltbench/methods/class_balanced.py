from __future__ import annotations

from torch import Tensor

from ltbench.losses import effective_number_weights
from ltbench.losses.logits import focal_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows


class ClassBalanced(Method):
    """Cross-entropy or focal loss, weighted by the inverse effective number of images of a class.

    With a later `reweight_from` and `divide: weight` this is cross-entropy with deferred
    re-weighting (CE-DRW).

    Reference: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019,
        arXiv:1901.05555, Eqn 10; Cao et al., Learning Imbalanced Datasets with
        Label-Distribution-Aware Margin Loss, NeurIPS 2019, arXiv:1906.07413 (deferral).
    Departures: softmax form only; the paper's best results come from its sigmoid focal form.
        The weights sum to C and the loss is a mean over images, as in the paper; CE-DRW in the
        code of LDAM is a weighted mean, which is `divide: weight`.
    """

    Config = options.ClassBalanced
    config: options.ClassBalanced
    class_weights: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the class weights from the class counts."""
        weights = effective_number_weights(self.info.class_counts, self.config.beta)
        self.register_buffer("class_weights", weights, persistent=False)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image, weighted by class from ``reweight_from`` on."""
        logits = self.predict(batch.views[0])
        rows = focal_rows(logits, batch.labels, self.config.gamma)
        start = self.config.reweight_from
        weighted = start is not None and at.epoch >= start
        return Rows(
            rows,
            batch.labels,
            images=len(rows),
            weight=self.class_weights.to(rows)[batch.labels] if weighted else None,
            divide=self.config.divide,
            logits=logits.detach(),
        )
