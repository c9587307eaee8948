from __future__ import annotations

from typing import ClassVar

from torch import nn

from ltbench.losses import LabelAwareSmoothingLoss
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.methods.previous import require_previous
from ltbench.models.heads import ScaledHead


class MiSLAS(Method):
    """Stage 2 of MiSLAS: classifier trained further, with learnable scales and label smoothing.

    Meant for the class-aware sampler after a `mixup` stage, without mixup of its own.

    Reference: Zhong et al., Improving Calibration for Long-Tailed Recognition, CVPR 2021,
        arXiv:2104.00466 (label-aware smoothing, learnable weight scaling, shift learning on BN).
    Departures: smoothed mass goes to all classes, the label included, as in the authors' code;
        the paper excludes the label. Shift learning is ``frozen_bn: train``, the default here;
        the authors' CIFAR-10 settings need ``frozen_bn: eval``. The smaller learning rate of the
        classifier is ``optim.lr_factors: {head.head: ...}`` of the stage.
    """

    kind: ClassVar[Kind] = "two-stage"
    freeze: ClassVar[tuple[str, ...]] = ("backbone",)

    Config = options.MiSLAS
    config: options.MiSLAS

    def setup(self, previous: Method | None) -> None:
        """Create the loss from the class counts."""
        config = self.config
        self.criterion = LabelAwareSmoothingLoss(
            self.info.class_counts,
            head=config.smooth_head,
            tail=config.smooth_tail,
            shape=config.shape,
            power=config.power,
            reduction="none",
        )

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the previous classifier, which stays trainable, with learnable scales."""
        return ScaledHead(require_previous("mislas", previous).head, self.info.num_classes)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image."""
        logits = self.predict(batch.views[0])
        rows = self.criterion(logits, batch.labels)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())
