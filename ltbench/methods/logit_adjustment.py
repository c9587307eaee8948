from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from ltbench import schema
from ltbench.backbones.base import Backbone
from ltbench.data.base import DatasetInfo
from ltbench.heads import ShiftedHead
from ltbench.losses import LogitAdjustedLoss, logit_adjustment_offset
from ltbench.methods.base import Batch, Method, Progress, Rows
from ltbench.methods.previous import require_previous


class LogitAdjustment(Method):
    """Cross-entropy with the log of the training prior added to the logits (loss form).

    Reference: Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021,
        arXiv:2007.07314, Eqn 10.
    Departures: the prior has the public code's floor, log(pi^tau + 1e-12).
    """

    class Config(schema.Config):
        """Options of logit adjustment in the loss."""

        tau: float = Field(1.0, ge=0)
        """Strength of the prior; 1 is Balanced Softmax, 0 is cross-entropy."""

    def __init__(
        self,
        config: Config,
        backbone: Backbone,
        info: DatasetInfo,
        previous: Method | None = None,
    ) -> None:
        super().__init__(config, backbone, info, previous)
        self.criterion = LogitAdjustedLoss(info.class_counts, config.tau, "none")

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one row per image; the logits for prediction carry no prior."""
        logits = self.predict(batch.views[0])
        rows = self.criterion(logits, batch.labels)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())


class LogitAdjustmentPosthoc(Method):
    """The log of the training prior subtracted from a trained model's logits.

    Reference: Menon et al., Long-Tail Learning via Logit Adjustment, ICLR 2021,
        arXiv:2007.07314, Eqn 9.
    Departures: the prior has the public code's floor, log(pi^tau + 1e-12).
    """

    trains: ClassVar[bool] = False

    class Config(schema.Config):
        """Options of post-hoc logit adjustment."""

        tau: float = Field(1.0, ge=0)
        """Strength of the prior; 0 leaves the model as it is."""

    def __init__(
        self,
        config: Config,
        backbone: Backbone,
        info: DatasetInfo,
        previous: Method | None = None,
    ) -> None:
        previous = require_previous("logit_adjustment_posthoc", previous)
        super().__init__(config, backbone, info, previous)
        offset = -logit_adjustment_offset(info.class_counts, config.tau)
        self.head = ShiftedHead(self.head, offset.to(torch.get_default_dtype()))
