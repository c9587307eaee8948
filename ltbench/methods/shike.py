from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ltbench.errors import UserError
from ltbench.losses.class_counts import checked_counts
from ltbench.losses.experts import sade_rows
from ltbench.losses.self_distillation import shike_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.methods.previous import require_previous
from ltbench.methods.ride import Experts
from ltbench.models.branches import ExpertHead
from ltbench.models.fusion import FusedBranches


class SHIKE(Experts):
    """Stage 1 of SHIKE: experts on fused depths, which learn from each other.

    Each expert multiplies its last maps by aligned maps of an inner stage. The experts suppress
    their hardest other class towards a common target, and are distilled into each other.

    Reference: Jin et al., Long-Tailed Visual Recognition via Self-Heterogeneous Integration with
        Knowledge Excavation, CVPR 2023, arXiv:2304.01279.
    Departures: the formulas are those of the authors' code, see ``shike_rows``; it is for
        CIFAR-100-LT only. An image is one row. A classifier of the previous stage is replaced.
    """

    Config = options.SHIKE
    config: options.SHIKE
    branches: FusedBranches

    def setup(self, previous: Method | None) -> None:
        """Create the stages of the additional experts and the convolutions of inner maps."""
        cfg, trained = self.config, previous is not None
        self.branches = FusedBranches(self.backbone, cfg.experts, cfg.branch_at, trained=trained)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one row per image: the summed losses of the experts."""
        cfg = self.config
        logits = self.expert_logits(batch.views[0])
        rows = shike_rows(logits, batch.labels, cfg.suppression, cfg.label_logit)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach().mean(dim=1))


class SHIKEStage2(Experts):
    """Stage 2 of SHIKE: new classifiers of the frozen experts, trained with balanced softmax.

    Reference: Jin et al., Long-Tailed Visual Recognition via Self-Heterogeneous Integration with
        Knowledge Excavation, CVPR 2023, arXiv:2304.01279.
    Departures: frozen weights stay as they are, where weight decay went on shrinking them in the
        authors' code with PyTorch of its time. As there, normalisation layers of frozen parts stay
        in training mode.
    """

    kind: ClassVar[Kind] = "two-stage"
    freeze: ClassVar[tuple[str, ...]] = ("backbone", "branches")

    Config = options.SHIKEStage2  # type: ignore[assignment]
    config: options.SHIKEStage2  # type: ignore[assignment]
    branches: FusedBranches
    offsets: Tensor

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return new cosine classifiers."""
        experts = trained_experts(previous).config.experts
        width, classes = self.backbone.num_features, self.info.num_classes
        return ExpertHead(experts, width, classes, self.config.scale)

    def setup(self, previous: Method | None) -> None:
        """Keep the experts of the previous stage; create the log class counts."""
        stage = trained_experts(previous)
        if stage.backbone is not self.backbone:
            raise UserError(
                "method `shike_stage2` continues the trained experts, found `start: fresh`; leave "
                "`start` out of its stage"
            )
        self.branches = stage.branches
        counts = checked_counts(self.info.class_counts)
        offsets = counts.log().expand(stage.config.experts, -1)
        self.register_buffer("offsets", offsets.contiguous(), persistent=False)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one row per image: the summed balanced-softmax losses of the experts."""
        logits = self.expert_logits(batch.views[0])
        rows = sade_rows(logits, batch.labels, self.offsets)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach().mean(dim=1))


def trained_experts(previous: Method | None) -> SHIKE:
    """Return the method of the previous stage, which must be ``shike``.

    Raises:
        UserError: it is another one, or there is none.
    """
    stage = require_previous("shike_stage2", previous)
    if not isinstance(stage, SHIKE):
        raise UserError(
            "method `shike_stage2` continues the experts of a `shike` stage, found one of another "
            "method before it; put a stage of `shike` there"
        )
    return stage
