from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ltbench.losses import cross_entropy_rows
from ltbench.losses.logits import disalign_logits, generalised_weights
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.methods.previous import require_previous

Form = Literal["paper", "code"]


class CalibratedHead(nn.Module):
    """Classifier with per-class scale and shift of the logits, weighted by a confidence score.

    Reference: Zhang et al., Distribution Alignment: A Unified Framework for Long-Tail Visual
        Recognition, CVPR 2021, arXiv:2103.16370.
    Departures: the weights of the confidence unit are initialised to 0.1, as in the authors' code.

    Args:
        head: the classifier to calibrate; freezing it is up to the method.
        num_features: number of features D.
        num_classes: number of classes C.
        form: see ``ltbench.losses.logits.disalign_logits``.
    """

    def __init__(
        self, head: nn.Module, num_features: int, num_classes: int, form: Form = "code"
    ) -> None:
        super().__init__()
        self.head = head
        self.form = form
        self.scale = nn.Parameter(torch.ones(num_classes))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.confidence = nn.Linear(num_features, 1)
        nn.init.constant_(self.confidence.weight, 0.1)

    def forward(self, features: Tensor) -> Tensor:
        """Return calibrated logits [B, C]."""
        confidence = self.confidence(features).sigmoid()  # [B, 1]
        return disalign_logits(self.head(features), confidence, self.scale, self.bias, self.form)


class DisAlign(Method):
    """Calibration of a trained model's logits by class and confidence, with a re-weighted loss.

    Only scale, bias and confidence unit are trained.

    Reference: Zhang et al., Distribution Alignment: A Unified Framework for Long-Tail Visual
        Recognition, CVPR 2021, arXiv:2103.16370.
    Departures: the default form, (1 + c a) z + c b, is that of the released classification code,
        which produced the published ImageNet-LT accuracies; the paper's c (a z + b) + (1 - c) z
        is `form: paper`. As in that code, the loss is a weighted mean with weights that are not
        clipped, and normalisation of the frozen backbone stays in training mode;
        ``frozen_bn: eval`` keeps the statistics of the previous stage.
    """

    kind: ClassVar[Kind] = "two-stage"
    freeze: ClassVar[tuple[str, ...]] = ("backbone", "head.head")

    Config = options.DisAlign
    config: options.DisAlign
    class_weights: Tensor

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the previous classifier, calibrated."""
        head = require_previous("disalign", previous).head
        features, classes = self.backbone.num_features, self.info.num_classes
        return CalibratedHead(head, features, classes, self.config.form)

    def setup(self, previous: Method | None) -> None:
        """Create the class weights from the class counts."""
        weights = generalised_weights(self.info.class_counts, self.config.rho)
        self.register_buffer("class_weights", weights, persistent=False)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image, weighted by class."""
        logits = self.predict(batch.views[0])
        rows = cross_entropy_rows(logits, batch.labels)
        return Rows(
            rows,
            batch.labels,
            images=len(rows),
            weight=self.class_weights.to(rows)[batch.labels],
            divide="weight",
            logits=logits.detach(),
        )
