"""What a stage trains on: orders of images, and the batches of each step, streams included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ltbench import dist, registries
from ltbench.data.base import Data, Split
from ltbench.data.loader import Loaded, Loader, open_loader
from ltbench.methods.base import Batch, Method
from ltbench.recipe import Choice, Recipe, Stage
from ltbench.seeding import derive


class Feed:
    """The batches of a run, the same whoever asks for them.

    Args:
        recipe: of the run.
        data: its data set.
        device: where the images are wanted.
        folder: gets a file with the images that could not be read, if there are any; ``None`` for
            no such file.
    """

    def __init__(
        self, recipe: Recipe, data: Data, device: torch.device, folder: Path | None = None
    ) -> None:
        self.recipe, self.data, self.device, self.folder = recipe, data, device, folder
        self._loaders: dict[str, Loader] = {}
        self._orders: dict[tuple[int, int], np.ndarray] = {}  # of the last epoch asked for

    def order(self, index: int, epoch: int) -> np.ndarray:
        """Return the order in which an epoch of a stage visits the training images."""
        if (index, epoch) not in self._orders:
            stage, seed = self.recipe.stages[index], derive(self.recipe.seed, "order", index)
            order = sample(stage.sampler, self.data.train.labels, seed, stage, epoch)
            self._orders = {(index, epoch): order}
        return self._orders[index, epoch]

    def batches(
        self, method: Method, index: int, epoch: int, start: int = 0
    ) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each step of an epoch, from step ``start`` on."""
        stage, seed = self.recipe.stages[index], self.recipe.seed
        order = self.order(index, epoch)

        def read(split: Split, name: str, order: np.ndarray, views: int) -> Iterator[list[Loaded]]:
            return self._loader(name, split).batches(
                order,
                stage.batch_size or 1,
                key=derive(seed, name, index, epoch),
                views=views,
                rank=dist.rank(),
                world=dist.world(),
                accumulate=stage.passes(dist.world()),
                start=start,
                last=stage.last_batch,
            )

        sources = [read(self.data.train, "augment", order, method.views)]
        for name, stream in method.streams.items():
            split = self.data.val if stream.split == "val" and self.data.val else self.data.train
            sampler = Choice(stream.sampler, registries.SAMPLERS.get(stream.sampler).Config())
            own = sample(
                sampler, split.labels, derive(seed, f"order of {name}", index), stage, epoch
            )
            sources.append(read(split, f"augment {name}", np.resize(own, len(order)), 1))
        for step in zip(*sources, strict=True):
            streams = [
                dict(zip(method.streams, map(_batch, parts), strict=True))
                for parts in zip(*step[1:], strict=True)
            ] or [{} for _ in step[0]]
            yield [
                replace(_batch(main), streams=more)
                for main, more in zip(step[0], streams, strict=True)
            ]

    def _loader(self, name: str, split: Split) -> Loader:
        """Return the loader processes of one purpose, kept over epochs and stages."""
        if name not in self._loaders:
            run, quarantine = self.recipe.run, f"quarantine-{dist.rank()}.txt"
            self._loaders[name] = open_loader(
                split,
                workers=run.workers,
                device=self.device,
                layout=torch.channels_last if run.channels_last else torch.contiguous_format,
                quarantine=None if self.folder is None else self.folder / quarantine,
            )
        return self._loaders[name]


def sample(choice: Choice, labels: np.ndarray, seed: int, stage: Stage, epoch: int) -> np.ndarray:
    """Return the order in which an epoch of a stage visits labelled images."""
    sampler = registries.SAMPLERS.get(choice.name)(choice.config)
    return sampler.order(
        labels,
        seed=seed,
        epoch=epoch,
        epochs=stage.epochs or 1,
        batch_size=stage.batch_size or 1,
    )


def _batch(loaded: Loaded) -> Batch:
    return Batch(loaded.views, loaded.labels, loaded.index)
