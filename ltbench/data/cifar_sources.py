"""Formats of CIFAR copies, read as pixels by official position."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ltbench.data.codecs import open_image, reason_of
from ltbench.data.shards.format import read_keys
from ltbench.data.shards.reader import ShardSource
from ltbench.digest import read_regular
from ltbench.errors import UserError, visible

Dataset = Literal["cifar10", "cifar100"]
SIDE = 32
WEBSITE = "https://www.cs.toronto.edu/~kriz/cifar.html"
TITLES: dict[Dataset, str] = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
_INDEX = re.compile(r"[0-9]{1,9}")
_LARGEST = 2**20  # bytes of an image file
_PYTHON: dict[Dataset, str] = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_BINARY: dict[Dataset, tuple[list[str], list[str]]] = {
    "cifar10": ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]),
    "cifar100": (["train.bin"], ["test.bin"]),
}


@dataclass(frozen=True)
class Part:
    """Training or test images of a source.

    Args:
        labels: class of each image, int64 [n].
        index: position of each image in the official file, int64 [n].
        read: function from rows of this part, int64 [m], to images, uint8 [m, 32, 32, 3].
    """

    labels: np.ndarray
    index: np.ndarray
    read: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Source:
    """Copy of a data set.

    Args:
        kind: ``"torchvision"``, ``"binary"``, ``"arrays"``, ``"folders"`` or ``"shards"``.
        where: folder of the copy.
        train: training images.
        test: test images.
    """

    kind: str
    where: Path
    train: Part
    test: Part


def find_source(root: Path, dataset: Dataset, class_names: Sequence[str]) -> Source:
    """Find a copy in ``root`` or in one of its subfolders.

    Args:
        root: existing folder.
        dataset: name of the data set.
        class_names: official names in label order [C].

    Raises:
        UserError: no copy is recognised, or it is damaged.
    """
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    for folder in folders:
        if folder.name == _PYTHON[dataset]:
            return torchvision_source(folder.parent, dataset, download=False)
    for folder in folders:
        if (folder / _BINARY[dataset][0][0]).is_file():
            return _binary_source(folder, dataset)
    others = []
    for folder in folders:
        if (folder / "train_images.npy").is_file():
            source = _array_source(folder)
            found = int(source.train.labels.max(initial=-1)) + 1
            if found == len(class_names):
                return source
            others.append(f"`{folder}` has arrays of {found} classes")
    for folder in folders:
        inside = folder / "train"
        if inside.is_dir() and (folder / "test").is_dir():
            if any((inside / name).is_dir() for name in class_names):
                return _folder_source(folder, class_names)
            others.append(f"the folders in `{inside}` are not named like its classes")
    raise UserError(
        f"data.root=`{root}` holds no {TITLES[dataset]}: needed there, or one folder below, is "
        f"`{_PYTHON[dataset]}` (torchvision), `{_BINARY[dataset][0][0]}` (binary version), "
        "`train_images.npy` with labels and index (arrays), or `train/<class>/<index>.png`"
        + (f"; found: {', '.join(others)}" if others else "; found nothing of these")
        + f". Fetch it with data.root={root} data.download=true or from {WEBSITE}; `ltbench data "
        f"prepare dataset={dataset} root=DIR out=SHARDS` packs it into shards"
    )


def torchvision_source(root: Path, dataset: Dataset, *, download: bool) -> Source:
    """Read torchvision's copy; torchvision checks its MD5 sums.

    Args:
        root: torchvision's root, the folder that contains the copy.
        dataset: name of the data set.
        download: download the copy if it is missing.

    Raises:
        UserError: the copy cannot be downloaded, or its files are not the original ones.
    """
    import torchvision

    make = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}
    try:
        parts = [make[dataset](str(root), train=t, download=download) for t in (True, False)]
    except (OSError, RuntimeError) as error:
        wanted = "fetched" if download else "read"
        raise UserError(
            f"{TITLES[dataset]} could not be {wanted} in data.root=`{root}` "
            f"({_one_line(error)}); "
            + ("check the network or copy the data set there" if download else "copy it again")
        ) from None
    return Source("torchvision", root, *(_complete(p.data, np.array(p.targets)) for p in parts))


def _binary_source(folder: Path, dataset: Dataset) -> Source:
    """Read the official binary version; CIFAR-100's first byte is the coarse label."""
    first = 1 if dataset == "cifar10" else 2
    record = first + 3 * SIDE * SIDE
    parts = []
    for files, size in zip(_BINARY[dataset], (50_000, 10_000), strict=True):
        blocks = []
        for file in files:
            expected = size // len(files) * record
            if not (folder / file).is_file() or (folder / file).stat().st_size != expected:
                raise UserError(
                    f"`{folder / file}` must have {expected} bytes to be the binary version of "
                    f"{TITLES[dataset]}, found {_size(folder / file)}; copy it again"
                )
            blocks.append(np.fromfile(folder / file, np.uint8).reshape(-1, record))
        data = np.concatenate(blocks)
        images = data[:, first:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
        parts.append(_complete(images, data[:, first - 1]))
    return Source("binary", folder, *parts)


def _array_source(folder: Path) -> Source:
    parts = []
    for split in ("train", "test"):
        images, labels, index = (_load(folder, split, what) for what in _SHAPES)
        if not len(images) == len(labels) == len(index):
            raise UserError(
                f"the {split} arrays in `{folder}` differ in length: {len(images)} images, "
                f"{len(labels)} labels, {len(index)} indices; write them again"
            )
        parts.append(Part(labels.astype(np.int64), index.astype(np.int64), images.__getitem__))
    return Source("arrays", folder, *parts)


_SHAPES: dict[str, tuple[int, ...]] = {"images": (SIDE, SIDE, 3), "labels": (), "index": ()}


def _load(folder: Path, split: str, what: str) -> np.ndarray:
    path = folder / f"{split}_{what}.npy"
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"`{path}` cannot be read ({_one_line(error)}); copy it again") from None
    right = array.dtype == np.uint8 if what == "images" else array.dtype.kind in "iu"
    if not right or array.ndim < 1 or array.shape[1:] != _SHAPES[what]:
        raise UserError(
            f"`{path}` must hold {'uint8 [n, 32, 32, 3]' if what == 'images' else 'integers [n]'}, "
            f"found {array.dtype} {list(array.shape)}"
        )
    return array


