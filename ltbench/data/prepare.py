"""`ltbench data prepare`: packing of image data sets and CIFAR into shards."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ltbench.config.validation import build_options
from ltbench.data.base import Data
from ltbench.data.cifar import CIFARLT
from ltbench.data.cifar_sources import Part, find_source
from ltbench.data.files import FileSource, ImageOptions
from ltbench.data.frozen_lists import read_frozen
from ltbench.data.images import ImageSplit
from ltbench.data.listing import find_root
from ltbench.data.shards.format import Manifest
from ltbench.data.shards.pack import PartToPack, pack
from ltbench.errors import UserError

Progress = Callable[[str, int, int], None]  # part, images packed, total images


@dataclass(frozen=True)
class Packing:
    """Options of packing.

    Args:
        shard_mb: target size of a shard in MiB, 1 to 1024.
        seed: seed of the order of images in the shards.
        resize_short: short side in pixels to which images are shrunk; ``None`` keeps their bytes.
        workers: number of processes.
    """

    shard_mb: int = 256
    seed: int = 0
    resize_short: int | None = None
    workers: int = 1


def prepare(
    dataset: str,
    out: Path,
    *,
    root: str | None,
    lists: str | None = None,
    options: Mapping[str, Any] | None = None,
    packing: Packing | None = None,
    progress: Progress | None = None,
) -> dict[str, Manifest]:
    """Check a data set against its lists and pack each of its parts into shards.

    Interrupted packing is resumed; finished shards are checked and kept.

    Args:
        dataset: registered name of the data set.
        out: folder of the shards, created if missing.
        root: folder of the images.
        lists: folder of the lists, if it is not the root.
        options: options of the data set, as ``data.key`` in a recipe.
        packing: options of packing.
        progress: callback for the progress of each part.

    Raises:
        UserError: images or lists are missing or wrong, or the shards cannot be written.
    """
    packing = packing or Packing()
    given: dict[str, Any] = dict(options or {})
    if root is not None:
        given["root"] = root
    config = build_options("DATASETS", dataset, given)
    if lists is not None:
        here = {name: str(Path(lists) / value) for name, value in _list_names(config, lists)}
        config = build_options("DATASETS", dataset, {**given, **here})
    if isinstance(config, CIFARLT):
        parts = _cifar_parts(config)
    elif isinstance(config, ImageOptions):
        parts = _file_parts(config.load())
    else:
        raise UserError(
            f"data set `{dataset}` cannot be packed into shards: it lies in memory; give a data "
            "set of image files"
        )
    done = {}
    for part in parts:
        done[part.split] = pack(
            part,
            out / part.split,
            shard_bytes=packing.shard_mb * 2**20,
            seed=packing.seed,
            resize_short=packing.resize_short,
            workers=packing.workers,
            progress=_of_part(progress, part.split),
        )
    return done


def _of_part(progress: Progress | None, part: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(part, done, total)


def _list_names(config: Any, lists: str) -> list[tuple[str, str]]:
    names = [(name, getattr(config, name, None)) for name in ("train", "val", "test")]
    if not hasattr(config, "class_names"):
        raise UserError(f"lists={lists}: this data set has no lists; leave it out")
    return [(name, value) for name, value in names if value]


def _file_parts(data: Data) -> list[PartToPack]:
    parts = []
    for name, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        if split is None:
            continue
        if not isinstance(split, ImageSplit) or not isinstance(split.source, FileSource):
            raise UserError("these are shards already; give the folder of the image files")
        parts.append(
            PartToPack(
                dataset=data.info.name,
                split=name,
                root=split.source.root,
                paths=split.source.paths,
                labels=split.labels,
                class_names=data.info.class_names,
                list_sha256=data.manifest.get(f"{name}_list", ""),
            )
        )
    return parts


def _cifar_parts(config: CIFARLT) -> list[PartToPack]:
    """Return a complete copy of CIFAR as lossless ``<class>/<official index>.png`` files."""
    frozen = read_frozen(config.dataset)
    root = find_root(config.root, f"`{config.dataset}` needs root=DIR, a copy of it")
    source = find_source(root, config.dataset, frozen.class_names)
    parts = []
    for name, part in (("train", source.train), ("test", source.test)):
        names = [frozen.class_names[label] for label in part.labels.tolist()]
        parts.append(
            PartToPack(
                dataset=config.dataset,
                split=name,
                root=PngOf(part),
                paths=[f"{c}/{i}.png" for c, i in zip(names, part.index.tolist(), strict=True)],
                labels=part.labels,
                class_names=frozen.class_names,
            )
        )
    return parts


@dataclass(frozen=True)
class PngOf:
    """Encoder of in-memory images as PNG."""

    part: Part

    def __call__(self, row: int) -> bytes:
        """Return image ``row`` as a PNG file."""
        buffer = io.BytesIO()
        pixels = self.part.read(np.array([row]))[0]
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
