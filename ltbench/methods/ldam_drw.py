from __future__ import annotations

from torch import Tensor, nn

from ltbench.losses import LDAMLoss, effective_number_weights
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.methods.previous import continued_cosine


class LDAMDRW(Method):
    """Cosine classifier with larger margins for rarer classes, and class weights late in training.

    Reference: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin
        Loss, NeurIPS 2019, arXiv:1906.07413, Algorithm 1.
    Departures: the deferred weights are those of effective numbers, as in the authors' code,
        where the paper's algorithm has 1/n_k. The scale belongs to the classifier, not to the
        loss, so that confidences are those of the trained model. A cosine classifier of the
        previous stage with the same scale is kept, any other is replaced.
    """

    Config = options.LDAMDRW
    config: options.LDAMDRW
    class_weights: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the loss and the class weights from the class counts."""
        cfg, counts = self.config, self.info.class_counts
        self.criterion = LDAMLoss(counts, cfg.max_margin, cfg.scale, "none")
        weights = effective_number_weights(counts, cfg.beta)
        self.register_buffer("class_weights", weights, persistent=False)

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the previous classifier if it is a cosine with this scale, else a new one."""
        features, classes = self.backbone.num_features, self.info.num_classes
        return continued_cosine(previous, features, classes, self.config.scale)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image, weighted by class in the deferred phase."""
        logits = self.predict(batch.views[0])
        rows = self.criterion(logits, batch.labels)
        start = self.config.reweight_from
        deferred = start is not None and at.epoch >= start
        return Rows(
            rows,
            batch.labels,
            images=len(rows),
            weight=self.class_weights.to(rows)[batch.labels] if deferred else None,
            divide="weight",
            logits=logits.detach(),
        )
