"""Checks of shards, from file sizes up to decoding every image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
from isal.isal_zlib import crc32 as crc32_of

from ltbench.data.codecs import LENIENT, decode_jpeg, eight_bits, open_image, reason_of
from ltbench.data.shards import format
from ltbench.data.shards.format import (
    MANIFEST,
    Manifest,
    content_of,
    fingerprint_of,
    member_ending,
    member_key,
    read_index,
    read_keys,
    read_manifest,
)
from ltbench.data.shards.jobs import Progress, Tick, run_jobs
from ltbench.data.shards.layout import PLAN
from ltbench.data.shards.manifest import index_problems
from ltbench.data.shards.ustar import BLOCK, sample_head
from ltbench.digest import file_sha256, open_regular
from ltbench.errors import UserError

Level = Literal["size", "crc", "sha256", "decode"]
LEVELS: tuple[str, ...] = get_args(Level)

_HEAD = 3 * BLOCK  # of a packed image: its label's member and its own header


@dataclass(frozen=True)
class Report:
    """Findings of a check.

    Args:
        level: of the check.
        splits: number of splits.
        shards: number of shards.
        images: number of images.
        bytes: of all shards, as their manifests have it.
        problems: one line each: where, what was expected, what was found.
    """

    level: str
    splits: int
    shards: int
    images: int
    bytes: int
    problems: tuple[str, ...]


def check(
    folder: Path,
    level: str = "crc",
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Look for damage in the shards of one split or of all splits below a folder.

    Each level does what those before it do: ``size`` compares files with the manifest and the
    index with itself, without reading the shards; ``crc`` reads every image, its checksum and its
    label; ``sha256`` hashes whole shards; ``decode`` opens every image as RGB.

    Args:
        folder: of a split, or the root above splits.
        level: one of ``LEVELS``.
        workers: processes; ``None`` takes one per usable core.
        progress: called with the numbers of images checked and of all.

    Raises:
        UserError: the level is unknown, or the folder holds no shards.
    """
    if level not in LEVELS:
        raise UserError(f"level is one of {', '.join(LEVELS)}, found `{level}`")
    folders = _splits(Path(folder))
    problems: list[str] = []
    jobs: list[_Job] = []
    images = shards = size = 0
    for split in folders:
        try:
            manifest = read_manifest(split)
        except UserError as error:
            problems.append(str(error))
            continue
        images += manifest.samples
        shards += len(manifest.shards)
        size += sum(shard.bytes for shard in manifest.shards)
        problems += _check_tables(split, manifest, jobs)
    found = run_jobs(
        partial(_check_shard, cast(Level, level)),
        jobs,
        [len(job.keys) for job in jobs],
        workers=1 if level == "size" else workers,
        progress=progress,
    )
    problems += [line for lines in found for line in lines]
    return Report(level, len(folders), shards, images, size, tuple(problems))


def _splits(folder: Path) -> list[Path]:
    """Return the folders of finished and of unfinished splits."""
    marks = (MANIFEST, PLAN)
    if any((folder / mark).is_file() for mark in marks):
        return [folder]
    found = sorted({path.parent for mark in marks for path in folder.glob(f"*/{mark}")})
    if not found:
        raise UserError(
            f"`{folder}` holds no shards, neither {MANIFEST} nor folders with one; give what "
            "`ltbench data prepare` or `ltbench data index` wrote"
        )
    return found


@dataclass(frozen=True)
class _Job:
    """A shard and its images in the order of the tar."""

    path: Path
    bytes: int
    sha256: str
    packed: bool  # by `pack`, so that every byte is known, not only those of the images
    lenient: bool  # damaged JPEGs are accepted
    rows: np.ndarray
    keys: list[str]


def _check_tables(folder: Path, manifest: Manifest, jobs: list[_Job]) -> list[str]:
    """Return the problems of manifest, index and keys, and add the shards to ``jobs``."""
    problems: list[str] = []
    try:
        index = np.asarray(read_index(folder, manifest))
        keys = read_keys(folder, manifest)
    except UserError as error:  # the shards themselves can still be checked
        problems.append(str(error))
        index, keys = np.zeros(0, dtype=np.dtype([])), []
    else:
        problems += [
            f"{folder / MANIFEST}: {line}" for line in _disagreements(manifest, index, keys)
        ]
        if problems:
            index, keys = index[:0], []
    for number, shard in enumerate(manifest.shards):
        rows = np.nonzero(index["shard"] == number)[0] if len(index) else np.zeros(0, np.int64)
        if len(index):
            rows = rows[np.argsort(index["offset"][rows], kind="stable")]
        jobs.append(
            _Job(
                folder / shard.name,
                shard.bytes,
                shard.sha256,
                manifest.dataset != "foreign",
                manifest.dataset in LENIENT,
                index[rows],
                [keys[row] for row in rows.tolist()],
            )
        )
    return problems


