"""Images of unknown classes with the transforms of a model's test set."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from ltbench.config.paths import expanded
from ltbench.data.base import Source, Split
from ltbench.data.codecs import ENDINGS
from ltbench.data.decode import decode_pil
from ltbench.data.files import FileSource, ImageOptions
from ltbench.data.images import ImageSplit
from ltbench.data.memory import MemorySplit
from ltbench.data.unlabelled import find_images
from ltbench.diagnose.base import Subject
from ltbench.errors import UserError


class Pictures:
    """In-memory images as PNG files; implements ``ltbench.data.base.Source``.

    Args:
        images: images, uint8 [N, H, W, 3].
    """

    def __init__(self, images: np.ndarray) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return images as PNG files, uint8 [n] each."""
        return [self._file(int(i)) for i in indices]

    def _file(self, index: int) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(self._images[index]).save(file, format="png", compress_level=0)
        return np.frombuffer(bytearray(file.getvalue()), dtype=np.uint8)

    def name(self, index: int) -> str:
        """Return the name of an image in messages."""
        return f"unknown image {index}"

    def fingerprint(self, labels: np.ndarray) -> str:
        """Not implemented: these images are never part of a record."""
        raise NotImplementedError


def files_of(path: str) -> FileSource:
    """Return the images below a folder or those listed in a text file.

    Args:
        path: a folder, searched recursively; or a text file with one path per line, relative to
            its folder, where a trailing label (a space and a number) is ignored.

    Raises:
        UserError: the file or folder does not exist, cannot be read, or has no image.
    """
    where = expanded(path)
    try:
        found = find_images(path, where.parent).names
    except UserError as error:
        raise UserError(f"openset.unknown: {str(error).removeprefix('`images`: ')}") from error
    if where.is_dir():
        return FileSource(found, where)
    if where.name.lower().endswith(ENDINGS):
        raise UserError(
            f"openset.unknown={path} is neither a folder nor a text file; a single image is not "
            "supported"
        )
    return FileSource([_without_label(name) for name in found], where.parent)


def _without_label(line: str) -> str:
    head, _, tail = line.rpartition(" ")
    return head if head and tail.lstrip("-").isdigit() else line


def source_of(split: Split) -> Source:
    """Return the untransformed images of a split as a source.

    Raises:
        UserError: the type of the split is not supported.
    """
    if isinstance(split, ImageSplit):
        return split.source
    if isinstance(split, MemorySplit):
        return Pictures(split.images)
    raise UserError(f"images of a {type(split).__name__} cannot serve as unknown ones")


def as_own(subject: Subject, source: Source, order: np.ndarray) -> tuple[Split, np.ndarray]:
    """Return a split with the transforms of a subject's test images, and the indices in it.

    For data sets held in memory, images are cropped to their central square and resized to the
    side of the test images with Pillow's bilinear filter.

    Args:
        subject: the trained model.
        source: source of the images.
        order: indices of the images, int64 [n].

    Raises:
        UserError: an image cannot be read, or the type of the subject's split is not supported.
    """
    own, options, info = subject.data.test, subject.recipe.data.config, subject.data.info
    if isinstance(own, ImageSplit) and isinstance(options, ImageOptions):
        return options.split(source, np.zeros(len(source), dtype=np.int64)), order
    if not isinstance(own, MemorySplit):
        raise UserError(f"unknown images cannot be cut as those of a {type(own).__name__}")
    side = own.images.shape[1]
    pixels = np.empty((len(order), side, side, 3), dtype=np.uint8)
    for row, index in enumerate(order.tolist()):
        (data,) = source.read(np.array([index]))
        pixels[row] = _square(decode_pil(data, source.name(index)), side)
    labels = np.zeros(len(order), dtype=np.int64)
    split = MemorySplit(pixels, labels, mean=info.mean, std=info.std, augment="none")
    return split, np.arange(len(order))


def _square(image: Image.Image, side: int) -> np.ndarray:
    width, height = image.size
    if (width, height) != (side, side):
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        image = image.crop((left, top, left + short, top + short))
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image)
