"""Batches of one rank from an epoch's order, bitwise the same for any ranks and workers."""

from __future__ import annotations

import inspect
import itertools
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ltbench.data.base import Split
from ltbench.data.encoded import EncodedSplit, received
from ltbench.data.images import ImageSplit
from ltbench.data.memory import MemorySplit
from ltbench.data.strengths import Strengths
from ltbench.data.workers import (
    Workers,
    check_descriptors,
    loader_processes,
    share,
    worker_errors,
)
from ltbench.errors import UserError
from ltbench.files import append

Last = Literal["keep", "drop"]
REPLACED = 1e-4  # share of a split's images that may be unreadable before training stops


@dataclass(frozen=True)
class Loaded:
    """Images of one micro-batch.

    Args:
        views: augmented views of the same images, each [B, 3, H, W].
        labels: class of each image, int64 [B].
        index: position of each image in the split, int64 [B].
        notes: one line for each image that could not be read and was replaced.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    index: Tensor
    notes: tuple[str, ...] = ()

    def pin_memory(self) -> Loaded:
        """Return the same in page-locked memory; torch's loader calls this."""
        views = tuple(view.pin_memory() for view in self.views)
        return replace(
            self, views=views, labels=self.labels.pin_memory(), index=self.index.pin_memory()
        )


def steps_per_epoch(
    n: int, batch_size: int, *, world: int = 1, accumulate: int = 1, last: Last = "keep"
) -> int:
    """Return the number of steps that ``batches`` makes of an order of ``n`` images.

    Args:
        n: length of the order.
        batch_size: images per step over all ranks and micro-batches.
        world: number of ranks.
        accumulate: micro-batches per step and rank.
        last: ``"keep"`` the last, smaller batch; ``"drop"`` it. A last batch to be kept that has
            fewer images than there are micro-batches over all ranks joins the one before.

    Raises:
        UserError: the batch is larger than the data, or cannot be cut into equal parts.
    """
    return len(_steps(n, batch_size, world * accumulate, last, f"{world} x {accumulate}"))


