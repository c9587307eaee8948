from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ltbench.distributed import ranks
from ltbench.distributed.copies import to_device
from ltbench.errors import UserError
from ltbench.losses import cross_entropy_rows
from ltbench.losses.adaptive import bounded_noise, seed_acceptance, translate
from ltbench.methods import options
from ltbench.methods.base import Batch, Kind, Method, Progress, Rows
from ltbench.methods.inner import evaluating
from ltbench.methods.previous import require_previous
from ltbench.models.heads import LinearHead
from ltbench.seeding import keyed_uniform_on_device


class M2m(Method):
    """Images of frequent classes, translated into rare ones with the gradients of a trained helper.

    Needs a stage with ``start: fresh``; the trained method of the previous stage is the helper.
    Meant for the sampler `deferred`, with its ``start`` equal to ``generate_from``.

    Reference: Kim et al., M2m: Imbalanced Classification via Major-to-minor Translation,
        CVPR 2020, arXiv:2004.00431, Algorithm 1.
    Departures: the initial noise is clipped in norm for each image; the authors' code clips each
        channel over the whole batch. Images that the Bernoulli draw rejects are not generated.
        Seeds come from the global batch (from each micro-batch with gradient accumulation). A
        generated image is a row of its target class. The shortcuts of the authors' ResNet-32
        append new channels after the old ones: up to a permutation of channels it is ours
        (`renumber_appended`), but its convolutions are initialised by fan-out, ours by fan-in,
        and the bias of its classifier starts at 0.
    """

    kind: ClassVar[Kind] = "sampler"
    freeze: ClassVar[tuple[str, ...]] = ("helper",)
    frozen_bn: ClassVar[Literal["train", "eval"]] = "eval"
    moving_shapes: ClassVar[bool] = True  # a step translates as many images as the draw admits

    Config = options.M2m
    config: options.M2m
    mean: Tensor
    std: Tensor

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return a new linear classifier."""
        return LinearHead(self.backbone.num_features, self.info.num_classes)

    def setup(self, previous: Method | None) -> None:
        """Keep the method of the previous stage as helper.

        Raises:
            UserError: there is none, or it shares its backbone with this method.
        """
        self.helper = require_previous("m2m", previous)
        if self.helper.backbone is self.backbone:
            raise UserError(
                "method `m2m` needs a helper with a separate backbone, found one shared with the "
                "previous stage; set `start: fresh` in the stage of `m2m`"
            )
        info = self.info
        for name, values in {"mean": info.mean, "std": info.std}.items():
            buffer = torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    def train(self, mode: bool = True) -> M2m:
        """Set the mode of all but the helper, which stays in evaluation mode."""
        super().train(mode)
        self.helper.eval()
        return self

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Replace images by generated ones of the same label; all ranks draw the same."""
        if at.epoch < self.config.generate_from:
            return batch
        generator = at.generator("m2m")
        sizes = batch.per_rank
        labels = ranks.all_gather(batch.labels, sizes).cpu()
        places, seeds = self.draw(labels, generator)
        if not len(places):  # on every rank
            return batch
        images = batch.views[0]
        first = ranks.first_row(sizes)
        holder = torch.bucketize(places, torch.tensor(sizes).cumsum(0), right=True)
        wanted = [seeds[holder == r] for r in range(len(sizes))]
        own = holder == ranks.rank()
        (sources,) = ranks.fetch_rows([images], wanted, sizes)
        if not own.any():
            return batch
        shape, device = images.shape[1:], images.device
        if device.type == "cpu":
            uniform = uniform_rows(own.tolist(), shape, generator)
        else:
            uniform = uniform_on_device(at.key("m2m-noise"), places[own], shape, device)
        targets, seed_labels = labels[places[own]], labels[seeds[own]]
        generated, confidence = self.generate(
            sources,
            to_device(targets, device),
            to_device(seed_labels, device),
            uniform.to(images),
        )
        accepted = (confidence >= self.config.gamma)[:, None, None, None]
        changed, rows = images.clone(), to_device(places[own] - first, device)
        changed[rows] = torch.where(accepted, generated, images[rows])
        return replace(batch, views=(changed, *batch.views[1:]))

    def draw(self, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the positions of images to generate in a batch, and of their seed images.

        Args:
            labels: labels of the global batch [B], on the CPU.
            generator: random generator of all draws.
        """
        counts = torch.tensor(self.info.class_counts, dtype=torch.float64)
        kept, lucky = torch.rand((2, len(labels)), generator=generator, dtype=torch.float64)
        places = (kept >= counts[labels] / counts.max()).nonzero()[:, 0]
        chances = seed_acceptance(counts, labels[places], labels, self.config.beta)
        possible = chances.sum(dim=1) > 0
        places, chances = places[possible], chances[possible]
        if not len(places):
            return places, places
        seeds = torch.multinomial(chances, 1, generator=generator)
        accepted = lucky[places] < chances.gather(1, seeds)[:, 0]
        return places[accepted], seeds[accepted, 0]

    def generate(
        self, images: Tensor, targets: Tensor, seeds: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return images translated from ``seeds`` to ``targets``, and the helper's confidences.

        Args:
            images: normalised seed images [B, 3, H, W].
            targets: target classes [B].
            seeds: classes of the images [B].
            uniform: numbers in [0, 1) of the shape of ``images``, for the noise.
        """
        cfg = self.config
        mean, std = self.mean.to(images), self.std.to(images)
        start = (images * std + mean + bounded_noise(uniform, cfg.noise)).clamp(0, 1)
        with evaluating(self):
            pixels, confidence = translate(
                start,
                targets,
                seeds,
                helper=lambda x: self.helper.predict((x - mean) / std),
                model=lambda x: self.predict((x - mean) / std),
                lam=cfg.lam,
                steps=cfg.steps,
                step_size=cfg.step_size,
            )
        return (pixels - mean) / std, confidence

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return one loss row per image."""
        logits = self.predict(batch.views[0])
        rows = cross_entropy_rows(logits, batch.labels)
        return Rows(rows, batch.labels, images=len(rows), logits=logits.detach())


def uniform_rows(kept: Sequence[bool], shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return some of the rows of uniform numbers that a generator draws one after another.

    Args:
        kept: whether to return each row; at least one is.
        shape: of a row.
        generator: of the numbers, on the CPU.
    """
    drawn = ((keep, torch.rand(shape, generator=generator)) for keep in kept)
    return torch.stack([row for keep, row in drawn if keep])


def uniform_on_device(key: int, places: Tensor, shape: torch.Size, device: torch.device) -> Tensor:
    """Return uniform numbers for some images, each a function of key and place.

    Args:
        key: of the step.
        places: of the images in the global batch [N], on the CPU.
        shape: of an image.
        device: that draws the numbers.
    """
    size = shape.numel()
    counters = to_device(places, device)[:, None] * size + torch.arange(size, device=device)
    return keyed_uniform_on_device(key, counters).view(len(places), *shape)