def _folder_source(folder: Path, class_names: Sequence[str]) -> Source:
    parts = []
    for split in ("train", "test"):
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(class_names):
            inside = folder / split / name
            mine = sorted(p for p in inside.glob("*") if not p.name.startswith("."))
            paths += mine
            labels += [label] * len(mine)
        foreign = [p for p in paths if not _INDEX.fullmatch(p.stem) or p.suffix != ".png"]
        if foreign:
            raise UserError(
                f"{len(foreign)} files in `{folder / split}` are not named `<official index>.png`, "
                f"first `{foreign[0]}`; rename or remove them"
            )
        index = np.array([int(p.stem) for p in paths], dtype=np.int64)
        parts.append(Part(np.array(labels, dtype=np.int64), index, _Files(paths)))
    return Source("folders", folder, *parts)


class _Files:
    """Lazy decoder of images, since a recipe may need only few of them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), SIDE, SIDE, 3), dtype=np.uint8)
        for image, row in zip(images, rows.tolist(), strict=True):
            path = self.paths[row]
            image[:] = _pixels(path, path.__str__)
        return images


def _pixels(file: bytes | Path, name: Callable[[], str]) -> np.ndarray:
    """Return an image, uint8 [32, 32, 3], after a check of its size.

    Args:
        file: content of an image file, or its path.
        name: returns the name of the image for a message.
    """
    try:
        content = file if isinstance(file, bytes) else read_regular(file, _LARGEST)
        with open_image(content) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except Exception as error:  # decoders raise anything, from KeyError to struct.error
        raise UserError(
            f"broken image `{name()}` ({_one_line(reason_of(error))}); copy it again"
        ) from None
    if pixels.shape != (SIDE, SIDE, 3):
        raise UserError(
            f"`{name()}` must be {SIDE}x{SIDE} pixels, found "
            f"{pixels.shape[1]}x{pixels.shape[0]}; use the original images"
        )
    return pixels


def _complete(images: np.ndarray, labels: np.ndarray) -> Part:
    """Return a part with the complete official file."""
    return Part(labels.astype(np.int64), np.arange(len(labels)), images.__getitem__)


def shard_source(parts: Mapping[str, ShardSource], dataset: Dataset) -> Source:
    """Read shards made by `ltbench data prepare`, whose keys end in the official index.

    Args:
        parts: the splits ``"train"`` and ``"test"``.
        dataset: expected data set.

    Raises:
        UserError: the shards belong to another data set, or name images otherwise.
    """
    found = parts["train"].manifest.dataset
    if found != dataset:
        raise UserError(
            f"the shards are of `{found}`, needed are those of {TITLES[dataset]}; give another "
            "data.root"
        )
    made = []
    for source in (parts["train"], parts["test"]):
        keys = read_keys(source.folder, source.manifest)
        foreign = [key for key in keys if not _INDEX.fullmatch(Path(key).stem)]
        if foreign:
            raise UserError(
                f"the shards in `{source.folder}` hold `{visible(foreign[0])}`, but images of "
                f"{TITLES[dataset]} are named `<class>/<official index>.png`; pack them again with "
                f"`ltbench data prepare dataset={dataset}`"
            )
        index = np.array([int(Path(key).stem) for key in keys], dtype=np.int64)
        made.append(Part(source.labels, index, _Shards(source)))
    return Source("shards", parts["train"].folder.parent, *made)


@dataclass(frozen=True)
class _Shards:
    """Lazy decoder of images, since a recipe may need only few of them."""

    source: ShardSource

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), SIDE, SIDE, 3), dtype=np.uint8)
        for low in range(0, len(rows), 1024):
            some = rows[low : low + 1024]
            for row, encoded in enumerate(self.source.read(some), start=low):
                images[row] = _pixels(encoded.tobytes(), partial(self.source.name, int(rows[row])))
        return images


def _size(path: Path) -> str:
    return f"{path.stat().st_size}" if path.is_file() else "no file"


def _one_line(error: Any) -> str:
    return " ".join(str(error).split())
