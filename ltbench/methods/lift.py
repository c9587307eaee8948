from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from ltbench.losses import log_prior, logit_adjusted_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Method, Progress, Rows, Start
from ltbench.methods.head_init import initialise
from ltbench.methods.previous import continued_cosine


class LIFT(Method):
    """Adapters and a cosine classifier trained with logit adjustment; the encoder stays frozen.

    The adapters are a property of the backbone (``backbone.adapters``); without them the classifier
    alone is trained. It begins from the class names' text features or from class means.

    Reference: Shi et al., Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts,
        ICML 2024, arXiv:2309.10019.
    Departures: bf16 autocast where the authors have fp16 with loss scaling. Class means are of the
        evaluation transform (short side 256 for crops of 224); the authors resize to 224. A cosine
        classifier of the previous stage with the same scale is kept if ``init`` is random.
    """

    freeze: ClassVar[tuple[str, ...]] = ("backbone",)
    but: ClassVar[tuple[str, ...]] = ("adapter",)
    frozen_bn: ClassVar[Literal["train", "eval"]] = "eval"

    Config = options.LIFT
    config: options.LIFT
    offset: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the log prior, which unlike that of ``logit_adjustment`` has no floor."""
        offset = self.config.tau * log_prior(self.info.class_counts, floor=0.0)
        self.register_buffer("offset", offset, persistent=False)

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the previous classifier if it is a cosine with this scale, else a new one."""
        features, classes = self.backbone.num_features, self.info.num_classes
        return continued_cosine(previous, features, classes, self.config.scale)

    def begin(self, start: Start) -> None:
        """Set the classifier's directions from text or training images."""
        initialise(self, self.config.init, start)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image; logits for prediction are not adjusted by the prior."""
        logits = self.predict(batch.views[0])
        rows = logit_adjusted_rows(logits, batch.labels, self.offset)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())


class LIFTPlus(LIFT):
    """LIFT in fewer epochs, on crops that take more and more of the image.

    The crops are the data set's pipelines ``clip_minimalist`` and ``half_minimalist``.

    Reference: Shi et al., LIFT+: Lightweight Fine-Tuning for Long-Tail Learning, 2025,
        arXiv:2504.13282.
    Departures: as for ``lift``.
    """

    Config = options.LIFTPlus
    config: options.LIFTPlus
