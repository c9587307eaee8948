"""Time of batches for the network (T1 to T3, T5), other people's pipelines beside ours."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import CASES, Corpus, photographs, temporary_folder
from PIL import Image
from rounds import (
    BATCH,
    LEAST_SPEED,
    OURS,
    Pipeline,
    Row,
    batches,
    chunks,
    compare,
)
from sklearn.datasets import load_sample_images

from ltbench.data.base import Source
from ltbench.data.images import ImageSplit
from ltbench.data.memory import MemorySplit
from ltbench.data.pipelines import IMAGENET_STATS
from ltbench.seeding import keyed_permutation

SIDE = 224  # of the network's input


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
                OURS: our_loader(imagenet.source()),
                "ImageFolder": _folder_pipeline(imagenet),
                "timm": _timm_pipeline(imagenet, fast=False),
                "timm, fast_collate": _timm_pipeline(imagenet, fast=True),
                "webdataset": _webdataset_pipeline(imagenet),
            },
            rounds,
        )
        for name in ("Places", "iNaturalist"):
            both = {
                OURS: our_loader(corpora[name].source()),
                "ImageFolder": _folder_pipeline(corpora[name]),
            }
            rows += compare("T2", name, both, rounds)
        both = {
            OURS: our_loader(small.source()),
            "ImageFolder": _folder_pipeline(corpora["iNaturalist"]),
        }
        rows += compare("T2", "iNaturalist, packed at 320", both, rounds)
        for case, jitter in (("ImageNet", False), ("ImageNet, colour jitter", True)):
            both = {
                OURS: our_loader(imagenet.source(), floats=True, jitter=jitter),
                "ImageFolder": _folder_pipeline(imagenet, jitter=jitter),
            }
            rows += compare("T3", case, both, rounds)
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
        for rows in batches(keyed_permutation(number, images)):
            if floats:
                made = split.load(rows, key=number, positions=rows)
                split.finish(made, key=number, positions=rows)
            else:
                split.load_bytes(rows, key=number, positions=rows)
        return images

    def pillow(number: int) -> int:
        for rows in batches(keyed_permutation(number, images)):
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


# Pipelines -----------------------------------------------------------------------------------


def our_loader(source: Source, *, floats: bool = False, jitter: bool = False) -> Pipeline:
    """Return our pipeline from shards to batches of bytes, or of normalised floats."""
    labels = np.zeros(len(source), dtype=np.int64)
    augment = "imagenet" if jitter else "inat"
    split = ImageSplit(source, labels, augment=augment, image_size=SIDE)  # type: ignore[arg-type]

    def run(number: int) -> int:
        order = keyed_permutation(number, len(source))
        for rows in batches(np.arange(len(source))):
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
        for rows in batches(keyed_permutation(number, len(data))):
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
        return sum(len(collate(batch)[1]) for batch in chunks(data))

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
        return sum(len(torch.utils.data.default_collate(batch)[1]) for batch in chunks(data))

    return run
