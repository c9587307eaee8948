"""Plugin of the tutorial `own_method.py`: cross-entropy with a margin for rare classes."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from ltbench.config import schema
from ltbench.methods import METHODS
from ltbench.methods.base import Batch, Method, Progress, Rows


class Options(schema.Config):
    """Options of Tail Margin: keys of `method` in a recipe."""

    strength: float = 1.0


@METHODS.register("tail_margin", title="Tail Margin")
class TailMargin(Method):
    """Cross-entropy after lowering each logit by a margin that grows as its class gets rarer.

    Reference: none, an example; with ``strength=1`` it computes what Balanced Softmax does.
    Departures: none.
    """

    Config = Options
    config: Options
    margins: torch.Tensor

    def setup(self, previous: Method | None) -> None:
        """Compute the margins: ``strength * log(n_max / n_k)`` for a class of n_k images [C]."""
        counts = torch.tensor(self.info.class_counts, dtype=torch.float32)
        margins = self.config.strength * (counts.max() / counts.clamp(min=1)).log()
        self.register_buffer("margins", margins, persistent=False)  # it follows from the counts

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss per image, each with its class."""
        logits = self.predict(batch.views[0])  # [B, C]
        rows = cross_entropy(logits - self.margins, batch.labels, reduction="none")  # [B]
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())
