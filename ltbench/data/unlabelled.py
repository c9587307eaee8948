"""Images without labels: a folder, a list of paths, single files, or Pillow images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ltbench.config.paths import expanded
from ltbench.data.codecs import ENDINGS, check_size, eight_bits, reason_of
from ltbench.data.decode import decode_pil
from ltbench.data.files import FileSource
from ltbench.data.walk import Walk
from ltbench.data.workers import check_descriptors, share, worker_errors
from ltbench.errors import UserError, visible

LIST_BYTES = 2**28  # of a list of paths
Item = str | Path | Image.Image


@dataclass(frozen=True)
class Unlabelled:
    """Images to classify.

    Args:
        names: path of each image as it is shown, or its position for Pillow images [N].
        items: path of each image to read, or the image [N].
    """

    names: tuple[str, ...]
    items: tuple[Item, ...]


def find_images(images: str | Path | Image.Image | Sequence[Item], root: Path) -> Unlabelled:
    """Return the images of a folder at any depth, of a list of paths, or those given.

    Args:
        images: a folder, whose images are sorted by path; a text file with a path on each line;
            an image file; a Pillow image; or paths and Pillow images.
        root: folder to which the paths in a text file are relative.

    Raises:
        UserError: there is nothing of this name, or there are no images.
    """
    if isinstance(images, Image.Image):
        return Unlabelled(("0",), (images,))
    if not isinstance(images, str | Path):
        given = tuple(images)
        wrong = next((i for i in given if not isinstance(i, str | Path | Image.Image)), None)
        if wrong is not None:
            raise UserError(
                f"`images`: expected paths or Pillow images, found {type(wrong).__name__}; "
                "call the model itself on tensors"
            )
        names = tuple(str(k if isinstance(i, Image.Image) else i) for k, i in enumerate(given))
        return _some(Unlabelled(names, given), "`images`")
    path = expanded(images)
    if path.is_dir():
        walk = Walk(path, [])
        names = tuple(walk.everything())
        walk.report()
        return _some(Unlabelled(names, tuple(path / name for name in names)), f"`{path}`")
    if not path.is_file():
        raise UserError(
            f"`images`: there is no {visible(str(path))}; expected a folder, an image, or a text "
            "file with a path on each line"
        )
    if path.name.lower().endswith(ENDINGS):
        return Unlabelled((str(images),), (path,))
    names = _lines(path)
    return _some(Unlabelled(names, tuple(root / name for name in names)), f"`{path}`")


def _some(found: Unlabelled, where: str) -> Unlabelled:
    if not found.names:
        raise UserError(f"no images in {where}; their names end in {', '.join(ENDINGS)}")
    return found


def _lines(path: Path) -> tuple[str, ...]:
    try:
        if path.stat().st_size > LIST_BYTES:
            raise UserError(f"{path} is no list of images: it has more than {LIST_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is neither an image ({', '.join(ENDINGS)}) nor a list of paths in UTF-8; "
            "rename or convert it"
        ) from error
    return tuple(line.strip() for line in text.split("\n") if line.strip())


@dataclass(frozen=True)
class Loaded:
    """Images of a batch that could be read, and the reasons for the others.

    Args:
        images: transformed images [B, ...].
        index: position of each of them, int64 [B].
        unreadable: position and reason of each of the others.
    """

    images: Tensor
    index: np.ndarray
    unreadable: tuple[tuple[int, str], ...]


def batches(
    images: Unlabelled,
    transform: Callable[[Image.Image], Tensor],
    batch_size: int,
    *,
    workers: int = 0,
) -> Iterator[Loaded]:
    """Yield transformed images, in order.

    Args:
        images: images to read.
        transform: from a Pillow image to a tensor of one shape.
        batch_size: images per batch.
        workers: processes that decode images.
    """
    workers = min(workers, (len(images.names) - 1) // batch_size)  # one batch needs no process
    if workers:
        check_descriptors(workers)
    loader = DataLoader(
        _Images(images, transform),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
    )
    with worker_errors() if workers else nullcontext():
        for item in loader:
            if isinstance(item, str):
                raise UserError(item)
            yield item


@dataclass(frozen=True)
class _Images(Dataset[Any]):
    images: Unlabelled
    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return len(self.images.items)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        item = self.images.items[index]
        try:
            if isinstance(item, Image.Image):
                check_size(*item.size)
                item.load()
                pixels = eight_bits(item).convert("RGB")
            else:
                path = expanded(item)
                if path.exists() and not path.is_file():  # reading it might never end
                    raise UserError(f"cannot read image `{path}`: it is no plain file")
                (data,) = FileSource([path.name], path.parent).read(np.array([0]))
                pixels = decode_pil(data, str(path))
        except UserError as error:
            return index, str(error)
        except Exception as error:  # decoders raise anything
            return index, f"cannot read image {index}: {reason_of(error)}"
        return index, self.transform(pixels)


def _collate(rows: Sequence[tuple[int, Tensor | str]]) -> Loaded | str:
    good = [(index, image) for index, image in rows if isinstance(image, Tensor)]
    bad = tuple((index, reason) for index, reason in rows if isinstance(reason, str))
    images = torch.stack([image for _, image in good]) if good else torch.empty(0)
    problem = share((images,))
    return problem or Loaded(images, np.array([index for index, _ in good], dtype=np.int64), bad)
