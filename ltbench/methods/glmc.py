from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from scipy.special import betaincinv
from torch import Tensor, nn

from ltbench.config import schema
from ltbench.losses import (
    consistency_rows,
    cumulative_rows,
    cut_box,
    generalised_weights,
    paste,
)
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows, Stream
from ltbench.models.heads import LinearHead


class GLMC(Method):
    """Consistency of mixup and CutMix with the same partners; a re-weighted classifier takes over.

    Reference: Du et al., Global and Local Mixture Consistency Cumulative Learning for Long-tailed
        Visual Recognitions, CVPR 2023, arXiv:2305.08661.
    Departures: none known from the authors' code, in which lambda ~ Beta(1, 1) whatever the
        option `beta` is, the sides of the box are rounded up and its label share stays lambda. One
        lambda and box per step, the same on all ranks and in all micro-batches. An image is two
        rows, each with half of its consistency. A classifier of the previous stage is replaced.
    """

    kind: ClassVar[Kind] = "architecture"
    views: ClassVar[int] = 2

    Config = options.GLMC
    config: options.GLMC
    class_weights: Tensor

    @classmethod
    def streams_for(cls, config: schema.Config) -> Mapping[str, Stream]:
        """Return the stream of partners, with weights n_k^-k per image."""
        assert isinstance(config, options.GLMC)
        exponent = 1 - config.oversampling
        return {"partners": Stream("power", options={"exponent": exponent}, views=2)}

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return a new linear classifier, the re-weighted one."""
        return LinearHead(self.backbone.num_features, self.info.num_classes)

    def setup(self, previous: Method | None) -> None:
        """Create the plain classifier, projection and predictor, and the class weights."""
        width, dim = self.backbone.num_features, self.config.dim
        self.plain = LinearHead(width, self.info.num_classes)
        self.projection = LinearHead(width, dim)
        self.predictor = LinearHead(dim, dim)
        weights = generalised_weights(self.info.class_counts, self.config.reweighting)
        self.register_buffer("class_weights", weights, persistent=False)

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Mix the first views with those of the partners, and paste a box onto the second."""
        generator = replace(at, micro=0).generator("glmc")
        alpha, partners = self.config.alpha, batch.streams["partners"]
        height, width = batch.views[0].shape[2:]
        uniform, row, column = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        lam = float(betaincinv(alpha, alpha, uniform))
        centre = int(row * height), int(column * width)
        return mixed(batch, partners, lam, centre)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return two loss rows per image, of its mixup and of its CutMix."""
        cfg, labels = self.config, batch.labels
        partner = labels if batch.partner is None else batch.partner
        alpha = 1 - (at.epoch / at.epochs) ** 2
        features = [self.backbone(view) for view in batch.views]
        balanced = [self.head(f) for f in features]
        projected = [self.projection(f) for f in features]
        predicted = [self.predictor(g) for g in projected]
        classified = [
            cumulative_rows(self.plain(f), z, labels, partner, batch.lam, self.class_weights, alpha)
            for f, z in zip(features, balanced, strict=True)
        ]
        first = consistency_rows(predicted[0], projected[1])
        half = cfg.consistency / 2 * (first + consistency_rows(predicted[1], projected[0]))
        return Rows(
            torch.cat([rows + half for rows in classified]),
            labels.repeat(2),
            images=len(labels),
            logits=balanced[0].detach(),
        )


def mixed(batch: Batch, partners: Batch, lam: float, centre: tuple[int, int]) -> Batch:
    """Return the mixup of the first views and the CutMix of the second ones.

    Args:
        batch: images in two views.
        partners: as many other images in two views.
        lam: share of the batch's own images and labels, in [0, 1].
        centre: row and column of the pasted box.
    """
    (first, second), (other, cut) = batch.views, partners.views
    height, width = second.shape[2:]
    box = cut_box(height, width, lam, centre, "up")
    views = (lam * first + (1 - lam) * other, paste(second, cut, box))
    return replace(batch, views=views, partner=partners.labels, lam=lam)
