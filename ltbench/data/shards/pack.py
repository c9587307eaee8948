"""Packing of images into shards; a killed packing is resumed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ltbench.data.shards import format
from ltbench.data.shards.format import (
    ROW,
    Manifest,
    Shard,
    content_of,
    fingerprint_of,
    write_index,
    write_info,
    write_manifest,
)
from ltbench.data.shards.jobs import Progress, run_jobs
from ltbench.data.shards.layout import (
    LARGEST,
    PLAN,
    PartToPack,
    Plan,
    agree,
    make_plan,
)
from ltbench.data.shards.shard import Packing, ShardJob, Sidecar, pack_shard, sync_folder
from ltbench.errors import UserError

__all__ = ["PartToPack", "pack"]

SHARD_BYTES = 256 * 2**20


def pack(
    part: PartToPack,
    out: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
    resize_short: int | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Pack one split into webdataset shards with an index; go on where an earlier call stopped.

    The bytes of all files depend on the images, the list and the parameters, not on the number of
    workers or on interruptions. Which image lies in which shard is settled first and kept in
    ``plan.json``. A shard gets its name when it is on the disk in full, and counts once its
    ``<shard>.json`` is there too; the manifest is written last. Finished shards are kept if their
    SHA-256 is right.

    Args:
        part: the images.
        out: folder of the split; ``_info.json`` is written beside it, for timm.
        shard_bytes: largest size of a shard, 1 to 2**30; a larger image has one for itself.
        seed: of the order of the images in the shards, 0 or larger.
        resize_short: re-encode images whose short side is longer than this many pixels.
        workers: processes; ``None`` takes one per usable core.
        progress: called with the numbers of images packed and of all.

    Returns:
        The manifest that was written.

    Raises:
        UserError: images, folder or parameters are not usable, or the disk is full. Shards that
            were finished stay, and the same call goes on with them.
    """
    parameters = _parameters(shard_bytes, seed, resize_short)
    out = Path(out)
    _check_place(part, out)
    plan = make_plan(part, parameters)
    with _claimed(out):
        agree(out, plan)
        task = Packing(str(out), part.root, plan.digest, resize_short)
        jobs = [_job(part, plan, number) for number in range(len(plan.shards))]
        packed = run_jobs(
            partial(pack_shard, task),
            jobs,
            [len(rows) for rows in plan.shards],
            workers=workers,
            progress=progress,
        )
        return _finish(part, plan, out, [job.name for job in jobs], packed)


def _parameters(shard_bytes: int, seed: int, resize_short: int | None) -> dict[str, Any]:
    if not 1 <= shard_bytes <= LARGEST:
        raise UserError(f"a shard has 1 to {LARGEST} bytes (1 GiB), found {shard_bytes}")
    if seed < 0:
        raise UserError(f"the seed of a packing is 0 or larger, found {seed}")
    if resize_short is not None and resize_short < 1:
        raise UserError(f"resize_short is a number of pixels, 1 or more, found {resize_short}")
    parameters: dict[str, Any] = {
        "shard_bytes": shard_bytes,
        "seed": seed,
        "resize_short": resize_short,
    }
    if resize_short is not None:
        from PIL import __version__ as pillow

        from ltbench.data.shards.resize import QUALITY

        parameters["resized_by"] = f"Pillow {pillow}, bicubic, JPEG quality {QUALITY}"
    return parameters


def _check_place(part: PartToPack, out: Path) -> None:
    if not callable(part.root):
        root = Path(part.root).resolve()
        if root == out.resolve() or root in out.resolve().parents:
            raise UserError(
                f"the shards would lie in `{out}`, inside the folder of the images, `{part.root}`; "
                "pass another out="
            )


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Make the folder this process's own; without leftovers before and after."""
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if there and PLAN not in there:
            raise UserError(
                f"`{folder}` is not empty (`{there[0]}`, ...) and was not begun by a packing; pass "
                "another out="
            )
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another process is packing into `{folder}`; wait for it, or pass another out="
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot write to `{folder}`: {error.strerror}; pass another out="
        ) from error
    try:
        _remove_leftovers(folder)
        yield
    finally:
        _remove_leftovers(folder)
        lock.release()


def _remove_leftovers(folder: Path) -> None:
    for pattern in ("*.part", ".partial-*"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                path.unlink()


def _job(part: PartToPack, plan: Plan, number: int) -> ShardJob:
    rows = plan.shards[number]
    listed = rows.tolist()
    return ShardJob(
        name=f"{part.split}-{number:05d}.tar",
        rows=listed,
        paths=[part.paths[row] for row in listed],
        keys=[plan.keys[row].encode("utf-8", "surrogateescape") for row in listed],
        labels=np.asarray(part.labels)[rows].tolist(),
        sizes=plan.sizes[rows].tolist(),
        stamps=plan.stamps[rows].tolist(),
    )


def _finish(
    part: PartToPack, plan: Plan, folder: Path, names: list[str], packed: list[Sidecar]
) -> Manifest:
    """Write index, keys, manifest and timm's description."""
    labels = np.asarray(part.labels)
    index = np.zeros(len(labels), dtype=ROW)
    index["label"] = labels
    for number, (rows, content) in enumerate(zip(plan.shards, packed, strict=True)):
        index["shard"][rows] = number
        for field in ("offset", "size", "crc32"):
            index[field][rows] = content[field]
    small = int(index["size"].sum(dtype=np.int64)) <= format.CONTENT_LIMIT
    index_sha256, keys_sha256 = write_index(folder, index, part.paths)
    manifest = Manifest(
        dataset=part.dataset,
        split=part.split,
        samples=len(labels),
        class_counts=tuple(np.bincount(labels, minlength=len(part.class_names)).tolist()),
        class_names=tuple(part.class_names),
        shards=tuple(
            Shard(name, content["bytes"], content["sha256"], len(content["offset"]))
            for name, content in zip(names, packed, strict=True)
        ),
        index_sha256=index_sha256,
        keys_sha256=keys_sha256,
        fingerprint=fingerprint_of(part.paths, index["label"], index["crc32"]),
        content=content_of(part.paths, labels, index["size"], index["crc32"] if small else None),
        list_sha256=part.list_sha256,
        parameters=plan.parameters,
    )
    write_manifest(folder, manifest)
    write_info(folder.parent)
    sync_folder(folder)
    return manifest
