"""Images that occur twice: in two parts of a data set, or under two labels."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ltbench.data.base import Data
from ltbench.data.files import FileSource

OWN = ("folder", "list")  # data sets of the user's own images


class Occurrences(NamedTuple):
    """Images of one part.

    Args:
        paths: path of each image, relative to the root [N].
        labels: class of each image, int64 [N].
        ids: identity of each image, the same for two paths to one file [N].
    """

    paths: Sequence[str]
    labels: np.ndarray
    ids: Sequence[Hashable]


def overlap(root: Path, parts: Mapping[str, Occurrences]) -> dict[str, str]:
    """Return facts for the record about images that occur twice, and issue a note about each kind.

    Args:
        root: folder of the images.
        parts: ``"train"`` and the other parts.

    Returns:
        ``"overlap"`` and ``"two_labels"``, each only if there are such images.
    """
    facts: dict[str, str] = {}
    distinct = {name: set(part.ids) for name, part in parts.items()}
    train = distinct["train"]
    repeated = False
    for name, part in parts.items():
        again = len(part.ids) - len(distinct[name])
        if again:
            repeated = True
            warnings.warn(
                f"{name} images that are named twice and count twice: {again:,}; remove the "
                f"repetitions unless they are meant",
                stacklevel=2,
            )
        shared = [] if name == "train" else [row for row, i in enumerate(part.ids) if i in train]
        if not shared:
            continue
        first, other = part.paths[shared[0]], _path_of(parts["train"], part.ids[shared[0]])
        if not _is_same(root / first, root / other):  # a file system without inodes
            return {}
        repeated = True
        fact = f"{len(shared):,} of {len(part.ids):,} {name} images are training images"
        facts["overlap"] = "; ".join(filter(None, (facts.get("overlap"), fact)))
        warnings.warn(
            f"{fact} (first: `{first}`), so that accuracy on them says nothing about new images; "
            f"remove them from one of the two",
            stacklevel=2,
        )
    twice = _with_two_labels(parts) if repeated else {}
    if twice:
        facts["two_labels"] = f"{len(twice):,}"
        warnings.warn(
            f"images with two labels: {len(twice):,} (first: `{next(iter(twice.values()))}`); keep "
            f"the right label of each",
            stacklevel=2,
        )
    return facts


def same_content(data: Data) -> dict[str, str]:
    """Return facts for the record about copies: in training and test, or under two labels.

    Images are compared by the checksums that ``fingerprint`` left behind; without them, or in
    shards, nothing is compared.

    Args:
        data: data of a run.

    Returns:
        ``"same_content"`` and ``"copies_with_two_labels"``, each only if there are such images
        under other paths; a note about each is issued.
    """
    splits = [getattr(split, "split", split) for split in (data.train, data.test)]  # cached ones
    train, test = (getattr(split, "source", None) for split in splits)
    if data.info.name not in OWN or "overlap" in data.manifest:
        return {}
    if not (isinstance(train, FileSource) and isinstance(test, FileSource)):
        return {}
    if train.contents is None or test.contents is None:
        return {}
    facts = {}
    shared = np.flatnonzero(np.isin(test.contents, train.contents))
    if len(shared):
        fact = f"{len(shared):,} of {len(test):,} test images are copies of training images"
        first = test.name(int(shared[0]))
        warnings.warn(f"{fact} (first: `{first}`); remove them from one of the two", stacklevel=2)
        facts["same_content"] = fact
    labelled = np.stack(
        [np.concatenate([train.contents, test.contents]),
         np.concatenate([split.labels for split in splits])]
    )  # fmt: skip
    contents, labels = np.unique(np.unique(labelled, axis=1)[0], return_counts=True)
    twice = contents[labels > 1]
    if len(twice) and "two_labels" not in data.manifest:
        row = int(np.flatnonzero(np.isin(labelled[0], twice))[0])
        name = train.name(row) if row < len(train) else test.name(row - len(train))
        warnings.warn(
            f"images with copies under another label: {len(twice):,} (first: `{name}`); keep the "
            f"right label of each",
            stacklevel=2,
        )
        facts["copies_with_two_labels"] = f"{len(twice):,}"
    return facts


def _path_of(part: Occurrences, image: Hashable) -> str:
    return part.paths[list(part.ids).index(image)]


def _with_two_labels(parts: Mapping[str, Occurrences]) -> dict[Hashable, str]:
    """Return the path of each image that has two labels, by its identity."""
    label_of: dict[Hashable, int] = {}
    twice: dict[Hashable, str] = {}
    for part in parts.values():
        for path, label, image in zip(part.paths, part.labels.tolist(), part.ids, strict=True):
            if label_of.setdefault(image, label) != label:
                twice.setdefault(image, path)
    return twice


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
