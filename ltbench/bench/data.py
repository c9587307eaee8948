"""What reading, decoding, packing and opening images costs, other people's pipelines beside ours.

Pipelines take turns in one process; what is compared is processor time on one thread, except
where the disk is what is measured.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import json
import os
import statistics
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from ltbench.bench.corpus import CASES, Corpus, photographs, small_images, temporary_folder
from ltbench.data.base import Source
from ltbench.data.images import ImageSplit
from ltbench.data.memory import MemorySplit
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
from ltbench.data.transforms import IMAGENET_STATS
from ltbench.seeding import keyed_permutation

Row = dict[str, Any]
"""What was found: ``goal``, ``case``, ``pipeline``, ``images_per_second`` or ``seconds``, ``ratio``
(how many times as fast ours is), and ``least`` or ``most``, what it is to be (ratio if there is
one, else speed or seconds)."""
Pipeline = Callable[[int], int]  # number of the round -> images it handled
Clock = Callable[[], float]
OURS = "ltbench"
BATCH = 64
SIDE = 224  # of the network's input


LEAST = {
    ("T1", "ImageNet", "ImageFolder"): 2.0,
    ("T1", "ImageNet", "timm"): 2.1,
    ("T1", "ImageNet", "timm, fast_collate"): 1.6,
    ("T2", "Places", "ImageFolder"): 2.8,
    ("T2", "iNaturalist", "ImageFolder"): 1.65,
    ("T2", "iNaturalist, packed at 320", "ImageFolder"): 3.3,
    ("T3", "ImageNet", "ImageFolder"): 1.4,
    ("T3", "ImageNet, colour jitter", "ImageFolder"): 1.4,
    ("T4", "small images", "webdataset, in order"): 20.0,
    ("T4", "cold", "one by one"): 2.5,
    ("T4", "cold", "in order"): 1.0,
    ("T5", "CIFAR, float", "Pillow in memory"): 7.0,
    ("T6", "ImageNet", "ShardWriter"): 2.0,
    ("T6", "small images", "ShardWriter"): 5.0,
}
"""How many times as fast ours is to be as another pipeline, by goal, case and pipeline."""
LEAST_SPEED = {"CIFAR, bytes": 100_000, "CIFAR, float": 55_000}  # images a second (T5)
MOST = {"open": 0.05, "order": 0.5}  # seconds for iNaturalist 2018 (T7)
MOST_CRC = 0.02  # of what an image costs (T7)


def compare(
    goal: str,
    case: str,
    pipelines: Mapping[str, Pipeline],
    rounds: int,
    *,
    clock: Clock = time.process_time,
    before: Callable[[], None] | None = None,
) -> list[Row]:
    """Run pipelines in turn and return a row for each: its speed, and how many times ours is that.

    Args:
        goal: what the measurement is for.
        case: what is measured.
        pipelines: by name; ``OURS`` is what the others are compared with.
        rounds: how often each runs, after once to warm up.
        clock: which seconds count.
        before: done before each run, and not counted.
    """
    found: dict[str, list[float]] = {name: [] for name in pipelines}
    with _one_thread():
        for number in range(rounds + 1):
            for name, run in pipelines.items():
                if before is not None:
                    before()
                start = clock()
                count = run(number)
                passed = clock() - start
                if number:
                    found[name].append(passed / count)
    return [
        {
            "goal": goal,
            "case": case,
            "pipeline": name,
            "images_per_second": 1 / statistics.median(costs),
            "ratio": statistics.median(
                cost / ours for cost, ours in zip(costs, found[OURS], strict=True)
            ),
            "least": LEAST.get((goal, case, name)),
        }
        for name, costs in found.items()
    ]


def loading(folder: Path | None = None, *, images: int = 128, rounds: int = 5) -> list[Row]:
    """Measure T1 to T3: from bytes on the disk (in memory by then) to batches for the network.

    Ours ends in bytes, which the device normalises; for T3 it goes on to normalised floats.

    Args:
        folder: where files are written for the time; ``None`` is the system's place.
        images: how many of each kind.
        rounds: how often each pipeline runs.
    """
    rows = []
    with temporary_folder(folder) as at:
        corpora = {
            name: Corpus(at / name, photographs(case, images)) for name, case in CASES.items()
        }
        small = Corpus(at / "320", photographs(CASES["iNaturalist"], images), resize_short=320)
        imagenet = corpora["ImageNet"]
        rows += compare(
            "T1",
            "ImageNet",
            {
                OURS: _ours(imagenet.source()),
                "ImageFolder": _folder_pipeline(imagenet),
                "timm": _timm_pipeline(imagenet, fast=False),
                "timm, fast_collate": _timm_pipeline(imagenet, fast=True),
                "webdataset": _webdataset_pipeline(imagenet),
            },
            rounds,
        )
        for name in ("Places", "iNaturalist"):
            both = {
                OURS: _ours(corpora[name].source()),
                "ImageFolder": _folder_pipeline(corpora[name]),
            }
            rows += compare("T2", name, both, rounds)
        both = {
            OURS: _ours(small.source()),
            "ImageFolder": _folder_pipeline(corpora["iNaturalist"]),
        }
        rows += compare("T2", "iNaturalist, packed at 320", both, rounds)
        for case, jitter in (("ImageNet", False), ("ImageNet, colour jitter", True)):
            both = {
                OURS: _ours(imagenet.source(), floats=True, jitter=jitter),
                "ImageFolder": _folder_pipeline(imagenet, jitter=jitter),
            }
            rows += compare("T3", case, both, rounds)
    return rows


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


def memory(*, images: int = 4096, rounds: int = 5) -> list[Row]:
    """Measure T5: crops and flips of small images that lie in memory.

    Args:
        images: how many.
        rounds: how often each pipeline runs.
    """
    from torchvision import transforms

    shown = load_sample_images().images
    at = keyed_permutation(0, 300 * 500)[:images]
    pixels = np.stack(
        [
            shown[i % 2][y : y + 32, x : x + 32]
            for i, (y, x) in enumerate(zip(at // 500, at % 500, strict=True))
        ]
    )
    labels = np.arange(images) % 10
    mean, std = IMAGENET_STATS
    split = MemorySplit(pixels, labels, mean=mean, std=std)
    pil = [Image.fromarray(image) for image in pixels]
    pipeline = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )

    def ours(number: int, *, floats: bool) -> int:
        for rows in _batches(keyed_permutation(number, images)):
            if floats:
                made = split.load(rows, key=number, positions=rows)
                split.finish(made, key=number, positions=rows)
            else:
                split.load_bytes(rows, key=number, positions=rows)
        return images

    def pillow(number: int) -> int:
        for rows in _batches(keyed_permutation(number, images)):
            torch.stack([pipeline(pil[i]) for i in rows.tolist()])
        return images

    found = []
    for case, floats in (("CIFAR, bytes", False), ("CIFAR, float", True)):
        both: dict[str, Pipeline] = {OURS: functools.partial(ours, floats=floats)}
        both["Pillow in memory"] = pillow
        rows = compare("T5", case, both, rounds)
        rows[0].update(ratio=None, least=LEAST_SPEED[case])  # a speed, not a ratio
        found += rows
    return found


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
    with temporary_folder(folder) as at, _one_thread():
        _write_index_only(at / "train", labels, counts)
        seconds = _median_seconds(lambda: ShardSource(at / "train"), rounds)
        rows.append(_limit("open the index of iNaturalist 2018", seconds, MOST["open"]))
    for name, sampler in _samplers().items():
        order = functools.partial(sampler.order, labels, 0, 30, 90, 512)
        seconds = _median_seconds(order, rounds)
        rows.append(_limit(f"an order of iNaturalist 2018, {name}", seconds, MOST["order"]))
    return [*rows, _crc_share(folder, rounds)]


# Pipelines -----------------------------------------------------------------------------------


def _ours(source: Source, *, floats: bool = False, jitter: bool = False) -> Pipeline:
    labels = np.zeros(len(source), dtype=np.int64)
    augment = "imagenet" if jitter else "inat"
    split = ImageSplit(source, labels, augment=augment, image_size=SIDE)  # type: ignore[arg-type]

    def run(number: int) -> int:
        order = keyed_permutation(number, len(source))
        for rows in _batches(np.arange(len(source))):
            views = split.load(order[rows], key=number, positions=rows)
            if floats:
                split.finish(views, key=number, positions=rows)
        return len(source)

    return run


def _one_image(jitter: bool = False) -> Any:
    """Return torchvision's usual pipeline for one Pillow image."""
    from torchvision import transforms

    colours = [transforms.ColorJitter(0.4, 0.4, 0.4)] if jitter else []
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE),
            transforms.RandomHorizontalFlip(),
            *colours,
            transforms.ToTensor(),
            transforms.Normalize(*IMAGENET_STATS),
        ]
    )


