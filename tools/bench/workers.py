"""Memory of a loader process, by the size of the data set."""

from __future__ import annotations

import multiprocessing
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from corpus import CASES, Corpus, photographs, temporary_folder
from rounds import Row
from torch.utils.data import get_worker_info

from ltbench.data.images import ImageSplit
from ltbench.data.loader import Loader
from ltbench.data.shards.format import read_index, read_manifest, write_index, write_manifest
from ltbench.data.shards.reader import ShardSource
from ltbench.errors import UserError
from ltbench.seeding import keyed_permutation

SIZES = (1_000, 50_000, 437_513)  # the last is iNaturalist 2018
IMAGES, BATCH, SIDE = 500, 128, 112


def workers(folder: Path | None = None, *, rounds: int = 1, steps: int = 40) -> list[Row]:
    """Measure the memory that belongs to a loader process alone, after reading from random places.

    The data sets have as many images as they say, drawn from a few hundred that are there.

    Args:
        folder: where files are written for the time; ``None`` is the system's place.
        rounds: how often each is measured.
        steps: batches that are read before.

    Raises:
        UserError: the system does not tell.
    """
    if not Path("/proc/self/smaps_rollup").is_file():
        raise UserError("what=workers needs Linux's /proc/PID/smaps_rollup; leave it out here")
    rows: list[Row] = []
    first = 0.0
    with temporary_folder(folder) as at:
        Corpus(at, photographs(CASES["Places"], IMAGES))
        for n in SIZES:
            enlarged = _enlarge(at / "shards" / "train", at / f"of{n}" / "train", n)
            # In a process of its own, so that what was left over here is not inherited.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                found = list(
                    fresh.map(_private, [enlarged] * rounds, range(rounds), [steps] * rounds)
                )
            mib = statistics.median(found) / 2**20
            first = first or mib
            rows.append(
                {
                    "goal": "memory",
                    "case": f"{n:,} images",
                    "pipeline": "MiB of one loader process alone",
                    "mib": round(mib, 1),
                    "ratio": mib / first,
                }
            )
    return rows


class _Telling(ImageSplit):
    """Puts the private bytes of the loader process in the notes of a batch."""

    def take_notes(self) -> list[str]:
        return [] if get_worker_info() is None else [f"private {_private_bytes()}"]


class _Listening(Loader):
    heard: Sequence[str] = ()

    def _note(self, notes: Sequence[str]) -> None:
        self.heard = notes


def _private(folder: Path, number: int, steps: int) -> int:
    source = ShardSource(folder)
    split = _Telling(source, source.labels, augment="inat", image_size=SIDE)
    loader = _Listening(split, workers=1)
    order = keyed_permutation(number, len(split))
    order = np.resize(order, max(len(order), steps * BATCH))[: steps * BATCH]
    for _ in loader.batches(order, BATCH, key=number):
        pass
    (last,) = loader.heard
    return int(last.split()[1])


def _private_bytes() -> int:
    lines = Path(f"/proc/{os.getpid()}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) * 1024


def _enlarge(small: Path, large: Path, n: int) -> Path:
    """Write a split of ``n`` images whose index points to those of a small one, again and again."""
    large.mkdir(parents=True)
    manifest = read_manifest(small)
    rows = np.resize(np.array(read_index(small, manifest)), n)
    hashes = write_index(large, rows, [f"{i}.jpg" for i in range(n)])
    for shard in manifest.shards:
        (large / shard.name).hardlink_to(small / shard.name)
    counts = np.bincount(rows["label"], minlength=manifest.num_classes)
    write_manifest(
        large,
        replace(
            manifest,
            samples=n,
            class_counts=tuple(counts.tolist()),
            index_sha256=hashes[0],
            keys_sha256=hashes[1],
        ),
    )
    return large
