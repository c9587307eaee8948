"""Orders of images of a stage, and the batches of each step, streams included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltbench.config.recipe import Choice, Recipe, Training
from ltbench.data import SAMPLERS
from ltbench.data.base import Data, Split
from ltbench.data.loader import Last, Loaded, Loader, steps_per_epoch
from ltbench.distributed import ranks
from ltbench.errors import UserError
from ltbench.methods import METHODS
from ltbench.methods.base import Batch, Method
from ltbench.seeding import derive


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

        def read(split: Split, name: str, order: np.ndarray, views: int) -> Iterator[list[Loaded]]:
            return self._loader(name, split).batches(
                order,
                training.batch_size,
                key=derive(seed, name, index, epoch),
                views=views,
                rank=ranks.rank(),
                world=world,
                accumulate=passes,
                start=start,
                last=stage.last_batch,
            )

        sources = [read(self.data.train, "augment", order, method.views)]
        for name, stream in method.streams.items():
            split = (trained_val(self.data) if stream.split == "val" else None) or self.data.train
            sampler = Choice(stream.sampler, SAMPLERS.get(stream.sampler).Config())
            own = sample(
                sampler, split.labels, derive(seed, f"order of {name}", index), training, epoch
            )
            sources.append(read(split, f"augment {name}", np.resize(own, len(order)), 1))
        sizes = step_sizes(len(order), training.batch_size, world, passes, stage.last_batch)
        for cut, step in zip(sizes[start:], zip(*sources, strict=True), strict=True):
            streams = [
                dict(zip(method.streams, map(_batch, parts), strict=True))
                for parts in zip(*step[1:], strict=True)
            ] or [{} for _ in step[0]]
            yield [
                replace(_batch(main), streams=more, sizes=own)
                for main, more, own in zip(step[0], streams, cut, strict=True)
            ]

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
        streams = METHODS.get(stage.method.name).streams.values()
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