def _steps(n: int, batch_size: int, parts: int, last: Last, factors: str) -> list[np.ndarray]:
    """Return the positions in the order that each step takes."""
    if batch_size < 1 or batch_size % parts:
        raise UserError(
            f"`batch_size` is global and must be a positive multiple of ranks x micro-batches = "
            f"{factors} = {parts}, found {batch_size}"
        )
    if batch_size > n:
        raise UserError(
            f"`batch_size`={batch_size} is larger than the data set ({n} images an epoch); "
            f"lower it to {n // parts * parts} or less"
        )
    full, rest = divmod(n, batch_size)
    edges = [batch_size * step for step in range(full + 1)]
    if last == "keep" and rest:
        if rest < parts:  # too few for one image each: a larger last step, so that none is lost
            edges.pop()
        edges.append(n)
    return [np.arange(low, high) for low, high in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Job:
    """All that a loader process needs to make one micro-batch; it keeps nothing between jobs.

    Args:
        indices: which images, int64 [B].
        positions: place of each image in the epoch's order, int64 [B].
        key: seed of the augmentation of this epoch; ``None`` is the evaluation transform.
        views: augmented views of each image.
        strengths: strength of the operations on each image, int64 [B]; ``None`` is none.
    """

    indices: np.ndarray
    positions: np.ndarray
    key: int | None
    views: int
    strengths: np.ndarray | None = None


class Loader:
    """The loader processes of a split, kept from epoch to epoch.

    Args:
        split: the images.
        workers: loader processes, or ``"auto"``; splits that lie in memory use none.
        device: where the images are wanted; what a split leaves to the device is done there, and
            on an accelerator the bytes of a split in memory lie there too.
        layout: memory format of the images.
        start_method: of the processes: ``"fork"``, ``"spawn"``, ``"forkserver"``; ``None`` is
            Python's default.
        quarantine: file that gets a line for each image that was unreadable and replaced.
    """

    def __init__(
        self,
        split: Split,
        *,
        workers: Workers = 0,
        device: torch.device | str = "cpu",
        layout: torch.memory_format = torch.contiguous_format,
        start_method: str | None = None,
        quarantine: Path | None = None,
    ) -> None:
        workers = 0 if split.in_memory else loader_processes(workers)
        self.device, self.layout = torch.device(device), layout
        if isinstance(split, EncodedSplit):
            split.check_device(self.device)
        if isinstance(split, MemorySplit) and self.device.type != "cpu":
            split = split.resident(self.device)
        self.split: Split = split
        self.workers = workers
        self.quarantine = quarantine
        self._noted: set[str] = set()
        self._started = False
        self._jobs = _Jobs()
        self._loader = DataLoader(
            _Images(split),
            sampler=self._jobs,
            batch_size=None,
            num_workers=workers,
            collate_fn=_same,
            pin_memory=self.device.type == "cuda",
            persistent_workers=workers > 0,
            multiprocessing_context=start_method if workers else None,
            generator=torch.Generator(),  # the default one would draw from the global stream
        )
        # In a cycle that is collected, torch's queues would close before they tell the processes
        # to end, and each would be waited for in vain for 5 s: a reference from outside.
        weakref.finalize(self, _same, self._loader).atexit = False

    def batches(
        self,
        order: np.ndarray,
        batch_size: int,
        *,
        key: int | None,
        views: int = 1,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        start: int = 0,
        last: Last = "keep",
        strengths: Strengths | None = None,
    ) -> Iterator[list[Loaded]]:
        """Iterate over the steps of an epoch: the micro-batches of this rank for each step.

        Step t uses ``order[t * batch_size : (t + 1) * batch_size]``, cut into
        ``world * accumulate`` contiguous parts; rank r takes the next ``accumulate`` of them, so
        that the ranks' parts put after each other are the global batch.

        Args:
            order: indices into the split, int64 [n]; may repeat or leave out images.
            batch_size: images per step over all ranks and micro-batches.
            key: seed of the augmentation of this epoch; ``None`` is the evaluation transform.
            views: augmented views of each image.
            rank: this process, in ``range(world)``.
            world: number of ranks.
            accumulate: micro-batches per step and rank.
            start: steps to skip without loading them, to resume inside an epoch.
            last: see ``steps_per_epoch``.
            strengths: strength of the augmentation of each class; ``None`` is none.

        Raises:
            UserError: see ``steps_per_epoch``; the split has no strengths; while iterating: an
                image cannot be read.
        """
        parts = world * accumulate
        steps = _steps(len(order), batch_size, parts, last, f"{world} x {accumulate}")
        mine = slice(rank * accumulate, (rank + 1) * accumulate)
        cut = [part for step in steps[start:] for part in np.array_split(step, parts)[mine]]
        jobs = [_job(order, rows, key, views) for rows in cut]
        if strengths is not None and key is not None:
            check_strengths(self.split)
            labels = self.split.labels
            jobs = [
                replace(job, strengths=strengths.of(labels[job.indices], key, job.positions))
                for job in jobs
            ]
        return _grouped(self._run(jobs, upcoming=order[start * batch_size :]), accumulate)

    def eval_batches(self, batch_size: int, *, rank: int = 0, world: int = 1) -> Iterator[Loaded]:
        """Iterate over this rank's share of the split, every image exactly once over all ranks.

        Shares are contiguous and differ by at most one image; nothing is padded, so a rank may
        see fewer batches than another, or none.

        Args:
            batch_size: images per batch of this rank.
            rank: this process, in ``range(world)``.
            world: number of ranks.

        Raises:
            UserError: while iterating: an image cannot be read.
        """
        order = np.arange(len(self.split))
        share = np.array_split(order, world)[rank]
        cut = [share[at : at + batch_size] for at in range(0, len(share), batch_size)]
        return self._run([_job(order, rows, None, 1) for rows in cut])

    def graded_batches(
        self,
        indices: np.ndarray,
        strengths: np.ndarray,
        batch_size: int,
        *,
        key: int,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[Loaded]:
        """Iterate over this rank's share of some images, augmented with strengths of their own.

        Args:
            indices: indices into the split, int64 [n]; may repeat images.
            strengths: strength of each, 0 to 30, int64 [n].
            batch_size: images per batch of this rank.
            key: seed of the augmentation.
            rank: this process, in ``range(world)``.
            world: number of ranks.

        Raises:
            UserError: the split has no strengths; while iterating: an image cannot be read.
        """
        check_strengths(self.split)
        share = np.array_split(np.arange(len(indices)), world)[rank]
        cut = [share[at : at + batch_size] for at in range(0, len(share), batch_size)]
        jobs = [replace(_job(indices, rows, key, 1), strengths=strengths[rows]) for rows in cut]
        return self._run(jobs)

    def _run(self, jobs: Sequence[Job], upcoming: np.ndarray | None = None) -> Iterator[Loaded]:
        self._jobs.jobs = jobs
        if self.workers and not self._started:
            check_descriptors(self.workers)
            self._started = True
        with worker_errors() if self.workers else nullcontext():
            loading = iter(self._loader)  # starts the processes: before threads, which a fork loses
            if upcoming is not None and isinstance(self.split, ImageSplit):
                self.split.prefetch(upcoming)
            for job, item in zip(jobs, loading, strict=True):
                if isinstance(item, str):
                    raise UserError(item)
                loaded = self._finish(job, item)
                self._note(loaded.notes)
                yield loaded

    def _finish(self, job: Job, item: Loaded) -> Loaded:
        views = received(
            self.split, item.views, self.device, indices=job.indices, key=job.key,
            positions=job.positions, views=job.views,
        )  # fmt: skip
        notes = notes_of(self.split) if isinstance(self.split, EncodedSplit) else []
        views = self.split.finish(views, key=job.key, positions=job.positions)
        return Loaded(
            tuple(view.contiguous(memory_format=self.layout) for view in views),
            item.labels.to(self.device, non_blocking=True),
            item.index.to(self.device, non_blocking=True),
            (*item.notes, *notes),
        )

    def _note(self, notes: Sequence[str]) -> None:
        for note in set(notes) - self._noted:
            self._noted.add(note)
            warnings.warn(f"replaced by another image of its class: {note}", stacklevel=2)
            if self.quarantine is not None:
                with suppress(OSError):
                    append(self.quarantine, f"{note}\n")
        if len(self._noted) > max(1, REPLACED * len(self.split)):
            raise UserError(
                f"{len(self._noted)} of {len(self.split):,} images cannot be read, more than "
                f"{REPLACED:.2%}; the last: {notes[-1]}; repair the data set"
            )


def notes_of(split: Split) -> list[str]:
    """Return a note for each image that this process replaced since the last call."""
    notes: list[str] = getattr(split, "take_notes", list)()
    return notes


def check_strengths(split: Split) -> None:
    """Check that a split can augment images with strengths of their own.

    Raises:
        UserError: it cannot: its ``load`` does not take ``strengths``, or images are cropped on
            the device.
    """
    if isinstance(split, EncodedSplit):
        raise UserError(
            "images that are cropped on the device cannot be augmented there with a strength by "
            "class; set data.decode=fast, or choose another method"
        )
    if "strengths" not in inspect.signature(split.load).parameters:
        raise UserError(
            f"images of a `{type(split).__name__}` cannot be augmented with a strength by class: "
            "its `load` needs an argument `strengths`, as that of `MemorySplit`; choose another "
            "method or data set"
        )


def batches(
    split: Split, order: np.ndarray, batch_size: int, *, workers: int = 0, **options: Any
) -> Iterator[list[Loaded]]:
    """Iterate over the steps of one epoch with loader processes of its own.

    Args:
        split: the images.
        order: see ``Loader.batches``.
        batch_size: see ``Loader.batches``.
        workers: loader processes.
        options: of ``Loader.batches``.
    """
    return Loader(split, workers=workers).batches(order, batch_size, **options)


def eval_batches(
    split: Split, batch_size: int, *, workers: Workers = 0, device: Any = "cpu", **options: Any
) -> Iterator[Loaded]:
    """Iterate over a rank's share of a split with loader processes of its own.

    Args:
        split: the images.
        batch_size: images per batch of this rank.
        workers: loader processes, or ``"auto"``; no more than batches.
        device: where the images are wanted.
        options: of ``Loader.eval_batches``.
    """
    needed = -(-len(split) // (batch_size * int(options.get("world", 1))))
    loader = Loader(split, workers=min(loader_processes(workers), needed), device=device)
    return loader.eval_batches(batch_size, **options)


class _Jobs(Sampler[Any]):
    """Hands the jobs of the epoch at hand to the loader processes."""

    jobs: Sequence[Job] = ()

    def __init__(self) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)


@dataclass(frozen=True)
class _Images(Dataset[Any]):
    """Makes one micro-batch of a job; runs in the loader processes."""

    split: Split

    def __getitem__(self, job: Any) -> Loaded | str:
        more: dict[str, Any] = {} if job.strengths is None else {"strengths": job.strengths}
        try:
            load = self.split.load
            if isinstance(self.split, EncodedSplit):
                load = self.split.load_encoded
            images = load(
                job.indices, key=job.key, positions=job.positions, views=job.views, **more
            )
        except UserError as error:
            return str(error)  # an exception would come back with the worker's traceback in it
        labels = torch.from_numpy(self.split.labels[job.indices])
        notes = notes_of(self.split)
        index = torch.from_numpy(job.indices)
        return share((*images, labels, index)) or Loaded(images, labels, index, tuple(notes))


def _job(order: np.ndarray, rows: np.ndarray, key: int | None, views: int) -> Job:
    return Job(order[rows].astype(np.int64), rows.astype(np.int64), key, views)


def _grouped(loaded: Iterator[Loaded], size: int) -> Iterator[list[Loaded]]:
    group: list[Loaded] = []
    for item in loaded:
        group.append(item)
        if len(group) == size:
            yield group
            group = []


def _same(item: Any) -> Any:
    return item
