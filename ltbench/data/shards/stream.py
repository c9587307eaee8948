"""Training images streamed from shards that are not kept on this machine."""

from __future__ import annotations

import copy
import itertools
import os
import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
import webdataset as wds
from isal.isal_zlib import crc32 as crc32_of
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ltbench.data.base import Split
from ltbench.data.encoded import EncodedSplit, received
from ltbench.data.images import ImageSplit
from ltbench.data.loader import Last, Loaded, Loader, check_strengths, steps_per_epoch
from ltbench.data.shards.reader import ShardSource
from ltbench.data.strengths import Strengths
from ltbench.data.workers import Workers, check_descriptors, share, worker_errors
from ltbench.digest import open_regular
from ltbench.errors import UserError
from ltbench.remote.http import Body
from ltbench.seeding import derive, keyed_permutation

HELD = 1000  # images that a process holds to shuffle them
READERS = 2  # loader processes unless a number is given
_BLOCK = 512  # of a tar
_PATIENCE = 100  # reads at the end of a tar


class StreamLoader(Loader):
    """A ``Loader`` whose training epochs come from ``stream_batches``; evaluation is as usual.

    Args:
        split: the images.
        workers: loader processes, on which the batches depend; ``"auto"`` is 2 on every machine.
        options: of ``Loader``.
    """

    def __init__(self, split: Split, *, workers: Workers = 0, **options: Any) -> None:
        super().__init__(split, workers=READERS if workers == "auto" else workers, **options)

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
        """Iterate over the steps of an epoch, in an order of its own; see ``Loader.batches``.

        Raises:
            UserError: the order has not every image once, the start lies inside the epoch, or see
                ``stream_batches``.
        """
        if not isinstance(self.split, ImageSplit) or key is None:
            raise UserError("data.stream=true streams training images of prepared shards only")
        n = len(self.split)
        if len(order) != n or not np.array_equal(np.bincount(order, minlength=n), np.ones(n)):
            raise UserError(
                "data.stream=true reads every image once an epoch, but the sampler chooses other "
                "images; use sampler=instance, or store the shards and leave it out"
            )
        if start:
            raise UserError(
                f"data.stream=true cannot go on inside an epoch (step {start}); delete the "
                "checkpoint, and set run.save_steps=null run.save_minutes=null for the next run"
            )
        return stream_batches(
            self.split, batch_size, seed=key, epoch=0, key=key, views=views, rank=rank,
            world=world, accumulate=accumulate, workers=self.workers, last=last,
            device=self.device, layout=self.layout, strengths=strengths,
        )  # fmt: skip


