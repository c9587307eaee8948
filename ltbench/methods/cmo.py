from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from scipy.special import betaincinv

from ltbench.config import schema
from ltbench.distributed import ranks
from ltbench.losses import cut_box, kept_share, paste
from ltbench.methods import options
from ltbench.methods.base import Batch, Progress, Stream
from ltbench.methods.chosen_loss import ChosenLoss


class CMO(ChosenLoss):
    """Patches of class-balanced images pasted onto ordinary ones, whose context they take.

    Reference: Park et al., The Majority Can Help the Minority: Context-rich Minority Oversampling
        for Long-tailed Classification, CVPR 2022, arXiv:2112.00412, Algorithm 1.
    Departures: none known in the mixing. One decision, box and lambda per step, as in the
        authors' code, the same on all ranks and in all micro-batches; lambda is drawn by inverting
        the Beta distribution function. With class weights, the two losses of mixed images are
        weighted means over the images of all ranks, but of each micro-batch.
    """

    Config = options.CMO
    config: options.CMO

    @classmethod
    def streams_for(cls, config: schema.Config) -> Mapping[str, Stream]:
        """Return the stream of pasted images, with weights n_k^-a per image."""
        assert isinstance(config, options.CMO)
        return {"pasted": Stream("power", options={"exponent": 1 - config.oversampling})}

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Paste a box of the stream's images onto the batch, in some steps."""
        cfg, last = self.config, at.epochs - self.config.stop_before
        if not cfg.start <= at.epoch < last:
            return batch
        generator = replace(at, micro=0).generator("cmo")
        height, width = batch.views[0].shape[2:]
        draw, uniform, row, column = torch.rand(
            4, generator=generator, dtype=torch.float64
        ).tolist()
        if draw >= cfg.probability:
            return batch
        lam = float(betaincinv(cfg.alpha, cfg.alpha, uniform))
        box = cut_box(height, width, lam, (int(row * height), int(column * width)))
        pasted = batch.streams["pasted"]
        mixed = replace(
            batch,
            views=(paste(batch.views[0], pasted.views[0], box), *batch.views[1:]),
            partner=pasted.labels,
            lam=kept_share(box, height, width),
        )
        weights = self.weights(at)
        if weights is None:
            return mixed
        both = torch.stack([weights[labels].sum() for labels in (batch.labels, pasted.labels)])
        means = ranks.all_reduce_(both) / sum(batch.per_rank)
        return replace(mixed, extra={**batch.extra, "means": means})
