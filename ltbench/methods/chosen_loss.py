from __future__ import annotations

from torch import Tensor, nn

from ltbench.losses import (
    cross_entropy_rows,
    effective_number_weights,
    ldam_margins,
    ldam_rows,
    log_prior,
    logit_adjusted_rows,
)
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.methods.previous import continued_cosine


class ChosenLoss(Method):
    """Base of methods that change images only: one of the usual losses, on plain or mixed images.

    Reference: Ren et al., NeurIPS 2020, arXiv:2007.10740 (balanced softmax); Cao et al., NeurIPS
        2019, arXiv:1906.07413 (LDAM and deferred re-weighting).
    Departures: those of ``BalancedSoftmax`` and ``LDAMDRW``.
    """

    config: options.ChosenLoss
    class_weights: Tensor
    margins: Tensor
    prior: Tensor

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the classifier of the previous stage or a new one; a cosine for LDAM."""
        if self.config.loss != "ldam_drw":
            return super().make_head(previous)
        features, classes = self.backbone.num_features, self.info.num_classes
        return continued_cosine(previous, features, classes, self.config.scale)

    def setup(self, previous: Method | None) -> None:
        """Compute prior, margins and class weights from the class counts."""
        counts = self.info.class_counts
        for name, values in {
            "prior": log_prior(counts, 0.0),
            "margins": ldam_margins(counts, self.config.max_margin),
            "class_weights": effective_number_weights(counts, self.config.beta),
        }.items():
            self.register_buffer(name, values, persistent=False)

    def weights(self, at: Progress) -> Tensor | None:
        """Return the class weights [C] of an epoch, or ``None`` if all are equal."""
        start = self.config.reweight_from
        deferred = self.config.loss != "bs" and start is not None and at.epoch >= start
        return self.class_weights if deferred else None

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the chosen loss of each row [B], without class weights."""
        if self.config.loss == "bs":
            return logit_adjusted_rows(logits, labels, self.prior)
        if self.config.loss == "ldam_drw":
            return ldam_rows(logits, labels, self.margins, self.config.scale)
        return cross_entropy_rows(logits, labels)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image, with the class of its first label.

        The losses against the first and against the second labels of mixed images are weighted
        means, each with its own sum of weights, which ``prepare`` leaves in ``extra["means"]``.
        """
        logits, weights = self.predict(batch.views[0]), self.weights(at)
        rows = self.rows(logits, batch.labels)
        weight = None if weights is None else weights.to(rows)[batch.labels]
        if batch.partner is None:
            return Rows(
                rows,
                batch.labels,
                images=len(rows),
                weight=weight,
                divide="weight",
                logits=logits.detach(),
            )
        others = self.rows(logits, batch.partner)
        if weights is not None and weight is not None:
            first, second = batch.extra["means"].to(rows)
            weight = weight / first
            others = others * (weights.to(rows)[batch.partner] / second / weight)
        return Rows(
            batch.lam * rows + (1 - batch.lam) * others,
            batch.labels,
            images=len(rows),
            weight=weight,
            logits=logits.detach(),
        )
