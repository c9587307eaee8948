from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ltbench.errors import UserError
from ltbench.losses import effective_number_weights
from ltbench.losses.retraining import binary_softmax_rows, max_norm, max_norm_limit
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.methods.previous import require_previous


class WeightBalancing(Method):
    """Stage 2 of weight balancing: classifier trained further, with bounded weight norms.

    The loss is class-balanced, and weights of a class that are longer than a limit are shortened
    to it (MaxNorm); a large weight decay, 0.1, belongs to it. Meant for instance sampling after a
    `ce` stage with a weight decay of 5e-3, which does most of the work.

    Reference: Alshammari et al., Long-Tailed Recognition via Weight Balancing, CVPR 2022,
        arXiv:2203.14197.
    Departures: as in the authors' code, the loss is the binary cross-entropy of the softmax
        probabilities, the limit depends on the norms as the stage begins, weights are shortened
        at the end of an epoch (`project: step` is the paper's) and the bias is left alone; its
        cut-off of logarithms at -100 is not included. Normalisation layers of the frozen backbone
        stay in training mode. The authors' stage 2 starts from the best epoch on the test set,
        ltbench's from the last epoch.
    """

    kind: ClassVar[Kind] = "two-stage"
    freeze: ClassVar[tuple[str, ...]] = ("backbone",)

    Config = options.WeightBalancing
    config: options.WeightBalancing
    class_weights: Tensor
    limit: Tensor

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the previous linear classifier, which stays trainable."""
        head = require_previous("weight_balancing", previous).head
        if not isinstance(head, nn.Linear):
            raise UserError(
                "method `weight_balancing` needs a linear classifier from the previous stage, "
                f"found {type(head).__name__}; put it after e.g. `ce` or `mixup`"
            )
        return head

    def setup(self, previous: Method | None) -> None:
        """Create the class weights, and the limit from the norms as the stage begins."""
        weights = effective_number_weights(self.info.class_counts, self.config.beta)
        self.register_buffer("class_weights", weights, persistent=False)
        limit = max_norm_limit(self.head.get_parameter("weight"), self.config.limit)
        self.register_buffer("limit", limit)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image, weighted by class."""
        logits = self.predict(batch.views[0])
        rows = binary_softmax_rows(logits, batch.labels)
        return Rows(
            rows,
            batch.labels,
            images=len(rows),
            weight=self.class_weights.to(rows)[batch.labels],
            logits=logits.detach(),
        )

    @torch.no_grad()
    def after_step(self, batches: Sequence[Batch], at: Progress) -> None:
        """Shorten the classifier's weights, after each step or the last one of an epoch."""
        if self.config.project == "step" or at.step + 1 == at.steps:
            weight = self.head.get_parameter("weight")
            weight.copy_(max_norm(weight, self.limit))