def _disagreements(manifest: Manifest, index: np.ndarray, keys: list[str]) -> Iterator[str]:
    """Yield contradictions between manifest, index and keys, each of them undamaged."""
    if len(keys) != len(index):
        yield f"{len(keys)} keys for {len(index)} images"
        return
    if len(set(keys)) != len(keys):
        yield "a key occurs twice"
    problems = list(index_problems(manifest, index))
    yield from problems
    if problems:
        return
    if fingerprint_of(keys, index["label"], index["crc32"]) != manifest.fingerprint:
        yield "the fingerprint is not that of keys, labels and checksums"
    small = int(index["size"].sum(dtype=np.int64)) <= format.CONTENT_LIMIT
    crc32 = index["crc32"] if small else None
    if content_of(keys, index["label"], index["size"], crc32) != manifest.content:
        yield "the content is not that of labels, sizes and checksums: it is of other images"


def _check_shard(level: Level, job: _Job, tick: Tick) -> list[str]:
    try:
        with open(open_regular(job.path), "rb") as file:  # noqa: PTH123 (a descriptor)
            size = os.fstat(file.fileno()).st_size
        if size != job.bytes:
            return [f"{job.path}: {size} bytes, the manifest says {job.bytes}; copy it again"]
        if level == "size":
            return []
        problems = list(_check_images(level == "decode", job, tick))
        if level != "crc":
            found = file_sha256(job.path, lambda _: tick(len(job.keys)))
            if found != job.sha256:
                problems.append(
                    f"{job.path}: SHA-256 is {found[:12]}..., the manifest says "
                    f"{job.sha256[:12]}...; copy it again"
                )
    except OSError as error:
        return [f"{job.path}: cannot be read: {error.strerror}; copy it again"]
    return problems


def _check_images(decode: bool, job: _Job, tick: Tick) -> Iterator[str]:
    with job.path.open("rb") as file:
        for place, (row, key) in enumerate(zip(job.rows, job.keys, strict=True)):
            start, size, label = int(row["offset"]), int(row["size"]), int(row["label"])
            where = f"{job.path}, offset {start}, `{key}`"
            skip = _HEAD if job.packed and start >= _HEAD else 0
            file.seek(start - skip)
            read = file.read(skip + size)
            head, data = read[:skip], read[skip:]
            if len(data) != size:
                yield f"{where}: {len(data)} bytes, the index says {size}; copy the shard again"
                continue
            found = crc32_of(data)
            if found != int(row["crc32"]):
                yield (
                    f"{where}: CRC-32 is {found:08x}, the index says {int(row['crc32']):08x}; copy "
                    "the shard again"
                )
            elif decode and (reason := _undecodable(data, job.lenient)):
                yield f"{where}: cannot be decoded: {reason}; replace the image and pack again"
            if job.packed and (reason := _wrong_head(head, key, label, size)):
                yield f"{where}: {reason}; copy the shard again"
            if place % 64 == 0:
                tick(place)
    tick(len(job.keys))


def _wrong_head(head: bytes, key: str, label: int, size: int) -> str:
    """Return the fault in the bytes before a packed image, or an empty string."""
    name = member_key(key).encode("utf-8", "surrogateescape")
    for ending in (member_ending(key), ".jpg"):  # the second: resized
        expected = sample_head(name, ending.encode("utf-8", "surrogateescape"), label, size)
        if head == expected:
            return ""
    text = head[BLOCK : 2 * BLOCK].rstrip(b"\0")
    if text != b"%d" % label:
        return f"the label beside it is {text[:20]!r}, the index says {label}"
    return "the tar headers before it are damaged"


def _undecodable(data: bytes, lenient: bool) -> str:
    """Return why an image cannot be read as RGB, or an empty string."""
    try:
        if decode_jpeg(np.frombuffer(data, dtype=np.uint8), lenient=lenient) is None:
            with open_image(data) as image:
                image.load()
                eight_bits(image).convert("RGB")
    except Exception as error:  # decoders raise anything, from KeyError to struct.error
        return reason_of(error)
    return ""