def _folder_pipeline(corpus: Corpus, jitter: bool = False) -> Pipeline:
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(corpus.folder), _one_image(jitter))

    def run(number: int) -> int:
        for rows in _batches(keyed_permutation(number, len(data))):
            torch.utils.data.default_collate([data[i] for i in rows.tolist()])
        return len(data)

    return run


def _timm_pipeline(corpus: Corpus, *, fast: bool) -> Pipeline:
    timm = importlib.import_module("timm.data")

    data = timm.create_dataset(
        "wds/corpus", str(corpus.shards), split="train", is_training=True, batch_size=BATCH
    )
    data.transform = timm.create_transform(
        SIDE,
        is_training=True,
        color_jitter=None,
        interpolation="bilinear",
        use_prefetcher=fast,
    )
    collate = timm.loader.fast_collate if fast else torch.utils.data.default_collate

    def run(number: int) -> int:
        data.set_epoch(number)
        return sum(len(collate(batch)[1]) for batch in _chunks(data))

    return run


def _webdataset_pipeline(corpus: Corpus) -> Pipeline:
    wds = importlib.import_module("webdataset")
    transform = _one_image()

    def run(number: int) -> int:
        data = (
            wds.WebDataset([str(tar) for tar in corpus.tars], shardshuffle=False)
            .shuffle(1000, seed=number)
            .decode("pil")
            .to_tuple(corpus.kind, "cls")
            .map_tuple(transform, int)
        )
        return sum(len(torch.utils.data.default_collate(batch)[1]) for batch in _chunks(data))

    return run


def _read_random(source: ShardSource, number: int) -> int:
    for rows in _batches(keyed_permutation(number, len(source)), 256):
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
        run = _ours(Corpus(at / "crc", contents).source())
        with _one_thread():
            whole = _median_seconds(lambda: run(1), rounds)
            checked = _median_seconds(lambda: [zlib.crc32(c) for c in contents], rounds)
    return {
        "goal": "T7",
        "case": "checksums, share of an image's cost",
        "pipeline": OURS,
        "ratio": checked / whole,
        "most": MOST_CRC,
    }


def _limit(case: str, seconds: float, most: float) -> Row:
    return {
        "goal": "T7",
        "case": case,
        "pipeline": OURS,
        "seconds": seconds,
        "most": most,
    }


def _median_seconds(run: Callable[[], Any], rounds: int) -> float:
    run()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return statistics.median(found)


def _batches(order: np.ndarray, size: int = BATCH) -> Iterator[np.ndarray]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _chunks(samples: Iterable[Any]) -> Iterator[list[Any]]:
    running = iter(samples)
    while batch := list(itertools.islice(running, BATCH)):
        yield batch


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other packages, about themselves
            yield
    finally:
        torch.set_num_threads(threads)
