from __future__ import annotations

from typing import ClassVar

from torch import nn

from ltbench.errors import UserError
from ltbench.methods import options
from ltbench.methods.base import Kind, Method
from ltbench.methods.previous import require_previous
from ltbench.models.heads import NormalizedHead


class TauNorm(Method):
    """Division of each class's weight vector by its norm to the power tau, without training.

    Reference: Kang et al., Decoupling Representation and Classifier for Long-Tailed Recognition,
        ICLR 2020, arXiv:1910.09217, section 4.
    Departures: tau is an option and is not searched; the authors' script sweeps it on a given
        split. The bias is dropped, as in their code.
    """

    kind: ClassVar[Kind] = "post-hoc"
    trains: ClassVar[bool] = False

    Config = options.TauNorm
    config: options.TauNorm

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the previous linear classifier with normalised weights."""
        head = require_previous("tau_norm", previous).head
        if not isinstance(head, nn.Linear):
            raise UserError(
                "method `tau_norm` needs a linear classifier from the previous stage, found "
                f"{type(head).__name__}; put it after e.g. `ce`, `mixup` or `crt`"
            )
        return NormalizedHead(head.weight, self.config.tau)
