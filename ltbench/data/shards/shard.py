"""Writer of one shard, which exists in full or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

from isal.isal_zlib import crc32 as crc32_of

from ltbench.data.shards.format import MANIFEST, member_ending
from ltbench.data.shards.jobs import Tick
from ltbench.data.shards.layout import place_in
from ltbench.data.shards.ustar import END, padding, sample_head
from ltbench.digest import file_sha256, open_regular
from ltbench.errors import UserError
from ltbench.files import create, read_sealed, seal, write_atomic

_FLUSH = 2**20  # bytes that are collected before they are hashed and written


class Sidecar(TypedDict):
    """Content of ``<shard>.json``: what the index needs to know of a finished shard.

    Args:
        plan: digest of the plan it belongs to.
        bytes: size of the tar.
        sha256: of the tar.
        offset: of each image's bytes in the tar, in the order of the tar [n].
        size: of each image in bytes [n].
        crc32: of each image's bytes [n].
    """

    plan: str
    bytes: int
    sha256: str
    offset: list[int]
    size: list[int]
    crc32: list[int]


@dataclass(frozen=True)
class Packing:
    """Facts common to the shards of one packing.

    Args:
        folder: of the split.
        root: folder of the images, or a function that returns the bytes of image i.
        plan: digest of the plan.
        resize_short: short side that larger images are shrunk to, in pixels.
    """

    folder: str
    root: str | Path | Callable[[int], bytes]
    plan: str
    resize_short: int | None


@dataclass(frozen=True)
class ShardJob:
    """One shard and its images, in the order of the tar.

    Args:
        name: of the tar.
        rows: number of each image in the list [n].
        paths: of each image, as listed [n].
        keys: name of each image's members without ending [n].
        labels: class of each image [n].
        sizes: bytes of each image by the plan [n].
        stamps: when each file was last changed by the plan, ns [n].
    """

    name: str
    rows: list[int]
    paths: list[str]
    keys: list[bytes]
    labels: list[int]
    sizes: list[int]
    stamps: list[int]


def pack_shard(task: Packing, job: ShardJob, tick: Tick) -> Sidecar:
    """Write a shard and its sidecar, unless both are there and right.

    The tar is written under another name, and is on the disk in full before it is renamed; only
    then is the sidecar written.

    Args:
        task: of the packing.
        job: of the shard.
        tick: called with the number of images done.

    Raises:
        UserError: an image cannot be read or has changed, or the disk is full.
    """
    folder = Path(task.folder)
    path, sidecar = folder / job.name, folder / f"{job.name}.json"
    finished = _finished(task, job, path, sidecar, tick)
    if finished is not None:
        return finished
    partial_path = folder / f"{job.name}.{os.getpid()}.part"
    try:
        for stale in (folder / MANIFEST, sidecar):  # they would speak of a shard that is not there
            stale.unlink(missing_ok=True)
        content = _write_shard(task, job, partial_path, tick)
        partial_path.replace(path)
        sync_folder(folder)
        write_atomic(sidecar, seal(json.dumps(content)))
        sync_folder(folder)
    except OSError as error:
        raise UserError(
            f"could not write `{path}`: {error.strerror}; make room there and run the same again, "
            "finished shards are kept"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial_path.unlink()
    return content


def _finished(
    task: Packing, job: ShardJob, path: Path, sidecar: Path, tick: Tick
) -> Sidecar | None:
    """Return the sidecar of a shard that an earlier packing finished, if all of it is right."""
    try:
        if not sidecar.is_file():
            return None
        content = cast(Sidecar, read_sealed(sidecar, ""))
        images, size = len(job.rows), content["bytes"]
        whole = (
            content["plan"] == task.plan
            and len(content["offset"]) == images
            and path.is_file()
            and path.stat().st_size == size
            and file_sha256(path, lambda done: tick(images * done // size)) == content["sha256"]
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if whole else None


def _write_shard(task: Packing, job: ShardJob, path: Path, tick: Tick) -> Sidecar:
    read = _reader(task, job)
    digest = hashlib.sha256()
    offsets: list[int] = []
    sizes: list[int] = []
    checksums: list[int] = []
    at = flushed = 0
    waiting: list[bytes] = []
    with create(path) as file:
        descriptor = file.fileno()
        for place, (key, label) in enumerate(zip(job.keys, job.labels, strict=True)):
            data, ending = read(place)
            size = len(data)
            head, tail = sample_head(key, ending, label, size), padding(size)
            waiting += (head, data, tail)
            at += len(head)
            offsets.append(at)
            sizes.append(size)
            checksums.append(crc32_of(data))
            at += size + len(tail)
            if at - flushed >= _FLUSH:
                _write(descriptor, digest, waiting)
                waiting, flushed = [], at
                tick(place + 1)
        _write(descriptor, digest, [*waiting, END])
        os.fsync(descriptor)
    tick(len(offsets))
    return {
        "plan": task.plan,
        "bytes": at + len(END),
        "sha256": digest.hexdigest(),
        "offset": offsets,
        "size": sizes,
        "crc32": checksums,
    }


def _write(descriptor: int, digest: Any, blocks: list[bytes]) -> None:
    chunk = b"".join(blocks)
    digest.update(chunk)
    left = memoryview(chunk)
    while left:
        left = left[os.write(descriptor, left) :]


def _reader(task: Packing, job: ShardJob) -> Callable[[int], tuple[bytes, bytes]]:
    """Return a function from an image's place in the shard to its content and ending."""
    endings = [member_ending(path).encode("utf-8", "surrogateescape") for path in job.paths]
    short, root = task.resize_short, task.root
    if callable(root):
        produce = root

        def read(place: int) -> bytes:
            data = produce(job.rows[place])
            if len(data) != job.sizes[place]:
                raise _changed(job.paths[place], job.sizes[place], len(data))
            return data
    else:
        located = place_in(root)

        def read(place: int) -> bytes:
            return _read_file(located(job.paths[place]), job.sizes[place], job.stamps[place])

    if short is None:
        return lambda place: (read(place), endings[place])
    from ltbench.data.shards.resize import shrink

    def resized(place: int) -> tuple[bytes, bytes]:
        data = read(place)
        small = shrink(data, short, job.paths[place])
        return (data, endings[place]) if small is None else (small, b".jpg")

    return resized


def _read_file(path: str, size: int, stamp: int) -> bytes:
    try:
        descriptor = open_regular(path)
        try:
            data = os.read(descriptor, size + 1)
            while len(data) < size and (more := os.read(descriptor, size + 1 - len(data))):
                data += more
            changed = os.fstat(descriptor).st_mtime_ns != stamp
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(
            f"cannot read image `{path}`: {error.strerror}; copy it again or remove it from the "
            "list"
        ) from error
    if changed or len(data) != size:
        raise _changed(path, size, len(data))
    return data


def _changed(path: str, planned: int, found: int) -> UserError:
    return UserError(
        f"image `{path}` changed while it was being packed ({planned:,} bytes before, at least "
        f"{found:,} now); run the same again when nothing writes there"
    )


def sync_folder(folder: Path) -> None:
    """Make names of files last; some file systems cannot, and need not, be asked to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
