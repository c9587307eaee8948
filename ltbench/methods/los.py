from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ltbench.losses import label_aware_smoothing_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.methods.previous import require_previous


class LOS(Method):
    """Stage 2 of LOS: classifier trained further, with nearly all of the label smoothed away.

    The smoothing is the same for all classes and needs no class counts. Meant for instance
    sampling after a `ce` stage with a weight decay of 5e-3, and a learning rate as small as 5e-4.

    Reference: Sun et al., Rethinking Classifier Re-Training in Long-Tailed Recognition: Label
        Over-Smooth Can Balance, ICLR 2025 (earlier arXiv:2403.00250).
    Departures: none known. Normalisation layers of the frozen backbone stay in training mode, as
        in the authors' code; ``frozen_bn: eval`` of the stage keeps their statistics. The authors'
        stage 2 starts from the best epoch on the test set, ltbench's from the last epoch.
    """

    kind: ClassVar[Kind] = "two-stage"
    freeze: ClassVar[tuple[str, ...]] = ("backbone",)

    Config = options.LOS
    config: options.LOS
    smoothing: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the smoothing, the same for each class."""
        require_previous("los", previous)
        smoothing = torch.full((self.info.num_classes,), self.config.smoothing, dtype=torch.float64)
        self.register_buffer("smoothing", smoothing, persistent=False)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image."""
        logits = self.predict(batch.views[0])
        rows = label_aware_smoothing_rows(logits, batch.labels, self.smoothing)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())
