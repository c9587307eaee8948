"""Manifest of a sharded split, with checks of it and of the index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ltbench.data.shards.bounds import (
    MOST_BYTES,
    MOST_CLASSES,
    MOST_IMAGES,
    SPLITS,
    is_dataset_name,
    is_shard_name,
    shown,
)

_WORD = re.compile(r"[0-9a-zA-Z]{0,64}")
_HASH = re.compile(r"[0-9a-f]{64}")
_CONTENT = re.compile(r"(content|listing):[0-9a-f]{64}")


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Args:
        name: file name, without folder.
        bytes: size of the file.
        sha256: of the whole file.
        samples: number of images in it.
    """

    name: str
    bytes: int
    sha256: str
    samples: int


@dataclass(frozen=True)
class Manifest:
    """Description of a sharded split; written last, so that a folder without it is unfinished.

    Args:
        dataset: registered name of the data set, or ``"list"``, ``"folder"``, ``"foreign"``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        samples: number of images N.
        class_counts: images of each class in this split [C].
        class_names: one name per class [C].
        shards: the tars, in the order that the index numbers them.
        index_sha256: of ``index.npy``.
        keys_sha256: of ``keys.zlib``.
        fingerprint: ``fingerprint_of`` keys, labels and checksums.
        content: ``content_of`` the images, equal to that of the same images in a folder.
        list_sha256: ``Listing.sha256`` of the list it was packed from, ``""`` without one.
        parameters: how it was packed: shard size, seed, resizing.
    """

    dataset: str
    split: str
    samples: int
    class_counts: tuple[int, ...]
    class_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    index_sha256: str
    keys_sha256: str
    fingerprint: str
    content: str
    list_sha256: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_counts)


def manifest_problems(manifest: Manifest) -> Iterator[str]:
    """Yield the faults of a manifest; those after the first may only follow from it."""
    if not is_dataset_name(manifest.dataset):
        yield f"dataset is a name of letters, digits and _.-, found `{shown(manifest.dataset)}`"
    if manifest.split not in SPLITS:
        yield f"split is one of {', '.join(SPLITS)}, found `{shown(manifest.split)}`"
    for name in ("index_sha256", "keys_sha256", "fingerprint"):
        yield from _not_a_hash(name, getattr(manifest, name))
    if not (isinstance(manifest.list_sha256, str) and _WORD.fullmatch(manifest.list_sha256)):
        yield f"list_sha256 is a SHA-256 or empty, found `{shown(manifest.list_sha256)}`"
    if not (isinstance(manifest.content, str) and _CONTENT.fullmatch(manifest.content)):
        yield f"content is content: or listing: and a SHA-256, found `{shown(manifest.content)}`"
    yield from _counts_problems(manifest)
    given = manifest.parameters
    resized = given.get("resize_short") if isinstance(given, dict) else ""
    if resized is not None and not _is_count(resized, 1, 2**31):
        yield "parameters are names with values, resize_short null or pixels"


def _counts_problems(manifest: Manifest) -> Iterator[str]:
    samples, counts, shards = manifest.samples, manifest.class_counts, manifest.shards
    if not _is_count(samples, 1, MOST_IMAGES):
        yield f"samples is a number from 1 to {MOST_IMAGES:,}, found `{shown(samples)}`"
        return
    if not 1 <= len(counts) <= MOST_CLASSES or not all(_is_count(n, 0, samples) for n in counts):
        yield f"class_counts are numbers of images of 1 to {MOST_CLASSES:,} classes"
    elif sum(counts) != samples:
        yield f"class_counts add up to {sum(counts):,}, samples is {samples:,}"
    if len(manifest.class_names) != len(counts):
        yield f"{len(manifest.class_names):,} class_names for {len(counts):,} class_counts"
    if not all(isinstance(name, str) for name in manifest.class_names):
        yield "class_names are texts"
    for shard in shards:
        problem = next(_shard_problems(shard, samples), "")
        if problem:
            yield problem
            return
    if len({shard.name for shard in shards}) != len(shards):
        yield "two shards have one name"
    if sum(shard.samples for shard in shards) != samples:
        found = sum(shard.samples for shard in shards)
        yield f"the shards' samples add up to {found:,}, samples is {samples:,}"


def _shard_problems(shard: Shard, samples: int) -> Iterator[str]:
    if not is_shard_name(shard.name):
        yield f"a shard's name is a plain file name, found `{shown(shard.name)}`"
    if not _is_count(shard.bytes, 1, MOST_BYTES):
        yield f"a shard's bytes are a number from 1 to 2^50, found `{shown(shard.bytes)}`"
    if not _is_count(shard.samples, 1, samples):
        yield f"a shard has 1 to {samples:,} samples, found `{shown(shard.samples)}`"
    yield from _not_a_hash("a shard's sha256", shard.sha256)


def index_problems(manifest: Manifest, index: np.ndarray) -> Iterator[str]:
    """Yield contradictions between index and manifest; those after the first may follow from it.

    Args:
        manifest: of the split.
        index: ``ROW`` records [N].
    """
    labels, classes = index["label"], manifest.num_classes
    if len(index) and int(labels.min()) < 0:
        yield "the index has negative labels"
        return
    if len(index) and int(labels.max()) >= classes:
        yield f"the index has label {labels.max()}, there are {classes} classes"
        return
    if len(index) and int(index["shard"].max()) >= len(manifest.shards):
        yield f"the index has shard {index['shard'].max()} of {len(manifest.shards)}"
        return
    if np.bincount(labels, minlength=classes).tolist() != list(manifest.class_counts):
        yield "the class counts are not those of the index"
    in_shards = np.bincount(index["shard"], minlength=len(manifest.shards))
    if in_shards.tolist() != [shard.samples for shard in manifest.shards]:
        yield "the numbers of images in the shards are not those of the index"
    bytes_of = np.array([shard.bytes for shard in manifest.shards], dtype=np.uint64)
    sizes, room = index["size"].astype(np.uint64), bytes_of[index["shard"]]
    outside = np.flatnonzero((sizes > room) | (index["offset"] > room - np.minimum(sizes, room)))
    if len(outside):
        row = int(outside[0])
        more = f" ({len(outside) - 1:,} more like it)" if len(outside) > 1 else ""
        yield (
            f"image {row} would end at {int(index['offset'][row]) + int(sizes[row])} in "
            f"{manifest.shards[index['shard'][row]].name}, beyond its {room[row]} bytes{more}"
        )
    taken = np.bincount(index["shard"], weights=sizes, minlength=len(manifest.shards))
    full = np.flatnonzero(taken > bytes_of)
    if len(full) and not len(outside):
        yield f"the images in {manifest.shards[full[0]].name} overlap"


def _not_a_hash(name: str, value: Any) -> Iterator[str]:
    if not (isinstance(value, str) and _HASH.fullmatch(value)):
        yield f"{name} is a SHA-256, found `{shown(value)}`"


def _is_count(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
