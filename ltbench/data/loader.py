"""From an epoch's order to the batches of one rank, bitwise the same for any ranks and workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ltbench.data.base import Split
from ltbench.errors import UserError

Last = Literal["keep", "drop"]


@dataclass(frozen=True)
class Loaded:
    """Images of one micro-batch.

    Args:
        views: augmented views of the same images, each [B, 3, H, W].
        labels: class of each image, int64 [B].
        index: position of each image in the split, int64 [B].
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    index: Tensor

    def pin_memory(self) -> Loaded:
        """Return the same in page-locked memory; torch's loader calls this."""
        views = tuple(view.pin_memory() for view in self.views)
        return Loaded(views, self.labels.pin_memory(), self.index.pin_memory())


def steps_per_epoch(
    n: int, batch_size: int, *, world: int = 1, accumulate: int = 1, last: Last = "keep"
) -> int:
    """Return how many steps ``batches`` makes of an order of ``n`` images.

    Args:
        n: length of the order.
        batch_size: images per step over all ranks and micro-batches.
        world: number of ranks.
        accumulate: micro-batches per step and rank.
        last: ``"keep"`` the last, smaller batch, unless it has fewer images than there are
            micro-batches over all ranks; or ``"drop"`` it.

    Raises:
        UserError: the batch is larger than the data, or cannot be cut into equal parts.
    """
    parts = world * accumulate
    if batch_size < 1 or batch_size % parts:
        raise UserError(
            f"`batch_size` is global and must be a positive multiple of ranks x accumulation = "
            f"{world} x {accumulate} = {parts}, found {batch_size}"
        )
    if batch_size > n:
        raise UserError(
            f"`batch_size`={batch_size} is larger than the data set ({n} images an epoch); "
            f"lower it to {n // parts * parts} or less"
        )
    full, rest = divmod(n, batch_size)
    return full + (last == "keep" and rest >= parts)


def batches(
    split: Split,
    order: np.ndarray,
    batch_size: int,
    *,
    key: int | None,
    views: int = 1,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    start: int = 0,
    workers: int = 0,
    last: Last = "keep",
    pin_memory: bool = False,
) -> Iterator[list[Loaded]]:
    """Iterate over the steps of an epoch: the micro-batches of this rank for each step.

    Step t uses ``order[t * batch_size : (t + 1) * batch_size]``, cut into ``world * accumulate``
    contiguous parts; rank r takes the next ``accumulate`` of them, so that the ranks' parts put
    after each other are the global batch.

    Args:
        split: the images.
        order: indices into the split, int64 [n]; may repeat or leave out images.
        batch_size: images per step over all ranks and micro-batches.
        key: seed of the augmentation of this epoch; ``None`` gives the evaluation transform.
        views: augmented views of each image.
        rank: this process, in ``range(world)``.
        world: number of ranks.
        accumulate: micro-batches per step and rank.
        start: steps to skip without loading them, to resume inside an epoch.
        workers: loader processes; splits that lie in memory use none.
        last: see ``steps_per_epoch``.
        pin_memory: put the tensors in page-locked memory.

    Raises:
        UserError: see ``steps_per_epoch``; while iterating: an image cannot be read.
    """
    steps = steps_per_epoch(len(order), batch_size, world=world, accumulate=accumulate, last=last)
    jobs = []
    for step in range(start, steps):
        rows = np.arange(step * batch_size, min((step + 1) * batch_size, len(order)))
        parts = np.array_split(rows, world * accumulate)
        jobs += parts[rank * accumulate : (rank + 1) * accumulate]
    return _grouped(_load(_Jobs(split, order, jobs, key, views), workers, pin_memory), accumulate)


def eval_batches(
    split: Split,
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Loaded]:
    """Iterate over this rank's share of a split, every image exactly once over all ranks.

    Shares are contiguous and differ by at most one image; nothing is padded, so a rank may see
    fewer batches than another, or none.

    Args:
        split: the images.
        batch_size: images per batch of this rank.
        rank: this process, in ``range(world)``.
        world: number of ranks.
        workers: loader processes; splits that lie in memory use none.
        pin_memory: put the tensors in page-locked memory.

    Raises:
        UserError: while iterating: an image cannot be read.
    """
    order = np.arange(len(split))
    share = np.array_split(order, world)[rank]
    jobs = [share[at : at + batch_size] for at in range(0, len(share), batch_size)]
    return _load(_Jobs(split, order, jobs, None, 1), workers, pin_memory)


@dataclass(frozen=True)
class _Jobs(Dataset[Any]):
    """Loads one micro-batch per item; a job is the positions of its images in the order."""

    split: Split
    order: np.ndarray
    jobs: Sequence[np.ndarray]
    key: int | None
    views: int

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, job: int) -> Loaded | str:
        positions = self.jobs[job].astype(np.int64)
        indices = self.order[positions].astype(np.int64)
        try:
            images = self.split.load(indices, key=self.key, positions=positions, views=self.views)
        except UserError as error:
            return str(error)  # an exception would come back with the worker's traceback in it
        labels = self.split.labels[indices]
        return Loaded(images, torch.from_numpy(labels), torch.from_numpy(indices))


def _load(jobs: _Jobs, workers: int, pin_memory: bool) -> Iterator[Loaded]:
    loader = DataLoader(
        jobs,
        batch_size=None,
        num_workers=0 if jobs.split.in_memory else workers,
        collate_fn=_same,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # the default one would draw from the global stream
    )
    try:
        for item in loader:
            if isinstance(item, str):
                raise UserError(item)
            yield item
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a data worker died ({str(error).splitlines()[0]}); lower `workers`, "
            f"or give the process more memory or shared memory"
        ) from error


def _grouped(loaded: Iterator[Loaded], size: int) -> Iterator[list[Loaded]]:
    group: list[Loaded] = []
    for item in loaded:
        group.append(item)
        if len(group) == size:
            yield group
            group = []


def _same(item: Any) -> Any:
    return item
