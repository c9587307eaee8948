from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from ltbench.losses import LogitAdjustedLoss, logit_adjustment_offset
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.methods.previous import require_previous
from ltbench.models.heads import ShiftedHead


class LogitAdjustment(Method):
    """Cross-entropy with the log of the training prior added to the logits, in training only.

    Reference: Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021,
        arXiv:2007.07314, Eqn 10.
    Departures: the prior has the floor of the public code, log(pi^tau + 1e-12).
    """

    Config = options.LogitAdjustment
    config: options.LogitAdjustment

    def setup(self, previous: Method | None) -> None:
        """Create the loss from the class counts."""
        self.criterion = LogitAdjustedLoss(self.info.class_counts, self.config.tau, "none")

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image; logits for prediction are not adjusted by the prior."""
        logits = self.predict(batch.views[0])
        rows = self.criterion(logits, batch.labels)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())


class LogitAdjustmentPosthoc(Method):
    """Subtraction of the log training prior from a trained model's logits.

    Reference: Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021,
        arXiv:2007.07314, Eqn 9.
    Departures: the prior has the floor of the public code, log(pi^tau + 1e-12).
    """

    kind: ClassVar[Kind] = "post-hoc"
    trains: ClassVar[bool] = False

    Config = options.LogitAdjustmentPosthoc
    config: options.LogitAdjustmentPosthoc

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the previous classifier with the log prior subtracted from its logits."""
        head = require_previous("logit_adjustment_posthoc", previous).head
        offset = -logit_adjustment_offset(self.info.class_counts, self.config.tau)
        return ShiftedHead(head, offset.to(torch.get_default_dtype()))
