from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ltbench.config import schema
from ltbench.distributed import ranks
from ltbench.errors import UserError
from ltbench.losses.logits import cloud_sizes, gcl_rows
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.methods.mixup import Mixup
from ltbench.methods.previous import require_previous
from ltbench.models.heads import CosineHead
from ltbench.seeding import keyed_uniform_on_device

SPREAD = 1 / 3  # standard deviation of the noise, which is clipped at 1


class GCL(Mixup):
    """Cosine classifier with one-sided Gaussian noise on the logits, largest for rare classes.

    Reference: Li et al., Long-Tailed Visual Recognition via Gaussian Clouded Logit Adjustment,
        CVPR 2022, arXiv:2305.11733.
    Departures: the scale belongs to the classifier, not to the loss, so that confidences are
        those of the trained model. Noise is drawn once per step, so that all passes of an update
        (SAM, PLOT) share it; each label of a mixed image has its own draw, as in the authors'
        code; on a GPU the draws are others than on the CPU. A mixed image is one row with the
        class of its first label. Losses on held-out images have no noise, unlike the authors'. A
        cosine classifier of the previous stage is kept, any other is replaced.
    """

    Config = options.GCL
    config: options.GCL
    sizes: Tensor

    @classmethod
    def needs_images(cls, config: schema.Config) -> str:
        """Images are mixed unless ``alpha`` is 0."""
        mixes = isinstance(config, options.GCL) and config.alpha > 0
        return super().needs_images(config) if mixes else ""

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return a cosine classifier with this scale, and the previous weights if it was one."""
        features, classes = self.backbone.num_features, self.info.num_classes
        head = CosineHead(features, classes, self.config.scale)
        before = None if previous is None else previous.head
        if isinstance(before, CosineHead):
            if before.weight.shape != head.weight.shape:
                raise UserError(
                    f"GCL continues a cosine classifier of {features} features and {classes} "
                    f"classes, found one of {' and '.join(map(str, before.weight.shape))}; use the "
                    "backbone and the data of the previous stage"
                )
            head.weight = before.weight
        return head

    def setup(self, previous: Method | None) -> None:
        """Create the noise amplitudes of the classes from the class counts."""
        self.register_buffer("sizes", cloud_sizes(self.info.class_counts), persistent=False)

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Mix the batch and draw the noise of both labels; it does not depend on the ranks."""
        batch = replace(batch, sizes=batch.per_rank)
        if self.config.alpha > 0:
            batch = super().prepare(batch, at)
        first, second = self._noise(batch, at)
        return replace(batch, extra={**batch.extra, "noise": first, "partner_noise": second})

    def _noise(self, batch: Batch, at: Progress) -> Tensor:
        """Return the noise of both labels of this rank's images [2, B, C]."""
        sizes, classes, device = batch.per_rank, self.info.num_classes, batch.labels.device
        start, images = ranks.first_row(sizes), sum(sizes)
        own = range(start, start + len(batch.labels))
        if device.type != "cpu":
            return noise_on_device(at.key("gcl"), own, images, classes, device)
        drawn = torch.randn((2, images, classes), generator=at.generator("gcl"))
        return (SPREAD * drawn[:, own.start : own.stop]).abs().clamp(max=1)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image, with the class of its first label."""
        logits = self.predict(batch.views[0])
        rows = self._rows(logits, batch.labels, batch.extra["noise"])
        if batch.partner is not None:
            other = self._rows(logits, batch.partner, batch.extra["partner_noise"])
            rows = batch.lam * rows + (1 - batch.lam) * other
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())

    def _rows(self, logits: Tensor, labels: Tensor, noise: Tensor) -> Tensor:
        cfg = self.config
        lowered = cfg.noise * noise.to(self.sizes) * self.sizes  # [B, C]
        return gcl_rows(logits, labels, lowered, cfg.scale, cfg.margin, cfg.focus)


def noise_on_device(key: int, rows: range, images: int, classes: int, device: Any) -> Tensor:
    """Return the noise of both labels of some images, each number a function of key and place.

    Args:
        key: of the step.
        rows: the images, in the global batch.
        images: size of the global batch.
        classes: number of classes C.
        device: that draws the numbers.

    Returns:
        Absolute values of Gaussian numbers, at most 1 [2, number of rows, C].
    """
    places = torch.arange(rows.start * classes, rows.stop * classes, device=device)
    uniform = keyed_uniform_on_device(key, torch.stack([places, places + images * classes]))
    drawn = SPREAD * 2**0.5 * torch.erfinv(uniform)
    return drawn.clamp(max=1).view(2, len(rows), classes)


class GCLStage2(GCL):
    """Stage 2 of GCL: cosine classifier trained further, with a margin and a focal factor.

    Meant for the `effective` or `class_aware` sampler after a `gcl` stage.

    Reference: Li et al., Long-Tailed Visual Recognition via Gaussian Clouded Logit Adjustment,
        CVPR 2022, arXiv:2305.11733; the margin and the focal factor are in the authors' code.
    Departures: as for `gcl`. The weights of a previous cosine classifier are kept, with the
        scale of this stage; a classifier of another kind, e.g. that of a `ce` stage, is replaced
        by a new cosine one. Images and labels are mixed, as in the authors' code for CIFAR; their
        code for Places-LT mixes the labels but feeds the unmixed images, which is `mix: labels`.
    """

    kind: ClassVar[Kind] = "two-stage"
    freeze: ClassVar[tuple[str, ...]] = ("backbone",)
    frozen_bn: ClassVar[Literal["train", "eval"]] = "eval"

    Config = options.GCLStage2
    config: options.GCLStage2

    @classmethod
    def needs_images(cls, config: schema.Config) -> str:
        """Images are mixed unless ``alpha`` is 0 or only labels are."""
        labels = isinstance(config, options.GCLStage2) and config.mix == "labels"
        return "" if labels else super().needs_images(config)

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the previous cosine classifier with the scale of this stage, or a new one."""
        return super().make_head(require_previous("gcl_stage2", previous))

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Mix the batch, or its labels only, and draw the noise of both labels."""
        mixed = super().prepare(batch, at)
        return replace(mixed, views=batch.views) if self.config.mix == "labels" else mixed
