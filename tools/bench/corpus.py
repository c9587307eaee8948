"""Photographs of the usual sizes, made of the two that scikit-learn brings, as files and shards."""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from ltbench.data.shards.layout import PartToPack
from ltbench.data.shards.pack import pack
from ltbench.data.shards.reader import ShardSource
from ltbench.seeding import keyed_uniform


@dataclass(frozen=True)
class Case:
    """Photographs of one kind.

    Args:
        width: mean width in pixels.
        height: mean height in pixels.
        size: mean bytes of a JPEG.
    """

    width: int
    height: int
    size: int


CASES = {
    "ImageNet": Case(500, 375, 57_000),
    "Places": Case(256, 256, 29_000),
    "iNaturalist": Case(800, 600, 153_000),
}


def photographs(case: Case, n: int, seed: int = 0) -> list[bytes]:
    """Return JPEGs cut out of two photographs, of the wanted size in pixels and bytes on average.

    Args:
        case: what they are like; sides vary by a tenth.
        n: how many.
        seed: of the crops.
    """
    shown = [Image.fromarray(image) for image in load_sample_images().images]
    cut = []
    for draw in keyed_uniform(seed, np.arange(5 * n)).reshape(n, 5):
        photo = shown[int(draw[0] * 2)]
        width, height = (
            round(side * (0.9 + 0.2 * by))
            for side, by in ((case.width, draw[1]), (case.height, draw[2]))
        )
        zoom = min(1.0, photo.width / width, photo.height / height)
        wide, tall = int(width * zoom), int(height * zoom)
        left, top = (
            int(draw[3] * (photo.width - wide + 1)),
            int(draw[4] * (photo.height - tall + 1)),
        )
        box = (left, top, left + wide, top + tall)
        cut.append(photo.resize((width, height), Image.Resampling.BICUBIC, box))
    low, high = 1, 100
    while low < high:  # the quality whose mean size is nearest from below
        middle = (low + high + 1) // 2
        some = [len(_jpeg(image, middle)) for image in cut[:24]]
        low, high = (middle, high) if statistics.fmean(some) <= case.size else (low, middle - 1)
    return [_jpeg(image, low) for image in cut]


def small_images(n: int, seed: int = 0) -> list[bytes]:
    """Return photographs of 32 x 32 pixels as PNG."""
    shown = [Image.fromarray(image) for image in load_sample_images().images]
    made = []
    for draw in keyed_uniform(seed, np.arange(3 * n)).reshape(n, 3):
        left, top = int(draw[1] * 500), int(draw[2] * 300)
        buffer = io.BytesIO()
        part = shown[int(draw[0] * 2)].crop((left, top, left + 96, top + 96)).resize((32, 32))
        part.save(buffer, "PNG", compress_level=1)
        made.append(buffer.getvalue())
    return made


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


class Corpus:
    """The same images as a folder of classes and as shards.

    Args:
        at: an empty folder.
        contents: the images, JPEG or PNG.
        shard_bytes: largest size of a shard.
        resize_short: as for ``pack``.
    """

    def __init__(
        self,
        at: Path,
        contents: Sequence[bytes],
        *,
        shard_bytes: int = 64 * 2**20,
        resize_short: int | None = None,
    ) -> None:
        self.folder, self.shards = at / "folder", at / "shards"
        self.kind = "png" if contents[0][:4] == b"\x89PNG" else "jpg"
        names = [f"{i % 8}/{i:06}.{self.kind}" for i in range(len(contents))]
        for name, content in zip(names, contents, strict=True):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(content)
        self.part = PartToPack(
            dataset="folder",
            split="train",
            root=self.folder,
            paths=names,
            labels=np.arange(len(contents)) % 8,
            class_names=[str(i) for i in range(8)],
        )
        self.manifest = pack(
            self.part,
            self.shards / "train",
            shard_bytes=shard_bytes,
            resize_short=resize_short,
            workers=1,
        )
        self.tars = [self.shards / "train" / shard.name for shard in self.manifest.shards]

    def __len__(self) -> int:
        return len(self.part.paths)

    def source(self) -> ShardSource:
        """Return the shards, opened."""
        return ShardSource(self.shards / "train")


@contextlib.contextmanager
def temporary_folder(folder: Path | None) -> Iterator[Path]:
    """Context manager of an empty folder, below another one if that is given; removed on exit."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        yield Path(name)
