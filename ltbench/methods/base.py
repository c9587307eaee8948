from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ltbench import schema
from ltbench.backbones.base import Backbone
from ltbench.backbones.branches import Branches
from ltbench.data.base import DatasetInfo
from ltbench.heads import LinearHead
from ltbench.seeding import derive


@dataclass(frozen=True)
class Batch:
    """One (micro-)batch of this rank.

    Args:
        views: augmented views of the same images, each [B, 3, H, W].
        labels: class of each image [B].
        index: position of each image in the training split [B].
        partner: second label of a mixed image [B], or ``None``.
        lam: share of the first label in a mixed image, in [0, 1].
        streams: further batches of the same step, by the name a method gave their stream.
        extra: what ``prepare`` adds for ``loss``, e.g. noise that all passes share.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    index: Tensor
    partner: Tensor | None = None
    lam: float = 1.0
    streams: Mapping[str, Batch] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def unmixed(self) -> Batch:
        """Return the same images with the first label only (the released PLOT's second pass)."""
        return replace(self, partner=None, lam=1.0)


@dataclass(frozen=True)
class Stream:
    """A second source of images that a method sees beside the stage's own, one batch per step.

    Args:
        sampler: name of the sampler that orders it, with its default options.
        split: where its images come from; ``val`` is the training split where there is no
            validation split.
    """

    sampler: str
    split: Literal["train", "val"] = "train"


@dataclass(frozen=True)
class Progress:
    """Where training stands: plain numbers, from which all of a method's randomness derives."""

    seed: int
    stage: int
    epoch: int  # 0-based within the stage
    epochs: int
    step: int  # 0-based within the epoch
    micro: int = 0  # 0-based micro-batch within the step
    lr: float = 0.0  # base learning rate of this epoch

    def generator(self, purpose: str) -> torch.Generator:
        """Return a CPU generator that is the same on every rank for this step and purpose."""
        counters = (self.stage, self.epoch, self.step, self.micro)
        return torch.Generator().manual_seed(derive(self.seed, purpose, *counters))


@dataclass(frozen=True)
class Rows:
    """A loss as contributions, each with the class it belongs to.

    The scalar that training minimises is ``sum(weight * rows) / D + shared``, where D is the sum
    of weights or the number of images, taken over all ranks and micro-batches of the step.

    Args:
        rows: loss of each contribution [N]; N may exceed the batch size.
        labels: class of each contribution [N].
        weight: weight of each contribution [N]; ``None`` is 1.
        divide: ``"images"`` for a mean over images, ``"weight"`` for a weighted mean.
        images: number of images B that the rows come from.
        shared: scalar that belongs to no class, or ``None``.
        logits: logits of the images [B, C], for the training curves only.
    """

    rows: Tensor
    labels: Tensor
    images: int
    weight: Tensor | None = None
    divide: Literal["images", "weight"] = "images"
    shared: Tensor | None = None
    logits: Tensor | None = field(default=None, repr=False)


Kind = Literal["loss", "sampler", "two-stage", "architecture", "contrastive", "meta", "post-hoc"]


class Method(nn.Module):
    """Turns a batch into loss rows and images into logits.

    A method knows nothing of epochs to loop over, devices, ranks or data sets. What it must
    remember from step to step is a parameter or a persistent buffer, so that one ``state_dict``
    is all of it; what follows from class counts is a buffer that is not saved.

    Args:
        config: the method's own options.
        backbone: feature extractor, shared with the previous stage.
        info: class counts and names of the training data.
        previous: the method of the stage before, or ``None`` in the first stage.
    """

    class Config(schema.Config):
        """Options of the method."""

    kind: ClassVar[Kind] = "loss"  # how the literature would file it
    views: ClassVar[int] = 1  # augmented views a batch must carry
    streams: ClassVar[Mapping[str, Stream]] = {}  # further batches a step needs, by name
    trains: ClassVar[bool] = True  # False: post-hoc, `make_head` does all
    freeze: ClassVar[tuple[str, ...]] = ()  # parts that are not trained, e.g. ("backbone",)
    frozen_bn: ClassVar[Literal["train", "eval"]] = "train"  # mode of normalisation in frozen parts

    def __init__(
        self,
        config: schema.Config,
        backbone: Backbone,
        info: DatasetInfo,
        previous: Method | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.info = info
        self.backbone = backbone
        self.head = self.make_head(previous)
        self.setup(previous)

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the classifier: that of the previous stage, or a new linear one."""
        if previous is not None:
            return previous.head
        return LinearHead(self.backbone.num_features, self.info.num_classes)

    def setup(self, previous: Method | None) -> None:
        """Make what else the method needs: losses from class counts, buffers, helpers."""

    def on_epoch(self, at: Progress) -> None:
        """Look back on the epoch before, once, when an epoch begins: class accuracies."""

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Change the batch once per step, before any pass: mixing, synthesis, a meta step."""
        return batch

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return the loss rows of a prepared batch; called once per pass of the update."""
        raise NotImplementedError

    def after_step(self, batches: Sequence[Batch], at: Progress) -> None:
        """Follow the step that was made on prepared micro-batches: queues, prototypes."""

    def predict(self, images: Tensor) -> Tensor:
        """Return logits [B, C] for images [B, 3, H, W]."""
        logits: Tensor = self.head(self.backbone(images))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return ``predict(images)``."""
        return self.predict(images)

    def known_as(self) -> Iterator[tuple[tuple[str, ...], nn.Parameter]]:
        """Yield every parameter with the names that mean it: its own first.

        In a network with several branches a parameter of a further branch is also known by the
        name of the backbone's that stands in its place, so that a name reaches all branches.
        """
        originals = {
            f"{prefix}.{own}": f"backbone.{name}"
            for prefix, module in self.named_modules()
            if isinstance(module, Branches)
            for own, name in module.originals().items()
        }
        for name, parameter in self.named_parameters():
            yield (name, originals[name]) if name in originals else (name,), parameter

    def parameters_of(self, part: str) -> list[nn.Parameter]:
        """Return the parameters of a part of the backbone, in all branches.

        Args:
            part: a stage of the backbone, ``last`` or ``whole``.

        Raises:
            UserError: there is no such part.
        """
        found = {id(p) for p in self.backbone.parameters_of(part)}
        inside = {n for n, p in self.named_parameters() if id(p) in found}
        return [p for names, p in self.known_as() if inside.intersection(names)]

    def export(self) -> nn.Module:
        """Return the plain module that is published: the same logits, no method around it."""
        return nn.Sequential(self.backbone, self.head)