def stream_batches(
    split: ImageSplit,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    key: int,
    views: int = 1,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    workers: int = 0,
    last: Last = "keep",
    held: int = HELD,
    device: torch.device | str = "cpu",
    layout: torch.memory_format = torch.contiguous_format,
    start_method: str | None = None,
    strengths: Strengths | None = None,
) -> Iterator[list[Loaded]]:
    """Iterate over the steps of an epoch of instance sampling, reading each shard front to back.

    The shards, in an order of the epoch, are one long sequence of images. It is cut into as many
    equal parts as there are processes that read; each reads its part as a tar, from the middle of
    a shard if need be, and shuffles what it holds. Every image comes once an epoch, and every rank
    has equally many steps. An image that is missing or has other bytes than were packed is an
    error, also where a damaged tar just seems to end.

    Not supported, unlike in ``Loader.batches``: other samplers than instance sampling; a part of
    a split; a start inside an epoch; the same batches for other numbers of ranks or workers;
    replacing unreadable images; evaluation. The order is also less random: images that are far
    apart in the shards do not meet in a batch, unless different processes read them.

    Args:
        split: images of a whole ``ShardSource``.
        batch_size: images per step over all ranks and micro-batches.
        seed: of the order.
        epoch: 0-based epoch.
        key: seed of the augmentation of this epoch.
        views: augmented views of each image.
        rank: this process, in ``range(world)``.
        world: number of ranks.
        accumulate: micro-batches per step and rank.
        workers: loader processes.
        last: see ``steps_per_epoch``.
        held: images that each process holds to shuffle them, at least 1.
        device: where the images are wanted.
        layout: memory format of the images.
        start_method: of the loader processes, as for ``Loader``.
        strengths: strength of the augmentation of each class; ``None`` is none.

    Returns:
        The micro-batches of this rank for each step.

    Raises:
        UserError: the split is none of whole shards, or see ``steps_per_epoch``; while iterating:
            a shard cannot be read, or an image is missing or damaged.
    """
    source = split.source
    if not isinstance(source, ShardSource) or source.rows is not None:
        raise UserError(
            "data.stream=true reads whole splits of prepared shards, found image files or a part "
            "of a split; prepare the data set as it is to be used, or leave data.stream out"
        )
    if split.unreadable == "replace":
        raise UserError(
            "a stream cannot fetch another image in place of an unreadable one; set "
            "data.unreadable=raise, or leave data.stream out"
        )
    if strengths is not None:
        check_strengths(split)
    parts = world * accumulate
    n = len(split)
    steps = steps_per_epoch(n, batch_size, world=world, accumulate=accumulate, last=last)
    edges = np.minimum(np.arange(steps + 1) * batch_size, n)
    edges[-1] = n if last == "keep" else steps * batch_size
    cut = [
        np.array_split(np.arange(low, high), parts)
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    by_rank = [
        [part for step in cut for part in step[r * accumulate : (r + 1) * accumulate]]
        for r in range(world)
    ]
    readers = max(1, workers)
    needed = [sum(map(len, of_rank[w::readers])) for of_rank in by_rank for w in range(readers)]
    borders = np.cumsum([0, *needed])[rank * readers : (rank + 1) * readers + 1].tolist()
    dataset = _Stream(
        split=split,
        source=source,
        jobs=by_rank[rank],
        borders=borders,
        seed=derive(seed, "stream", epoch),
        rank=rank,
        key=key,
        views=views,
        held=held,
        strengths=strengths,
    )
    loaded = _load(dataset, workers, torch.device(device), layout, start_method)
    return iter(lambda: list(itertools.islice(loaded, accumulate)), [])


@dataclass(frozen=True)
class _Stream(IterableDataset[Any]):
    """Makes the micro-batches of one rank; process w makes every W-th of them, from the w-th on.

    Args:
        jobs: positions in the epoch of each micro-batch.
        borders: in the epoch's sequence of images, between the parts of its processes [W + 1].
        seed: of this epoch.
    """

    split: ImageSplit
    source: ShardSource
    jobs: list[np.ndarray]
    borders: list[int]
    seed: int
    rank: int
    key: int
    views: int
    held: int
    strengths: Strengths | None

    def __iter__(self) -> Iterator[Loaded | str]:
        info = get_worker_info()
        worker = 0 if info is None else info.id
        try:
            yield from self._batches(worker)
        except UserError as error:
            yield str(error)  # an exception would come back with the worker's traceback in it

    def _batches(self, worker: int) -> Iterator[Loaded]:
        low, high = self.borders[worker : worker + 2]
        rng = random.Random(derive(self.seed, "held", self.rank, worker))
        shuffled = wds.shuffle(self.held, rng=rng)(_images(self.source, self.seed, low, high))
        split = copy.copy(self.split)
        for positions in self.jobs[worker :: len(self.borders) - 1]:
            batch: dict[int, bytes] = dict(itertools.islice(shuffled, len(positions)))
            indices = np.fromiter(batch, dtype=np.int64)
            split.source = _Held(self.source, batch)
            classes, strengths = split.labels[indices], None
            if self.strengths is not None:
                strengths = self.strengths.of(classes, self.key, positions)
            which: dict[str, Any] = {"key": self.key, "positions": positions, "views": self.views}
            if isinstance(split, EncodedSplit):
                images = split.load_encoded(indices, **which)
            else:
                images = split.load(indices, strengths=strengths, **which)
            labels, index = torch.from_numpy(classes), torch.from_numpy(indices)
            problem = share((*images, labels, index))
            if problem:
                raise UserError(problem)
            yield Loaded(images, labels, index)


@dataclass(frozen=True)
class _Held:
    """The images of one micro-batch as a ``Source``."""

    source: ShardSource
    batch: dict[int, bytes]

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        data = [bytearray(self.batch[index]) for index in indices.tolist()]
        return [np.frombuffer(one, dtype=np.uint8) for one in data]

    def name(self, index: int) -> str:
        return self.source.name(index)

    def fingerprint(self, labels: np.ndarray) -> str:
        return self.source.fingerprint(labels)


def _images(source: ShardSource, seed: int, low: int, high: int) -> Iterator[tuple[int, bytes]]:
    """Yield row and bytes of the images ``low`` to ``high`` of an epoch's sequence."""
    index = source.index
    place = np.empty(len(source.manifest.shards), dtype=np.int64)  # of each shard in the sequence
    place[keyed_permutation(seed, len(place))] = np.arange(len(place))
    sequence = np.lexsort((index["offset"], place[index["shard"]]))
    shards = index["shard"][sequence[low:high]]
    changes = (np.flatnonzero(np.diff(shards)) + 1 + low).tolist()
    for first, end in itertools.pairwise([low, *changes, high]):
        if first == end:
            continue  # nothing is wanted of this process
        start = 0
        before = index[sequence[first - 1]]
        if first and before["shard"] == shards[first - low]:
            start = -(-(int(before["offset"]) + int(before["size"])) // _BLOCK) * _BLOCK
        yield from _members(source, sequence[first:end], start)


def _members(source: ShardSource, rows: np.ndarray, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield row and bytes of some images that follow each other in one shard, from a byte on."""
    shard = int(source.index[rows[0]]["shard"])
    name = source.manifest.shards[shard].name
    shown = f"`{source.folder / name}`" if source.remote is None else source.remote.shown(name)
    wanted = iter(rows.tolist())
    row = next(wanted)
    reason = "the tar ends before it, or its bytes are others"
    with _Tap(source, shard, start) as tap:
        members = wds.tariterators.tar_file_expander([{"url": name, "stream": tap}], eof_value=None)
        try:
            for member in members:
                data: bytes = member["data"]
                of_row = source.index[row]
                if len(data) != of_row["size"] or crc32_of(data) != of_row["crc32"]:
                    continue  # its label, or what comes with it in tars made elsewhere
                yield row, data
                row = next(wanted, -1)
                if row < 0:
                    return
        except Exception as error:  # tarfile raises anything, from IndexError to RecursionError
            reason = str(error.args[0] if error.args else error).split("\n")[0]
        if isinstance(tap.error, UserError):
            raise tap.error
        raise UserError(
            f"cannot stream {source.name(row)} from {shown}: {tap.error or reason}; copy that "
            "shard again, and check it with `ltbench data check ... level=sha256`"
        )


class _Tap:
    """A shard's bytes for webdataset, which rewrites the messages of errors that it sees."""

    def __init__(self, source: ShardSource, shard: int, start: int) -> None:
        self.error: Exception | None = None
        self._empty = 0  # reads in a row that came back empty
        self._stream: Body | BinaryIO
        if source.remote is not None:
            self._stream = source.remote.stream(shard, start)
            return
        path = source.folder / source.manifest.shards[shard].name
        try:
            self._stream = os.fdopen(open_regular(path), "rb")
        except OSError as error:
            raise UserError(
                f"cannot read `{path}`: {error.strerror}; copy this shard again"
            ) from error
        self._stream.seek(start)

    def __enter__(self) -> _Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, n: int) -> bytes:
        """Return the next bytes, none at the end or after an error.

        Raises:
            EOFError: the end was read again and again.
        """
        data = b""
        try:
            data = self._stream.read(n)
        except (UserError, OSError) as error:
            self.error = error
        self._empty = 0 if data else self._empty + 1
        if self._empty > _PATIENCE:  # tarfile would look for the end of some headers forever
            raise EOFError("unexpected end of data")
        return data


def _load(
    dataset: _Stream,
    workers: int,
    device: torch.device,
    layout: torch.memory_format,
    start_method: str | None,
) -> Iterator[Loaded]:
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        collate_fn=_same,
        pin_memory=device.type == "cuda",
        multiprocessing_context=start_method if workers else None,
        generator=torch.Generator(),  # the default one would draw from the global stream
    )
    if workers:
        check_descriptors(workers)
    with worker_errors() if workers else nullcontext():
        for positions, item in zip(dataset.jobs, loader, strict=True):
            if isinstance(item, str):
                raise UserError(item)
            views = received(
                dataset.split, item.views, device, indices=item.index.numpy(), key=dataset.key,
                positions=positions, views=dataset.views,
            )  # fmt: skip
            views = dataset.split.finish(views, key=dataset.key, positions=positions)
            yield Loaded(
                tuple(view.contiguous(memory_format=layout) for view in views),
                item.labels.to(device, non_blocking=True),
                item.index.to(device, non_blocking=True),
            )


def _same(item: Any) -> Any:
    return item
