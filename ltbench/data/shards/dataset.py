"""Prepared data sets: the splits that `ltbench data prepare` wrote, wherever they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ltbench.config.paths import expanded
from ltbench.data.base import Data, DatasetInfo, Source
from ltbench.data.files import ImageOptions, LongTail
from ltbench.data.listing import Listing, listing_sha256
from ltbench.data.shards.bounds import SPLITS
from ltbench.data.shards.format import INFO, MANIFEST, Manifest
from ltbench.data.shards.layout import PLAN
from ltbench.data.shards.reader import ShardSource
from ltbench.data.val_split import ValFraction
from ltbench.errors import UserError
from ltbench.remote.address import without_credentials


class Shards(ImageOptions, LongTail, ValFraction):
    """Any data set that was packed into shards: a folder, `http(s)://` or `hf://datasets/...`."""

    def ready(self) -> None:
        """Check that there are shards, or an address."""
        if not is_packed(self.root):
            raise UserError(
                f"data set `shards` needs data.root=OUT, what `ltbench data prepare ... out=OUT` "
                f"wrote, or its address; found {self.root or 'no data.root'}"
            )

    def load(self) -> Data:
        """Open the shards; images are read when they are needed.

        Raises:
            UserError: there are no finished shards at the root, or train or test is missing.
        """
        self.ready()
        parts = open_parts(self.root)
        assert parts is not None
        name = parts["train"].manifest.dataset
        data = assemble(self, name, parts, self.thin(parts["train"].labels))
        return self.hold_out(replace(data, manifest={**self.thinned(), **data.manifest}))


def is_packed(root: str | None) -> bool:
    """Return whether a root is an address, or a folder of shards, finished or not."""
    if not root or "://" in root:
        return bool(root)
    folder = expanded(root)
    marks = [INFO, *(f"{part}/{mark}" for part in SPLITS for mark in (MANIFEST, PLAN))]
    return any((folder / mark).is_file() for mark in marks)


def open_parts(root: str | None) -> dict[str, ShardSource] | None:
    """Return the splits of a prepared data set by name, or ``None`` if the root is something else.

    Args:
        root: the option ``data.root``: a folder or an address.

    Raises:
        UserError: shards are unfinished or damaged, or the train or test split is missing.
    """
    if not root or not is_packed(root):
        return None
    root = without_credentials(root)
    if "://" in root:
        from ltbench.data.shards.hub import open_hub
        from ltbench.data.shards.remote import open_remote

        splits = open_hub(root) if root.startswith("hf://") else open_remote(root)
        parts = {name: ShardSource(split) for name, split in splits.items()}
    else:
        folder = expanded(root)
        there = [name for name in SPLITS if (folder / name / MANIFEST).is_file()]
        unfinished = [name for name in SPLITS if (folder / name / PLAN).is_file()]
        parts = {name: ShardSource(folder / name) for name in dict.fromkeys([*there, *unfinished])}
    for name, source in parts.items():
        if source.manifest.split != name:
            raise UserError(
                f"the shards in `{root}/{name}` are of the {source.manifest.split} split: moved or "
                "swapped; give each split the folder of its name"
            )
    missing = [name for name in ("train", "test") if name not in parts]
    if missing:
        raise UserError(
            f"`{root}` has no {' and no '.join(missing)} split (found {', '.join(parts) or 'none'})"
            "; prepare it too: training needs train and test"
        )
    return parts


def listings(parts: Mapping[str, ShardSource], root: str | None) -> dict[str, Listing]:
    """Return the lists that shards were packed from, with fresh hashes but without paths."""
    return {
        name: Listing(
            file=Path(f"{root}/{name}/{MANIFEST}"),
            paths=[],
            labels=source.labels,
            lines=list(range(1, len(source) + 1)),
            sha256=listing_sha256(source.keys(), source.labels.tolist()),
        )
        for name, source in parts.items()
    }


def assemble(
    options: ImageOptions,
    name: str,
    parts: Mapping[str, ShardSource],
    keep: np.ndarray | None = None,
) -> Data:
    """Return the data of prepared splits.

    Args:
        options: how images are cropped and augmented.
        name: registered name of the data set.
        parts: the splits ``"train"``, ``"test"`` and perhaps ``"val"``.
        keep: sorted indices of the training images to use; ``None`` is all.

    Raises:
        UserError: the splits are not of one data set, a class has no training or test image, or a
            manifest is of other images than its index.
    """
    manifests = {part: source.manifest for part, source in parts.items()}
    _check_same(manifests)
    for source in parts.values():
        source.verify()
    sources: dict[str, Source] = dict(parts)
    labels = {part: source.labels for part, source in parts.items()}
    train = parts["train"]
    if keep is not None and len(keep) != len(train):
        sources["train"] = train.subset(keep)
        labels["train"] = train.labels[keep]
    counts = np.bincount(labels["train"], minlength=manifests["train"].num_classes)
    _check_classes(labels, counts, manifests["train"].class_names)
    splits = {part: options.split(sources[part], labels[part]) for part in parts}
    splits["train"].stream = options.stream
    facts = {"source": "shards"}
    for part, manifest in manifests.items():
        facts[f"{part}_shards"] = manifest.fingerprint
        if manifest.list_sha256:
            facts[f"{part}_list"] = manifest.list_sha256
    resized = manifests["train"].parameters.get("resize_short")
    if resized:
        facts["resize_short"] = str(resized)
    return Data(
        info=DatasetInfo(
            name, tuple(counts.tolist()), manifests["train"].class_names, *options.statistics
        ),
        train=splits["train"],
        test=splits["test"],
        val=splits.get("val"),
        manifest=facts,
    )


def _check_same(manifests: Mapping[str, Manifest]) -> None:
    train = manifests["train"]
    for part, manifest in manifests.items():
        if (manifest.dataset, manifest.class_names) != (train.dataset, train.class_names):
            raise UserError(
                f"the {part} shards are of `{manifest.dataset}` with {manifest.num_classes} "
                f"classes, the training shards of `{train.dataset}` with {train.num_classes}; "
                "use the splits of one data set"
            )


def _check_classes(
    labels: Mapping[str, np.ndarray], counts: np.ndarray, names: Sequence[str]
) -> None:
    """Check that there are two classes or more, each with images to train on and to test."""
    if len(counts) < 2:
        raise UserError("the shards have one class; at least two are needed")
    tested = np.bincount(labels["test"], minlength=len(counts))
    for part, images in (("training", counts), ("test", tested)):
        empty = np.flatnonzero(images == 0)
        if len(empty):
            more = f" (and {len(empty) - 1:,} more)" if len(empty) > 1 else ""
            raise UserError(
                f"class {empty[0]}, `{names[empty[0]]}`,{more} has no {part} image in the shards; "
                "every class needs one: add images and pack again, or number the classes without "
                "gaps"
            )
