"""Plan of a packing: which image goes where, fixed before anything is written."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ltbench.data.shards.bounds import (
    KEY_BYTES,
    MANIFEST_BYTES,
    MOST_CLASSES,
    MOST_IMAGES,
    SPLITS,
    is_dataset_name,
    read_within,
    shown,
)
from ltbench.data.shards.format import FORMAT, member_ending, member_key
from ltbench.data.shards.ustar import END, LABEL, sample_bytes
from ltbench.digest import parse_json
from ltbench.errors import UserError
from ltbench.files import write_atomic
from ltbench.seeding import derive, keyed_permutation

PLAN = "plan.json"
LARGEST = 2**30  # bytes of a shard and of an image


@dataclass(frozen=True)
class PartToPack:
    """The images of one split.

    Args:
        dataset: registered name of the data set.
        split: ``"train"``, ``"val"`` or ``"test"``.
        root: folder of the images, or a function that can be pickled and returns the bytes of
            image i, always the same.
        paths: relative path of each image as its list has it; images in memory need one too [N].
        labels: class of each image, int64 [N].
        class_names: one name per class [C].
        list_sha256: ``Listing.sha256`` of the list, ``""`` without one.
    """

    dataset: str
    split: str
    root: str | Path | Callable[[int], bytes]
    paths: Sequence[str]
    labels: np.ndarray
    class_names: Sequence[str]
    list_sha256: str = ""


@dataclass(frozen=True)
class Plan:
    """Positions of the images of a part in its shards.

    Args:
        keys: name of each image's members without ending [N].
        sizes: bytes of each image before any resizing, int64 [N].
        stamps: when each file was last changed, ns, 0 for images in memory, int64 [N].
        shards: the images of each shard in the order of its tar, int64 each.
        parameters: how it is packed.
        facts: content of ``plan.json``: all that a resumed packing must have in common.
    """

    keys: tuple[str, ...]
    sizes: np.ndarray
    stamps: np.ndarray
    shards: tuple[np.ndarray, ...]
    parameters: dict[str, Any]
    facts: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the facts, by which a shard is known to belong to this plan."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


def make_plan(part: PartToPack, parameters: dict[str, Any]) -> Plan:
    """Return the position of each image: a function of the list, the seed and the images' sizes.

    Args:
        part: what to pack.
        parameters: how to pack it: ``shard_bytes``, ``seed`` and what else decides about bytes.

    Raises:
        UserError: a label, path or key is not usable, or an image is missing, empty or too large.
    """
    _check_labels(part)
    keys = _keys(part)
    sizes, stamps = _facts_of_images(part)
    order = keyed_permutation(derive(parameters["seed"], "shards"), len(sizes))
    shards = _cut(order, sizes, parameters["shard_bytes"])
    lines = (f"{y} {p}\n" for y, p in zip(part.labels.tolist(), part.paths, strict=True))
    facts = {
        "format": FORMAT,
        "dataset": part.dataset,
        "split": part.split,
        "images": len(keys),
        "shards": len(shards),
        **parameters,
        "list": _sha256("".join(lines)),
        "class_names": _sha256("".join(f"{name}\n" for name in part.class_names)),
        "sizes": hashlib.sha256(sizes.astype("<i8").tobytes()).hexdigest(),
    }
    return Plan(tuple(keys), sizes, stamps, tuple(shards), parameters, facts)


def agree(folder: Path, plan: Plan) -> None:
    """Write the plan into an empty folder, or check that it is the one that was begun there.

    Raises:
        UserError: the folder was begun with other parameters or images, or cannot be written.
    """
    path = folder / PLAN
    content = (json.dumps(plan.facts, indent=1) + "\n").encode()
    if not path.is_file():
        write_atomic(path, content)
        return
    try:
        begun = parse_json(read_within(path, MANIFEST_BYTES), limit=MANIFEST_BYTES)
        changed = [name for name in plan.facts if begun.get(name) != plan.facts[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"`{path}` cannot be read ({str(error)[:200]}); delete `{folder}`, or pass another out="
        ) from error
    if changed:
        what = ", ".join(_difference(name, begun.get(name), plan.facts[name]) for name in changed)
        raise UserError(
            f"`{folder}` was begun with other images or parameters: {what}; use the same as "
            "before, pass another out=, or delete that folder"
        )


_HASHED = {
    "list": "the paths or labels of the list differ",
    "class_names": "the names of the classes differ",
    "sizes": "the sizes of the image files differ",
}


def _difference(name: str, old: Any, new: Any) -> str:
    return _HASHED.get(name) or f"{name} was {shown(old)}, now it is {shown(new)}"


def place_in(root: str | Path) -> Callable[[str], str]:
    """Return a function that joins a path to a folder, much faster than ``os.path.join``."""
    before = os.path.join(root, "")  # noqa: PTH118
    return lambda path: path if path.startswith("/") else before + path


def _check_labels(part: PartToPack) -> None:
    labels, classes = np.asarray(part.labels), len(part.class_names)
    if part.split not in SPLITS:
        raise UserError(f"a split is one of {', '.join(SPLITS)}, found `{part.split}`")
    if not is_dataset_name(part.dataset):
        raise UserError(
            f"the name of a data set has letters, digits and _.-, found `{shown(part.dataset)}`"
        )
    if len(labels) == 0:
        raise UserError(f"the {part.split} split of {part.dataset} has no images to pack")
    if len(labels) != len(part.paths):
        raise UserError(
            f"one label per image is needed, found {len(part.paths)} paths and {len(labels)} labels"
        )
    if len(labels) > MOST_IMAGES or classes > MOST_CLASSES:
        raise UserError(
            f"a split has at most {MOST_IMAGES:,} images of {MOST_CLASSES:,} classes, found "
            f"{len(labels):,} of {classes:,}"
        )
    wrong = np.nonzero((labels < 0) | (labels >= classes))[0]
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"`{part.paths[first]}` has label {labels[first]}, but there are names of {classes} "
            f"classes, 0 to {classes - 1}; correct the list or the names"
        )


def _keys(part: PartToPack) -> list[str]:
    owners: dict[str, str] = {}
    unfit = (".", LABEL.decode())
    for path in part.paths:
        name = path.rpartition("/")[2]
        if name.rfind(".") < 1 or member_ending(name) in unfit or "\n" in path:
            raise UserError(
                f"image {path!r} has no name with an ending such as .jpg, on one line, by which "
                "readers of shards know images; rename it"
            )
        if len(path) >= KEY_BYTES or len(os.fsencode(path)) >= KEY_BYTES or "\0" in path:
            raise UserError(
                f"image {path[:60]!r}... has a path of {len(path):,} characters; at most "
                f"{KEY_BYTES - 1:,} bytes, none of them 0, are possible"
            )
        key = member_key(path)
        other = owners.get(key)
        if other == path:
            raise UserError(f"the list names `{path}` twice; name each image once")
        if other is not None:
            raise UserError(
                f"`{other}` and `{path}` would both be `{key}` in a shard, where the ending and "
                "dots in a name do not count; rename one of them"
            )
        owners[key] = path
    return list(owners)


def _facts_of_images(part: PartToPack) -> tuple[np.ndarray, np.ndarray]:
    """Return size and time of each image, int64 [N] each."""
    sizes, stamps, problems = [], [], []
    located = place_in("" if callable(part.root) else part.root)
    for row, path in enumerate(part.paths):
        size = stamp = 0
        if callable(part.root):
            size = len(part.root(row))
        else:
            try:
                found = os.stat(located(path))  # noqa: PTH116 (speed)
            except OSError as error:
                problems.append(f"`{path}` ({error.strerror})")
                continue
            if not stat.S_ISREG(found.st_mode):
                problems.append(f"`{path}` (not a file)")
                continue
            size, stamp = found.st_size, found.st_mtime_ns
        if not 0 < size <= LARGEST:
            problems.append(f"`{path}` ({'over 1 GiB' if size else 'empty'})")
        sizes.append(size)
        stamps.append(stamp)
    if problems:
        more = ", ..." if len(problems) > 3 else ""
        where = "" if callable(part.root) else f" below `{part.root}`"
        raise UserError(
            f"{len(problems):,} of {len(part.paths):,} images{where} cannot be packed: "
            f"{', '.join(problems[:3])}{more}; copy them again or remove them from the list"
        )
    return np.array(sizes, dtype=np.int64), np.array(stamps, dtype=np.int64)


def _cut(order: np.ndarray, sizes: np.ndarray, shard_bytes: int) -> list[np.ndarray]:
    room = shard_bytes - len(END)
    starts, used = [], room
    for place, size in enumerate(sizes[order].tolist()):
        taken = sample_bytes(size)
        if used + taken > room:  # a larger image has a shard for itself
            starts.append(place)
            used = 0
        used += taken
    return np.split(order, starts[1:])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
