from __future__ import annotations

from typing import ClassVar

from torch import nn

from ltbench.methods import options
from ltbench.methods.base import Kind, Method
from ltbench.methods.ce import CE
from ltbench.methods.previous import require_previous
from ltbench.models.heads import LinearHead


class CRT(CE):
    """A new linear classifier, trained with cross-entropy on the frozen features of stage 1.

    Meant for the class-aware sampler. After a `mixup` stage this is cRT+Mixup.

    Reference: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition,
        ICLR 2020, arXiv:1910.09217, section 4.
    Departures: none known. As in the authors' code, normalisation layers of the frozen backbone
        stay in training mode, so their running statistics drift towards the balanced
        distribution; ``frozen_bn: eval`` of the stage keeps them fixed.
    """

    kind: ClassVar[Kind] = "two-stage"
    freeze: ClassVar[tuple[str, ...]] = ("backbone",)

    Config = options.CRT

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return a new linear classifier."""
        require_previous("crt", previous)
        return LinearHead(self.backbone.num_features, self.info.num_classes)
