from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from ltbench.distributed import ranks
from ltbench.distributed.copies import to_device
from ltbench.errors import UserError
from ltbench.losses import cross_entropy_rows
from ltbench.losses.rsg import (
    PairClassifier,
    VariationTransfer,
    head_classes,
    head_tail_pairs,
    same_class_loss,
    variation_rows,
)
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.methods.ldam_drw import LDAMDRW
from ltbench.models.backbone import Backbone

PROBE = 32  # side of the image that probes the input channels of the last stage


class RSG(LDAMDRW):
    """LDAM-DRW with generated tail samples: tail feature maps plus variation of head classes.

    The maps are the input of the backbone's last stage. A generated sample is one row with the
    class of its tail image.

    Reference: Wang et al., RSG: A Simple but Effective Module for Learning Imbalanced Datasets,
        CVPR 2021, arXiv:2106.09859.
    Departures: maps are paired within the global batch, where the release pairs on each device;
        the generated ones are distributed evenly over ranks. Head classes are chosen by class
        counts. The vectors of the variation loss are those of the release (`vectors`). Once
        samples are generated, the pair classifier has no gradient and does not change. The same
        holds for the release, except with PyTorch before 2.0, where momentum and weight decay
        kept acting on it.
    """

    kind: ClassVar[Kind] = "architecture"
    moving_shapes: ClassVar[bool] = True  # a step generates as many maps as it has tail images

    Config = options.RSG
    config: options.RSG
    is_head: Tensor

    def setup(self, previous: Method | None) -> None:
        """Create the loss, the class weights, the centers and the pair classifier."""
        super().setup(previous)
        cfg, counts = self.config, self.info.class_counts
        channels = entering_channels(self.backbone)
        self.transfer = VariationTransfer(len(counts), channels, cfg.centers)
        self.pairs = PairClassifier(channels)
        self.register_buffer("is_head", head_classes(counts, cfg.head_share), persistent=False)

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one row per image and one per generated sample of this rank."""
        cfg, last = self.config, len(self.backbone.stages) - 1
        maps = self.backbone.run(batch.views[0], 0, last)
        seen, labels, sizes = maps.detach(), batch.labels, batch.per_rank
        each = sum(sizes) / ranks.world()  # `shared` is the mean of what the ranks return
        shared = self.transfer.center_rows(seen, labels).sum() / each
        if at.epoch < cfg.generate_from:
            shared = cfg.center_weight * (shared + self.same_class(seen, labels, sizes))
        else:
            new, tails, loss = self.generate(seen, labels, sizes)
            shared = cfg.center_weight * shared + cfg.variation_weight * loss
            maps = torch.cat([maps, new.to(maps)])
            labels = torch.cat([labels, tails])
        logits = self.head(self.backbone.run(maps, last))
        rows = self.criterion(logits, labels)
        deferred = cfg.reweight_from is not None and at.epoch >= cfg.reweight_from
        images = len(batch.labels)
        return Rows(
            rows,
            labels,
            images=images,
            weight=self.class_weights.to(rows)[labels] if deferred else torch.ones_like(rows),
            divide="weight",
            shared=shared,
            logits=logits[:images].detach(),
        )

    def same_class(self, maps: Tensor, labels: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return the loss of the pair classifier on this rank's share of the pairs.

        Args:
            maps: detached maps of this rank's images [B, D, H, W].
            labels: class of each image [B].
            sizes: images of each rank.
        """
        if ranks.world() == 1:
            return same_class_loss(self.pairs, maps, labels)
        half = sum(sizes) // 2
        first = torch.arange(half).tensor_split(ranks.world())
        wanted = [torch.cat([own, own + half]) for own in first]
        maps, labels = ranks.fetch_rows([maps, labels], wanted, sizes)
        share = len(first[ranks.rank()]) * ranks.world() / max(half, 1)
        return share * same_class_loss(self.pairs, maps, labels)

    def generate(
        self, maps: Tensor, labels: Tensor, sizes: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return generated tail maps [P, D, H, W], their classes [P] and the variation loss.

        They are this rank's share of the pairs of the global batch, of which there are none
        without head or without tail classes.

        Args:
            maps: detached maps of this rank's images [B, D, H, W].
            labels: class of each image [B].
            sizes: images of each rank.
        """
        everyone = ranks.all_gather(labels, sizes)
        of_head = self.is_head[everyone].cpu()
        heads, tails = head_tail_pairs(of_head, self.config.strength)
        if not len(heads):
            return maps[:0], labels[:0], maps.new_zeros(())
        each, parts = len(heads) / ranks.world(), torch.stack([heads, tails])
        wanted = [own.flatten() for own in parts.tensor_split(ranks.world(), dim=1)]
        of_heads, of_tails = ranks.fetch_rows([maps], wanted, sizes)[0].tensor_split(2)
        chosen = to_device(wanted[ranks.rank()], labels.device)
        heads, tails = everyone[chosen].tensor_split(2)
        variation = self.transfer.variation(of_heads, heads)
        moved = self.transfer.transform(variation)
        own = self.transfer.variation(of_tails, tails)
        frozen = {name: p.detach() for name, p in self.pairs.named_parameters()}
        logits = functional_call(self.pairs, frozen, (of_heads, moved.to(maps)))
        rows = cross_entropy_rows(logits, torch.zeros_like(heads))  # target: different classes
        rows = rows + variation_rows(variation, moved, own, self.config.vectors)
        return of_tails + moved, tails, rows.sum() / each


@torch.no_grad()
def entering_channels(backbone: Backbone) -> int:
    """Return the number of input channels of the last stage.

    Raises:
        UserError: the backbone has no separate last stage on feature maps.
    """
    training = [module for module in backbone.modules() if module.training]
    weight = next(backbone.parameters())
    last = len(backbone.stages) - 1
    backbone.eval()
    maps = backbone.run(weight.new_zeros(1, 3, PROBE, PROBE), 0, last) if last else weight[:0]
    for module in training:
        module.training = True
    if not last or maps.dim() != 4:
        raise UserError(
            "method `rsg` needs feature maps that enter a last stage, which this backbone does "
            "not have; take a ResNet"
        )
    return maps.shape[1]
