"""Time of reading, packing and opening shards (T4, T6, T7), webdataset's tools beside ours."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import time
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from corpus import CASES, Corpus, photographs, small_images, temporary_folder
from isal.isal_zlib import crc32
from loading import our_loader
from rounds import (
    BATCH,
    MOST,
    MOST_CRC,
    OURS,
    Row,
    batches,
    compare,
    limit,
    median_seconds,
    one_thread,
)

from ltbench.data.samplers import (
    ClassAware,
    Deferred,
    Effective,
    Instance,
    Progressive,
    Reversed,
    Sampler,
    SquareRoot,
)
from ltbench.data.shards.format import ROW, Manifest, Shard, write_index, write_manifest
from ltbench.data.shards.pack import pack
from ltbench.data.shards.reader import ShardSource
from ltbench.seeding import keyed_permutation


def reading(
    folder: Path | None = None, *, images: int = 2000, small: int = 4000, rounds: int = 5
) -> list[Row]:
    """Measure T4: bytes of small images against a stream, and reads that the disk has to answer.

    The second part counts seconds of the clock, after the system was asked to forget the files;
    where it does not (a disk in memory), all are alike.

    Args:
        folder: where files are written for the time, on the disk to be measured.
        images: photographs to read from the disk.
        small: small images.
        rounds: how often each pipeline runs.
    """
    with temporary_folder(folder) as at:
        tiny = Corpus(at / "small", small_images(small))
        rows = compare(
            "T4",
            "small images",
            {
                OURS: functools.partial(_read_random, tiny.source()),
                "webdataset, in order": functools.partial(_stream, tiny),
            },
            rounds,
        )
        photos = photographs(CASES["ImageNet"], 200)
        cold = Corpus(at / "cold", list(itertools.islice(itertools.cycle(photos), images)))
        rows += compare(
            "T4",
            "cold",
            {
                OURS: functools.partial(_read_random, cold.source()),
                "one by one": functools.partial(_read_plainly, cold, shuffled=True),
                "in order": functools.partial(_read_plainly, cold, shuffled=False),
                "webdataset, in order": functools.partial(_stream, cold),
            },
            rounds,
            clock=time.perf_counter,
            before=functools.partial(_forget, cold.tars),
        )
    return rows


def packing(
    folder: Path | None = None, *, images: int = 500, small: int = 4000, rounds: int = 3
) -> list[Row]:
    """Measure T6: packing a folder, checksums, hashes and syncing included, against ShardWriter.

    Args:
        folder: where files are written for the time.
        images: photographs.
        small: small images.
        rounds: how often each runs.
    """
    rows = []
    with temporary_folder(folder) as at:
        photos = photographs(CASES["ImageNet"], 100)
        cases = {
            "ImageNet": list(itertools.islice(itertools.cycle(photos), images)),
            "small images": small_images(small),
        }
        for name, contents in cases.items():
            corpus = Corpus(at / name.replace(" ", "-"), contents)
            both = {
                OURS: functools.partial(_pack, corpus, at / "ours" / name.replace(" ", "-")),
                "ShardWriter": functools.partial(_shard_writer, corpus, at / "theirs" / name),
            }
            rows += compare("T6", name, both, rounds)
    return rows


def index(folder: Path | None = None, *, rounds: int = 5) -> list[Row]:
    """Measure T7: opening the index of iNaturalist 2018, orders of its epochs, and checksums.

    Args:
        folder: where files are written for the time.
        rounds: how often each runs.
    """
    facts = json.loads((resources.files("ltbench.data") / "facts" / "inat18.json").read_text())
    counts = facts["parts"]["train"]["counts"]
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = []
    with temporary_folder(folder) as at, one_thread():
        _write_index_only(at / "train", labels, counts)
        seconds = median_seconds(lambda: ShardSource(at / "train"), rounds)
        rows.append(limit("open the index of iNaturalist 2018", seconds, MOST["open"]))
    for name, sampler in _samplers().items():
        order = functools.partial(sampler.order, labels, 0, 30, 90, 512)
        seconds = median_seconds(order, rounds)
        rows.append(limit(f"an order of iNaturalist 2018, {name}", seconds, MOST["order"]))
    return [*rows, _crc_share(folder, rounds)]


# Pipelines -----------------------------------------------------------------------------------


def _read_random(source: ShardSource, number: int) -> int:
    for rows in batches(keyed_permutation(number, len(source)), 256):
        source.read(rows)
    return len(source)


def _stream(corpus: Corpus, number: int) -> int:
    wds = importlib.import_module("webdataset")
    data = wds.WebDataset([str(tar) for tar in corpus.tars], shardshuffle=False)
    return sum(len(sample[corpus.kind]) > 0 for sample in data)


def _read_plainly(corpus: Corpus, number: int, *, shuffled: bool) -> int:
    """Read images each when its turn comes, in random order or in that of the shards."""
    index = ShardSource(corpus.shards / "train").index
    order = keyed_permutation(number, len(index))
    if not shuffled:
        order = np.lexsort((index["offset"], index["shard"]))
    files = [os.open(tar, os.O_RDONLY) for tar in corpus.tars]
    try:
        for shard, _, offset, size, _ in index[order].tolist():
            os.pread(files[shard], size, offset)
    finally:
        for file in files:
            os.close(file)
    return len(index)


def _forget(files: Iterable[Path]) -> None:
    for path in files:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(file)


def _pack(corpus: Corpus, out: Path, number: int) -> int:
    pack(corpus.part, out / str(number) / "train", workers=1)
    return len(corpus)


def _shard_writer(corpus: Corpus, out: Path, number: int) -> int:
    wds = importlib.import_module("webdataset")
    into = out / str(number)
    into.mkdir(parents=True)
    labels = corpus.part.labels.tolist()
    with wds.ShardWriter(str(into / "train-%05d.tar"), verbose=0) as writer:
        for path, label in zip(corpus.part.paths, labels, strict=True):
            content = (corpus.folder / path).read_bytes()
            writer.write({"__key__": path.rpartition(".")[0], corpus.kind: content, "cls": label})
    return len(corpus)


def _samplers() -> dict[str, Sampler]:
    return {
        "instance": Instance(),
        "square root": SquareRoot(),
        "class aware": ClassAware(),
        "class aware, 1 an image": ClassAware(ClassAware.Config(per_class=1)),
        "reversed": Reversed(),
        "progressive": Progressive(),
        "effective": Effective(),
        "deferred": Deferred(Deferred.Config(start=0)),
    }


def _write_index_only(at: Path, labels: np.ndarray, counts: Sequence[int]) -> None:
    """Write index and manifest of shards that are not there."""
    at.mkdir(parents=True)
    n, each = len(labels), 160_000
    rows = np.zeros(n, dtype=ROW)
    order = keyed_permutation(0, n)
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n)
    rows["shard"], rows["offset"] = place // 1700, place % 1700 * each + 1536
    rows["label"], rows["size"], rows["crc32"] = labels, each - 2000, order
    keys = [f"train_val2018/Plantae/{label}/{i:032x}.jpg" for i, label in enumerate(labels)]
    hashes = write_index(at, rows, keys)
    shards = [
        Shard(f"train-{s:05}.tar", 1700 * each, "0" * 64, min(1700, n - 1700 * s))
        for s in range(-(-n // 1700))
    ]
    write_manifest(
        at,
        Manifest(
            dataset="inat18",
            split="train",
            samples=n,
            class_counts=tuple(counts),
            class_names=tuple(f"class {i}" for i in range(len(counts))),
            shards=tuple(shards),
            index_sha256=hashes[0],
            keys_sha256=hashes[1],
            fingerprint="0" * 64,
            content="listing:" + "0" * 64,
        ),
    )


def _crc_share(folder: Path | None, rounds: int) -> Row:
    contents = photographs(CASES["ImageNet"], BATCH)
    with temporary_folder(folder) as at:
        run = our_loader(Corpus(at / "crc", contents).source())
        with one_thread():
            whole = median_seconds(lambda: run(1), rounds)
            checked = median_seconds(lambda: [crc32(c) for c in contents], rounds)
    return {
        "goal": "T7",
        "case": "checksums, share of an image's cost",
        "pipeline": OURS,
        "ratio": checked / whole,
        "most": MOST_CRC,
    }
