from __future__ import annotations

from typing import ClassVar

from torch import nn

from ltbench.methods import options
from ltbench.methods.base import Kind, Method
from ltbench.methods.ce import CE
from ltbench.methods.previous import require_previous
from ltbench.models.heads import ScaledHead


class LWS(CE):
    """Learnable weight scaling: one scale per class on the frozen classifier of stage 1.

    Meant for the class-aware sampler. Only the scales are trained; they start at 1.

    Reference: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition,
        ICLR 2020, arXiv:1910.09217, section 4.
    Departures: none known. As in the authors' code, the scale multiplies the bias too, weight
        decay pulls the scales towards 0, and running statistics of the frozen backbone drift.
    """

    kind: ClassVar[Kind] = "two-stage"
    freeze: ClassVar[tuple[str, ...]] = ("backbone", "head.head")

    Config = options.LWS

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the previous classifier with learnable scales."""
        return ScaledHead(require_previous("lws", previous).head, self.info.num_classes)
