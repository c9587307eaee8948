from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ltbench.config import schema
from ltbench.data.base import DatasetInfo
from ltbench.data.strengths import Strengths
from ltbench.distributed import ranks
from ltbench.models.backbone import Backbone
from ltbench.models.branches import Branches
from ltbench.models.heads import LinearHead
from ltbench.seeding import derive


@dataclass(frozen=True)
class Batch:
    """One (micro-)batch of this rank.

    Args:
        views: augmented views of the images, each [B, 3, H, W].
        labels: class of each image [B].
        index: position of each image in the training split [B].
        partner: second label of a mixed image [B], or ``None``.
        lam: weight of the first label in a mixed image, in [0, 1]; a scalar tensor in steps that
            CUDA graphs capture.
        streams: additional batches of the same step, by the name of their stream.
        extra: tensors that ``prepare`` passes to ``loss``, e.g. noise shared by all passes.
        sizes: images that each rank has of this micro-batch; empty if not known.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    index: Tensor
    partner: Tensor | None = None
    lam: float | Tensor = 1.0
    streams: Mapping[str, Batch] = field(default_factory=dict)
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()

    @property
    def per_rank(self) -> tuple[int, ...]:
        """Images that each rank has; the ranks exchange the numbers if they are not known."""
        return self.sizes or ranks.sizes_of(self.labels)

    def unmixed(self) -> Batch:
        """Return the batch with the first labels only (second pass of the released PLOT)."""
        return replace(self, partner=None, lam=1.0)


@dataclass(frozen=True)
class Stream:
    """Additional stream of images of a method, one batch per step.

    Args:
        sampler: name of its sampler.
        split: split of its images; ``val`` falls back to the training split if the data set has
            no validation split of its own; images held out by ``data.val_fraction`` are none.
        options: options of the sampler.
        views: augmented views per image.
    """

    sampler: str
    split: Literal["train", "val"] = "train"
    options: Mapping[str, Any] = field(default_factory=dict)
    views: int = 1


class TrainingImages(Protocol):
    """Training images that a method looks at before an epoch."""

    @property
    def labels(self) -> np.ndarray:
        """Class of each training image, int64 [N]."""
        ...

    def augmented(self, indices: np.ndarray, strengths: np.ndarray) -> Iterator[Batch]:
        """Yield this rank's share of some images, augmented as in training.

        Args:
            indices: indices of the images, int64 [n]; may repeat.
            strengths: strength of the operations on each, 0 to 30, int64 [n]; those of a batch are
                its ``extra["strengths"]``.
        """
        ...


@dataclass(frozen=True)
class Progress:
    """Position in training; all random numbers of a method derive from it."""

    seed: int
    stage: int
    epoch: int  # 0-based within the stage
    epochs: int
    step: int  # 0-based within the epoch
    micro: int = 0  # 0-based micro-batch within the step
    lr: float = 0.0  # base learning rate of this epoch
    steps: int = 0  # of an epoch; 0 if there are no epochs

    def generator(self, purpose: str) -> torch.Generator:
        """Return the CPU generator of this step and purpose, the same on every rank."""
        return torch.Generator().manual_seed(self.key(purpose))

    def key(self, purpose: str) -> int:
        """Return the key of random numbers of this step and purpose, the same on every rank."""
        counters = (self.stage, self.epoch, self.step, self.micro)
        return derive(self.seed, purpose, *counters)


@dataclass(frozen=True)
class Start:
    """What a method can read as its stage begins.

    Args:
        seed: of the run.
        stage: 0-based stage.
        labels: class of each training image, int64 [N].
        encoder: name of the backbone in the recipe.
        images: function of the indices of training images, int64 [M]: yields this rank's share of
            them, without augmentation, as images [B, 3, H, W] and labels [B] on the device.
    """

    seed: int
    stage: int
    labels: np.ndarray
    encoder: str
    images: Callable[[np.ndarray], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Rows:
    """Unreduced loss: one term per row, each attributed to a class.

    Training minimises ``sum(weight * rows) / D + shared``, where D is the sum of weights or the
    number of images, over all ranks and micro-batches of the step.

    Args:
        rows: loss terms [N]; N may exceed the batch size.
        labels: class of each term [N].
        weight: weight of each term [N]; ``None`` is 1.
        divide: ``"images"`` for a mean over images, ``"weight"`` for a weighted mean.
        images: number of images B that the rows were computed from.
        shared: scalar term that belongs to no class, or ``None``.
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
    """Base class of all methods: loss rows of a batch, logits of images.

    A method does not deal with training loops, devices, ranks or data sets. State that persists
    between steps is held in parameters or persistent buffers, so that ``state_dict`` is complete;
    tensors derived from class counts are non-persistent buffers.

    Args:
        config: options of the method.
        backbone: feature extractor, shared with the previous stage.
        info: class counts and names of the training data.
        previous: the method of the previous stage, or ``None`` in the first stage.
    """

    Config: ClassVar[type[schema.Config]] = schema.Config  # a class of `ltbench.methods.options`
    kind: ClassVar[Kind] = "loss"  # category in the literature
    views: ClassVar[int] = 1  # augmented views per image
    streams: ClassVar[Mapping[str, Stream]] = {}  # additional streams, by name
    trains: ClassVar[bool] = True  # False: post-hoc, `make_head` does everything; as in METHODS
    freeze: ClassVar[tuple[str, ...]] = ()  # frozen parts, e.g. ("backbone",)
    but: ClassVar[tuple[str, ...]] = ()  # trained parts of the frozen ones, where there are any
    frozen_bn: ClassVar[Literal["train", "eval"]] = "train"  # mode of BN in frozen parts
    moving_shapes: ClassVar[bool] = False  # True: the sizes of its convolutions differ by step

    transform: Callable[[Any], Tensor] | None = None  # evaluation transform of a loaded model

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

    @classmethod
    def needs_images(cls, config: schema.Config) -> str:
        """Return why the method cannot be trained on stored features, or an empty text.

        It can if it sees an image only through its features, ``backbone(images)``. Override this
        in a method that changes or mixes images under some options only.

        Args:
            config: options of the method.
        """
        if cls.prepare is not Method.prepare:
            return "changes or mixes the images of a step"
        if cls.examine is not Method.examine or cls.strengths is not Method.strengths:
            return "looks at images or augments them in its own way"
        if cls.views != 1 or cls.streams_for(config):
            return "takes several views or streams of images"
        if cls.predict is not Method.predict:
            return "has more than one backbone and classifier"
        return ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, in the order of the logits [C]."""
        return self.info.class_names

    def make_head(self, previous: Method | None) -> nn.Module:
        """Return the classifier of the previous stage, or a new linear one."""
        if previous is not None:
            return previous.head
        return LinearHead(self.backbone.num_features, self.info.num_classes)

    def setup(self, previous: Method | None) -> None:
        """Create losses, buffers and further modules of the method."""

    def begin(self, start: Start) -> None:
        """Set initial weights that need training images or files, before the first step.

        It is called once in a stage, on every rank, also for a method that does not train; not
        where saved weights are loaded.
        """

    @classmethod
    def streams_for(cls, config: schema.Config) -> Mapping[str, Stream]:
        """Return the additional streams of a method with these options, by name."""
        return cls.streams

    def on_epoch(self, at: Progress) -> None:
        """Update state at the start of an epoch, e.g. class accuracies of the previous one."""

    def examine(self, images: TrainingImages, at: Progress) -> None:
        """Look at training images before an epoch, e.g. to find out which are classified."""

    def strengths(self) -> Strengths | None:
        """Return how strongly the images of each class are augmented in the coming epoch."""
        return None

    def prepare(self, batch: Batch, at: Progress) -> Batch:
        """Transform the batch once per step, before any pass: mixing, synthesis, a meta step."""
        return batch

    def loss(self, batch: Batch, at: Progress) -> Rows:
        """Return the loss rows of a prepared batch; called once per pass of the update."""
        raise NotImplementedError

    def after_step(self, batches: Sequence[Batch], at: Progress) -> None:
        """Update state after a step on prepared micro-batches, e.g. queues or prototypes."""

    def predict(self, images: Tensor) -> Tensor:
        """Return logits [B, C] for images [B, 3, H, W]."""
        logits: Tensor = self.head(self.backbone(images))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return ``predict(images)``."""
        return self.predict(images)

    def known_as(self) -> Iterator[tuple[tuple[str, ...], nn.Parameter]]:
        """Yield every parameter with the names that refer to it, its own name first.

        In a network with several branches, a parameter of an additional branch also has the name
        of its counterpart in the backbone, so that one name refers to all branches.
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
        """Return a plain module with the same logits as ``predict``, for publication."""
        return nn.Sequential(self.backbone, self.head)


def lies_in(name: str, part: str) -> bool:
    """Return whether dotted parts follow each other in a dotted name, e.g. `adapter` in it."""
    return f".{part}." in f".{name}."


def begins(name: str, prefix: str) -> bool:
    """Return whether a dotted name begins with a dotted prefix, e.g. `head.bias` with `head`."""
    return f"{name}.".startswith(f"{prefix}.")
