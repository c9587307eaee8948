from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from ltbench.data.base import Data, DatasetInfo
from ltbench.data.files import ImageOptions, LongTail
from ltbench.data.listing import find_root
from ltbench.data.shards.dataset import assemble, is_packed, open_parts
from ltbench.errors import UserError
from ltbench.seeding import derive, keyed_permutation

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_LAYOUT = "data.root needs train/<class>/ and test/<class>/ folders of images, or <class>/ folders"
NEEDED = f"data set `folder` needs data.root=DIR; {_LAYOUT}"


class Folder(ImageOptions, LongTail):
    """Anybody's images in class folders: ``train/<class>/`` and ``test/<class>/``, or ``<class>/``.

    Classes are numbered in the order of their folder names. Without a ``train`` folder,
    ``test_per_class`` images of each class are held out for testing. A ``val`` folder is the
    validation set, or the test set if there is no ``test`` folder.
    """

    train: str = Field("train", description="folder of the training set")
    test: str | None = Field(None, description="folder of the test set; default test, else val")
    val: str | None = Field(None, description="folder of the validation set; default val")
    test_images: Literal["balanced", "all"] = Field(
        "balanced", description="images of a test folder: the same number per class, or all"
    )
    test_per_class: int | None = Field(
        None,
        ge=1,
        description="test images per class; default: 10 held out, or the size of the smallest "
        "class of a test folder",
    )

    def ready(self) -> None:
        """Check that the folder exists."""
        if not is_packed(self.root):
            find_root(self.root, NEEDED)

    def load(self) -> Data:
        """Find the images, which are read on demand.

        Raises:
            UserError: the root is missing or empty, has no class folders, or a class has no
                training or test image.
        """
        parts = open_parts(self.root)
        if parts is not None:
            data = assemble(self, "folder", parts, self.thin(parts["train"].labels))
            return replace(data, manifest={**self.thinned(), **data.manifest})
        root = find_root(self.root, NEEDED)
        if (root / self.train).is_dir():
            names, train, test, val, manifest = self._parts(root)
        else:
            names, train, test, val, manifest = self._one_tree(root)
        train = train.take(self.thin(train.labels))
        counts = np.bincount(train.labels, minlength=len(names))
        return Data(
            info=DatasetInfo("folder", tuple(counts.tolist()), names, *self.statistics),
            train=self.files(train.paths, train.labels, root),
            test=self.files(test.paths, test.labels, root),
            val=self.files(val.paths, val.labels, root) if val is not None else None,
            manifest={"source": "folder", **manifest, **self.thinned()},
        )

    def _parts(self, root: Path) -> _Found:
        names = _classes(root / self.train)
        test_dir = self.test or next((d for d in ("test", "val") if (root / d).is_dir()), None)
        if test_dir is None:
            raise UserError(
                f"`{root}` has `{self.train}` but neither `test` nor `val`; name the test folder "
                f"with data.test=, or give data.root={root / self.train} to hold out images of it"
            )
        val_dir = self.val or ("val" if test_dir != "val" and (root / "val").is_dir() else None)
        train = _images(root, self.train, names)
        test = _images(root, test_dir, names)
        val = _images(root, val_dir, names) if val_dir else None
        _complete(train, names, root / self.train, "training")
        _complete(test, names, root / test_dir, "test")
        smallest = int(np.bincount(test.labels).min())
        if self.test_images == "all":
            note = "all"
        else:
            wanted = self.test_per_class or smallest
            if wanted > smallest:
                few = names[int(np.bincount(test.labels).argmin())]
                raise UserError(
                    f"data.test_per_class={wanted}, but class `{few}` has {smallest} images in "
                    f"`{root / test_dir}`; use {smallest} or less, or data.test_images=all"
                )
            test = test.take(_draw(test.labels, wanted, self.split_seed))
            note = f"balanced, {wanted} a class, seed {self.split_seed}"
        return _Found(names, train, test, val, {"test": note})

    def _one_tree(self, root: Path) -> _Found:
        if self.test_images == "all" or self.test or self.val:
            raise UserError(
                f"`{root}` has no `{self.train}` folder, so its test part is held out from the "
                f"classes; data.test, data.val and data.test_images=all need one"
            )
        names = _classes(root)
        images = _images(root, "", names)
        held = self.test_per_class or 10
        _complete(images, names, root, "training")
        counts = np.bincount(images.labels)
        if counts.min() <= held:
            raise UserError(
                f"class `{names[int(counts.argmin())]}` has {counts.min()} images, so that "
                f"data.test_per_class={held} leaves none to train on; lower it"
            )
        test = _draw(images.labels, held, self.split_seed)
        train = np.setdiff1d(np.arange(len(images.labels)), test)
        note = f"held out, {held} a class, seed {self.split_seed}"
        return _Found(names, images.take(train), images.take(test), None, {"test": note})


class _Images(NamedTuple):
    paths: list[str]
    labels: np.ndarray

    def take(self, indices: np.ndarray) -> _Images:
        return _Images([self.paths[i] for i in indices.tolist()], self.labels[indices])


class _Found(NamedTuple):
    names: tuple[str, ...]
    train: _Images
    test: _Images
    val: _Images | None
    manifest: dict[str, str]


def _subfolders(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {e.name for e in entries if e.is_dir() and not e.name.startswith(".")}


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(_subfolders(folder)))
    if len(names) < 2:
        found = f"one folder, `{names[0]}`" if names else "no folder"
        raise UserError(
            f"at least two class folders are needed in `{folder}`, found {found}; {_LAYOUT}"
        )
    return names


def _images(root: Path, part: str, names: tuple[str, ...]) -> _Images:
    """Return the images below ``root/part/<class>/`` at any depth, sorted."""
    folder = root / part
    if not folder.is_dir():
        raise UserError(f"there is no folder `{folder}`; {_LAYOUT}")
    here = _subfolders(folder)
    if here != set(names):
        odd = sorted(here ^ set(names))[0]
        where = "only there" if odd in here else "only in the training part"
        raise UserError(
            f"`{folder}` has other classes than the training part: `{odd}` is {where}; "
            f"the folder names must agree"
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = [
            os.path.relpath(os.path.join(at, file), root)  # noqa: PTH118
            for at, _, files in os.walk(folder / name, followlinks=True)
            for file in files
            if file.lower().endswith(ENDINGS) and not file.startswith(".")
        ]
        paths += sorted(found)
        labels += [label] * len(found)
    return _Images(paths, np.array(labels, dtype=np.int64))


def _complete(images: _Images, names: tuple[str, ...], folder: Path, part: str) -> None:
    counts = np.bincount(images.labels, minlength=len(names))
    if counts.min() == 0:
        raise UserError(
            f"class `{names[int(counts.argmin())]}` has no {part} image in `{folder}` "
            f"({', '.join(ENDINGS)}); add some or remove the class"
        )


def _draw(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Draw ``per_class`` images of each class by keyed permutations; return sorted indices."""
    drawn = []
    for label in range(int(labels.max()) + 1):
        rows = np.nonzero(labels == label)[0]
        order = keyed_permutation(derive(seed, "test", label), len(rows))
        drawn.append(rows[order[:per_class]])
    return np.sort(np.concatenate(drawn))
