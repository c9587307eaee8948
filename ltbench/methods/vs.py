from __future__ import annotations

from torch import Tensor

from ltbench.losses.logits import vs_offset, vs_rows, vs_scale
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows


class VS(Method):
    """Vector-scaling loss: cross-entropy on logits that are scaled and shifted by class.

    Reference: Kini et al., Label-Imbalanced and Group-Sensitive Classification under
        Overparameterization, NeurIPS 2021, arXiv:2103.01550.
    Departures: the optional class weights omega of the paper's general form are omitted. The
        defaults are those of the authors' code; the best values depend on the data set.
    """

    Config = options.VS
    config: options.VS
    scale: Tensor
    offset: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create factors and offsets from the class counts."""
        counts, config = self.info.class_counts, self.config
        self.register_buffer("scale", vs_scale(counts, config.gamma), persistent=False)
        self.register_buffer("offset", vs_offset(counts, config.tau), persistent=False)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image; logits for prediction are unscaled and unshifted."""
        logits = self.predict(batch.views[0])
        rows = vs_rows(logits, batch.labels, self.scale, self.offset)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())
