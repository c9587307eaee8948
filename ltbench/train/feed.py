"""Orders of images of a stage, and the batches of each step, streams included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltbench.config.recipe import Choice, Recipe, Training
from ltbench.data import SAMPLERS
from ltbench.data.base import Data, Split
from ltbench.data.features import FeatureSplit
from ltbench.data.loader import Last, Loaded, Loader, eval_batches, steps_per_epoch
from ltbench.distributed import ranks
from ltbench.distributed.copies import to_device
from ltbench.errors import UserError
from ltbench.methods import METHODS
from ltbench.methods.base import Batch, Method, Start
from ltbench.seeding import EpochKey, derive

PLAIN = 250  # images per batch without augmentation


class Feed:
    """Batches of a run, for training and for diagnostics.

    Args:
        recipe: recipe of the run.
        data: its data set.
        device: device of the images.
        folder: folder for a list of images that could not be read, if there are any; ``None`` for
            no list.
    """

    def __init__(
        self, recipe: Recipe, data: Data, device: torch.device, folder: Path | None = None
    ) -> None:
        self.recipe, self.data, self.device, self.folder = recipe, data, device, folder
        self._loaders: dict[str, Loader] = {}
        self._orders: dict[tuple[int, int], np.ndarray] = {}  # of the last epoch used
        self._features: dict[int, FeatureSplit] = {}  # of the training images, by stage

    def use_features(self, index: int, features: FeatureSplit) -> None:
        """Let a stage train on stored features of the training images.

        Args:
            index: stage of the recipe.
            features: of ``data.train``.
        """
        self._features[index] = features

    def order(self, index: int, epoch: int) -> np.ndarray:
        """Return the order in which an epoch of a stage visits the training images."""
        if (index, epoch) not in self._orders:
            sampler, training = self.recipe.stages[index].sampler, self.recipe.training(index)
            seed = derive(self.recipe.seed, "order", index)
            order = sample(sampler, self.data.train.labels, seed, training, epoch)
            self._orders = {(index, epoch): order}
        return self._orders[index, epoch]

    def steps(self, index: int) -> int:
        """Return the number of steps of an epoch of a stage."""
        stage, world = self.recipe.stages[index], ranks.world()
        return steps_per_epoch(
            len(self.order(index, 0)),
            self.recipe.training(index).batch_size,
            world=world,
            accumulate=stage.passes(world),
            last=stage.last_batch,
        )

    def smallest(self, index: int) -> int:
        """Return the number of images of the smallest pass of an epoch of a stage."""
        stage, size = self.recipe.stages[index], self.recipe.training(index).batch_size
        parts = ranks.world() * stage.passes(ranks.world())
        rest = len(self.order(index, 0)) % size
        return (rest if stage.last_batch == "keep" and rest >= parts else size) // parts

    def batches(
        self, method: Method, index: int, epoch: int, start: int = 0
    ) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each step of an epoch, from step ``start`` on."""
        stage, training = self.recipe.stages[index], self.recipe.training(index)
        seed, world = self.recipe.seed, ranks.world()
        order, passes = self.order(index, epoch), stage.passes(world)
        strengths, streams = method.strengths(), method.streams_for(method.config)

        def read(split: Split, name: str, order: np.ndarray, views: int) -> Iterator[list[Loaded]]:
            key = EpochKey(derive(seed, name, index, epoch), epoch, training.epochs)
            return self._loader(name, split).batches(
                order,
                training.batch_size,
                key=key if stage.features == "augmented" else None,
                views=views,
                rank=ranks.rank(),
                world=world,
                accumulate=passes,
                start=start,
                last=stage.last_batch,
                strengths=strengths if split is self.data.train else None,
            )

        stored = self._features.get(index)
        if stored is None:
            sources = [read(self.data.train, "augment", order, method.views)]
        else:
            sources = [read(stored, f"features of stage {index}", order, method.views)]
        for name, stream in streams.items():
            split = (trained_val(self.data) if stream.split == "val" else None) or self.data.train
            options = SAMPLERS.get(stream.sampler).Config(**stream.options)
            sampler = Choice(stream.sampler, options)
            own = sample(
                sampler, split.labels, derive(seed, f"order of {name}", index), training, epoch
            )
            own = np.resize(own, len(order))
            sources.append(read(split, f"augment {name}", own, stream.views))
        sizes = step_sizes(len(order), training.batch_size, world, passes, stage.last_batch)
        for cut, step in zip(sizes[start:], zip(*sources, strict=True), strict=True):
            beside = [
                dict(zip(streams, map(_batch, parts), strict=True))
                for parts in zip(*step[1:], strict=True)
            ] or [{} for _ in step[0]]
            yield [
                replace(_batch(main), streams=more, sizes=own)
                for main, more, own in zip(step[0], beside, cut, strict=True)
            ]

    def images(self, index: int, epoch: int) -> FeedImages:
        """Return the training images as a method sees them before an epoch of a stage."""
        training = self.recipe.training(index)
        number = derive(self.recipe.seed, "examine", index, epoch)
        key = EpochKey(number, epoch, training.epochs)
        return FeedImages(self, key, max(1, training.batch_size // ranks.world()))

    def start(self, index: int) -> Start:
        """Return what a method can read as a stage begins."""
        run = self.recipe.run

        def read(indices: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
            part: Any = self.data.train
            if len(indices) < len(part):
                part = part.subset(indices)
            options: dict[str, Any] = {"workers": run.workers, "device": self.device}
            options |= {"rank": ranks.rank(), "world": ranks.world()}
            layout = torch.channels_last if run.channels_last else torch.contiguous_format
            for loaded in eval_batches(part, PLAIN, **options):
                yield loaded.views[0].contiguous(memory_format=layout), loaded.labels

        labels, encoder = self.data.train.labels, self.recipe.backbone.name
        return Start(self.recipe.seed, index, labels, encoder, read)

    def _loader(self, name: str, split: Split) -> Loader:
        """Return the loader processes of one purpose, kept over epochs and stages."""
        if name not in self._loaders:
            run, quarantine = self.recipe.run, f"quarantine-{ranks.rank()}.txt"
            self._loaders[name] = open_loader(
                split,
                workers=run.workers,
                device=self.device,
                layout=torch.channels_last if run.channels_last else torch.contiguous_format,
                quarantine=None if self.folder is None else self.folder / quarantine,
            )
        return self._loaders[name]


@dataclass(frozen=True)
class FeedImages:
    """Training images of a feed; implements ``ltbench.methods.base.TrainingImages``.

    Args:
        feed: of the run.
        key: seed of the augmentation.
        batch_size: images per batch of this rank.
    """

    feed: Feed
    key: int
    batch_size: int

    @property
    def labels(self) -> np.ndarray:
        """Class of each training image, int64 [N]."""
        return self.feed.data.train.labels

    def augmented(self, indices: np.ndarray, strengths: np.ndarray) -> Iterator[Batch]:
        """Yield this rank's share of some images; see ``TrainingImages``."""
        loader = self.feed._loader("augment", self.feed.data.train)
        place = {"rank": ranks.rank(), "world": ranks.world()}
        own = np.array_split(strengths, ranks.world())[ranks.rank()]
        found = loader.graded_batches(indices, strengths, self.batch_size, key=self.key, **place)
        for number, loaded in enumerate(found):
            rows = own[number * self.batch_size : (number + 1) * self.batch_size]
            of_rows = to_device(torch.from_numpy(rows), self.feed.device)
            yield replace(_batch(loaded), extra={"strengths": of_rows})


def step_sizes(
    n: int, batch_size: int, world: int, passes: int, last: Last
) -> list[list[tuple[int, ...]]]:
    """Return for each step and each of its micro-batches how many images every rank has.

    Args:
        n: length of the order.
        batch_size: images per step over all ranks and micro-batches.
        world: number of ranks.
        passes: micro-batches per step and rank.
        last: see ``steps_per_epoch``.
    """
    steps = steps_per_epoch(n, batch_size, world=world, accumulate=passes, last=last)
    full = n - batch_size * (steps - 1) if last == "keep" else batch_size
    images = [batch_size] * (steps - 1) + [full]
    return [_cut(number, world, passes) for number in images]


def _cut(images: int, world: int, passes: int) -> list[tuple[int, ...]]:
    """Return how many images of a step each rank has in each micro-batch, as loaders cut it."""
    each, more = divmod(images, world * passes)
    parts = [each + (part < more) for part in range(world * passes)]
    return [tuple(parts[micro::passes]) for micro in range(passes)]


def trained_val(data: Data) -> Split | None:
    """Return the validation images that methods may train on: the data set's own, if it has any.

    Those of ``data.val_fraction`` are held out to choose on, so no method trains on them.
    """
    return None if "val_fraction" in data.manifest else data.val


def check_unseen(recipe: Recipe, data: Data) -> None:
    """Check that no method of a recipe trains on validation images that are to judge it.

    Raises:
        UserError: one does.
    """
    for index, stage in enumerate(recipe.stages):
        streams = METHODS.get(stage.method.name).streams_for(stage.method.config).values()
        if trained_val(data) is not None and any(stream.split == "val" for stream in streams):
            raise UserError(
                f"`stages.{index}.method`: {stage.method.name} trains on the validation images of "
                f"{data.info.name}, so that they cannot choose its values; take them out and hold "
                "others out with data.val=null data.val_fraction=0.1"
            )


def open_loader(split: Split, **options: Any) -> Loader:
    """Return the loader of a split: one that streams, if the split is to be streamed.

    Args:
        split: the images.
        options: of ``Loader``.
    """
    if getattr(split, "stream", False):
        from ltbench.data.shards.stream import StreamLoader

        return StreamLoader(split, **options)
    return Loader(split, **options)


def sample(
    choice: Choice, labels: np.ndarray, seed: int, training: Training, epoch: int
) -> np.ndarray:
    """Return the order in which an epoch of a stage visits labelled images."""
    sampler = SAMPLERS.get(choice.name)(choice.config)
    return sampler.order(
        labels,
        seed=seed,
        epoch=epoch,
        epochs=training.epochs,
        batch_size=training.batch_size,
    )


def _batch(loaded: Loaded) -> Batch:
    return Batch(loaded.views, loaded.labels, loaded.index)
