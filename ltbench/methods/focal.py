from __future__ import annotations

from ltbench.losses.logits import focal_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows


class Focal(Method):
    """Cross-entropy that gives less weight to images already classified with confidence.

    Reference: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, arXiv:1708.02002,
        Eqn 4.
    Departures: the probability is that of a softmax, as in later long-tailed comparisons; the
        paper's detector has one sigmoid per class. No class weights (the paper's alpha); see
        `class_balanced` for focal loss with weights.
    """

    Config = options.Focal
    config: options.Focal

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image."""
        logits = self.predict(batch.views[0])
        rows = focal_rows(logits, batch.labels, self.config.gamma)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())
