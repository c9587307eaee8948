from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ltbench.distributed import ranks
from ltbench.losses import cross_entropy_rows, plot_class_weights
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.methods.previous import require_previous


class PlotStage2(Method):
    """Stage 2 of the released PLOT: classifier trained on adversarially shifted features.

    The classifier of stage 1 is trained further on frozen features. Over the epochs of the stage,
    the loss moves from cross-entropy to class-weighted cross-entropy on features shifted in the
    direction that increases the loss of their own class. Meant for the class-aware sampler.

    Reference: the released code of Zhou et al., Pareto Deep Long-Tailed Recognition: A
        Conflict-Averse Solution, ICLR 2024; after Zhou et al., Class-Conditional
        Sharpness-Aware Minimization for Deep Long-Tailed Recognition, CVPR 2023 (stage 2).
    Departures: the paper describes stage 2 as that of cRT; this is the released code's.
        Gradients are normalised per class of the global batch (of each micro-batch with
        gradient accumulation); a class with zero gradient is not shifted. The release starts
        from the best epoch on the test set, ltbench from the last epoch.
    """

    kind: ClassVar[Kind] = "two-stage"
    freeze: ClassVar[tuple[str, ...]] = ("backbone",)

    Config = options.PlotStage2
    config: options.PlotStage2
    omega: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the class weights from the class counts."""
        require_previous("plot_stage2", previous)
        omega = plot_class_weights(self.info.class_counts, self.config.div)
        self.register_buffer("omega", omega, persistent=False)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image, a mean of plain and shifted loss weighted by the ramp."""
        features = self.backbone(batch.views[0])
        logits = self.head(features)
        directions = class_directions(self.head, features, batch.labels, self.info.num_classes)
        omega = self.omega.to(directions)[batch.labels]  # [B]
        shifted = features + (self.config.adver_reg * omega[:, None] * directions).to(features)
        plain = cross_entropy_rows(logits, batch.labels)
        weighted = omega * cross_entropy_rows(self.head(shifted), batch.labels)
        share = min((at.epoch + 1) / at.epochs, self.config.up_limit)  # A
        rows = share * weighted + (1 - share) * plain
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())


def class_directions(head: nn.Module, features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the gradient of the loss by the features, normalised per class.

    The norm is over all rows of a class in the global batch, so that the number of rows cancels.

    Args:
        head: classifier that treats rows independently.
        features: features [B, D].
        labels: class of each row [B].
        num_classes: number of classes C.

    Returns:
        Detached rows [B, D], in single precision or higher.
    """

    def loss(x: Tensor) -> Tensor:
        return cross_entropy_rows(head(x), labels).sum()

    found: tuple[Tensor, Tensor] = torch.func.grad_and_value(loss)(features.detach())
    gradient = found[0].detach().to(found[1].dtype)
    squares = gradient.new_zeros(num_classes).index_add(0, labels, (gradient**2).sum(dim=1))
    norms = ranks.all_reduce_(squares).sqrt()[labels]  # [B]
    return gradient / norms.clamp(min=torch.finfo(norms.dtype).tiny)[:, None]
