from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from ltbench.data.base import Data, DatasetInfo
from ltbench.data.codecs import ENDINGS
from ltbench.data.files import ImageOptions, LongTail
from ltbench.data.layouts import (
    LAYOUT,
    Layout,
    check_nesting,
    check_same_classes,
    class_folders,
    find_layout,
)
from ltbench.data.listing import find_root
from ltbench.data.overlap import Occurrences, overlap
from ltbench.data.shards.dataset import assemble, is_packed, open_parts
from ltbench.data.val_split import ValFraction
from ltbench.data.walk import Walk
from ltbench.errors import UserError
from ltbench.seeding import derive, keyed_permutation


class Folder(ImageOptions, LongTail, ValFraction):
    """Anybody's images in class folders: ``train/<class>/`` and ``test/<class>/``, or ``<class>/``.

    Classes are numbered in the order of their folder names. Without a ``train`` folder,
    ``test_per_class`` images of each class are held out for testing. A ``val`` folder is the
    validation set, or the test set if there is no ``test`` folder. Usual variants of these names
    (``Train``, ``training``, ``test_set``, ``validation``, ...) are known; hidden files and folders
    are left out, files with other endings with a note.
    """

    registered: ClassVar[str] = "folder"  # name in the registry

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
            find_root(self.root, self.needed)

    @property
    def needed(self) -> str:
        """Description of what the root must hold, for messages."""
        return f"data set `{self.registered}` needs data.root=DIR; {LAYOUT}"

    def load(self) -> Data:
        """Find the images, which are read on demand.

        Raises:
            UserError: the root is missing or empty, has no class folders, or a class has no
                training or test image.
        """
        parts = open_parts(self.root)
        if parts is not None:
            data = assemble(self, self.registered, parts, self.thin(parts["train"].labels))
            return self.hold_out(replace(data, manifest={**self.thinned(), **data.manifest}))
        root = find_root(self.root, self.needed)
        layout = find_layout(root, self.train, self.test, self.val)
        found = self._one_tree(root) if layout.train is None else self._parts(root, layout)
        names, train, test, val, manifest = found
        train = train.take(self.thin(train.labels))
        counts = np.bincount(train.labels, minlength=len(names))
        data = Data(
            info=DatasetInfo(self.registered, tuple(counts.tolist()), names, *self.statistics),
            train=self.files(train.paths, train.labels, root),
            test=self.files(test.paths, test.labels, root),
            val=self.files(val.paths, val.labels, root) if val is not None else None,
            manifest={"source": "folder", **manifest, **self.thinned()},
        )
        return self.hold_out(data)

    def _parts(self, root: Path, layout: Layout) -> _Found:
        assert layout.train
        assert layout.test
        names = class_folders(root / layout.train)
        check_nesting(root / layout.train, names, parts=True)
        walk = Walk(root, [root / part for part in layout if part])
        found = {
            part: _images(walk, root / folder, names, root / layout.train, part)
            for part, folder in zip(("train", "test", "val"), layout, strict=True)
            if folder
        }
        walk.report()
        train, test, val = found["train"], found["test"], found.get("val")
        facts = overlap(root, {part: images.occurrences for part, images in found.items()})
        smallest, size = int(np.bincount(test.labels).min()), len(test.labels)
        if self.test_images == "all":
            note = "all"
        else:
            wanted = self.test_per_class or smallest
            if wanted > smallest:
                few = names[int(np.bincount(test.labels).argmin())]
                raise UserError(
                    f"data.test_per_class={wanted}, but class `{few}` has {smallest} images in "
                    f"`{root / layout.test}`; use {smallest} or less, or data.test_images=all"
                )
            test = test.take(_draw(test.labels, wanted, self.split_seed))
            note = f"balanced, {wanted} a class, seed {self.split_seed}"
        facts["test_part"] = f"{layout.test}/, {len(test.labels):,} of {size:,} images"
        return _Found(names, train, test, val, {"test": note, **facts})

    def _one_tree(self, root: Path) -> _Found:
        if self.test_images == "all" or self.test or self.val:
            raise UserError(
                f"`{root}` has no `{self.train}` folder, so its test part is held out from the "
                f"classes; data.test, data.val and data.test_images=all need one"
            )
        names = class_folders(root)
        check_nesting(root, names, parts=False)
        walk = Walk(root, [])
        images = _images(walk, root, names, root, "train")
        walk.report()
        held = self.test_per_class or 10
        _check_enough(np.bincount(images.labels), names, held)
        facts = overlap(root, {"train": images.occurrences})
        test = _draw(images.labels, held, self.split_seed)
        train = np.setdiff1d(np.arange(len(images.labels)), test)
        note = f"held out, {held} a class, seed {self.split_seed}"
        return _Found(names, images.take(train), images.take(test), None, {"test": note, **facts})


class _Images(NamedTuple):
    paths: list[str]
    labels: np.ndarray
    ids: list[int]

    def take(self, indices: np.ndarray) -> _Images:
        rows = indices.tolist()
        return _Images(
            [self.paths[i] for i in rows], self.labels[indices], [self.ids[i] for i in rows]
        )

    @property
    def occurrences(self) -> Occurrences:
        return Occurrences(self.paths, self.labels, self.ids)


class _Found(NamedTuple):
    names: tuple[str, ...]
    train: _Images
    test: _Images
    val: _Images | None
    manifest: dict[str, str]


def _images(walk: Walk, folder: Path, names: tuple[str, ...], train: Path, part: str) -> _Images:
    """Return the images below ``folder/<class>/`` at any depth, by class and path."""
    if folder != train:
        check_same_classes(folder, train, names)
    classes = walk.images(folder, names)
    counts = np.array([len(images) for images in classes])
    if counts.min() == 0 and part != "val":
        kind, left_out = "training" if part == "train" else part, walk.left_out()
        raise UserError(
            f"class `{names[int(counts.argmin())]}` has no {kind} image in `{folder}` (such "
            f"classes: {int((counts == 0).sum()):,}{f'; {left_out}' if left_out else ''}); images "
            f"end in {', '.join(ENDINGS)}; add some or remove the class"
        )
    return _Images(
        [path for images in classes for path, _ in images],
        np.repeat(np.arange(len(names)), counts),
        [image for images in classes for _, image in images],
    )


def _check_enough(counts: np.ndarray, names: tuple[str, ...], held: int) -> None:
    """Check that each class has images left to train on after ``held`` go to the test part."""
    smallest = int(counts.min())
    if smallest > held:
        return
    first = names[int(counts.argmin())]
    if smallest == 1:
        raise UserError(
            f"class `{first}` has 1 image (such classes: {int((counts == 1).sum()):,}), which "
            f"cannot be both trained and tested on; add images or a test folder (train/<class>/ "
            f"and test/<class>/), or remove or merge the class"
        )
    raise UserError(
        f"class `{first}` has {smallest} images, so that data.test_per_class={held} leaves none to "
        f"train on (such classes: {int((counts <= held).sum()):,}); lower it to {smallest - 1} or "
        f"less, or give a test folder"
    )


def _draw(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Draw ``per_class`` images of each class by keyed permutations; return sorted indices."""
    drawn = []
    for label in range(int(labels.max()) + 1):
        rows = np.nonzero(labels == label)[0]
        order = keyed_permutation(derive(seed, "test", label), len(rows))
        drawn.append(rows[order[:per_class]])
    return np.sort(np.concatenate(drawn))
