from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import Field

from ltbench.data.base import Data, DatasetInfo
from ltbench.data.files import ImageOptions, LongTail
from ltbench.data.listing import (
    Listing,
    check_parts,
    count_classes,
    find_list,
    find_root,
    names_from_paths,
    read_list,
    read_names,
)
from ltbench.data.shards.dataset import assemble, is_packed, open_parts
from ltbench.errors import UserError

NEEDED = "data set `list` needs data.root=DIR, the folder that its lists refer to"


class ListOptions(ImageOptions):
    """Options of data sets with image lists."""

    train: str = Field(
        "train.txt", description="list of training images", json_schema_extra={"digest": False}
    )
    test: str = Field(
        "test.txt", description="list of test images", json_schema_extra={"digest": False}
    )
    val: str | None = Field(
        None, description="list of validation images", json_schema_extra={"digest": False}
    )
    class_names: str | None = Field(
        None,
        description="file with one class name per line; default: the folder names",
        json_schema_extra={"digest": False},
    )
    prefix: dict[str, str] = Field(
        {},
        description='path prefixes to replace, e.g. {"train/": "data_256/"}',
        json_schema_extra={"digest": False},
    )

    def assemble(
        self, name: str, root: Path, listings: Mapping[str, Listing], keep: np.ndarray | None = None
    ) -> Data:
        """Return the data of checked lists, after checking that all images exist.

        Args:
            name: registered name of the data set.
            root: folder of the images.
            listings: the lists ``"train"``, ``"test"`` and optionally ``"val"``.
            keep: sorted indices of the training images to use; ``None`` is all.

        Raises:
            UserError: images are missing, or the class names do not fit.
        """
        paths = {part: rewrite(listing.paths, self.prefix) for part, listing in listings.items()}
        for part, listing in listings.items():
            check_files(root, paths[part], listing.file)
        labels = {part: listing.labels for part, listing in listings.items()}
        num_classes = count_classes(listings["train"])
        if keep is not None:
            labels["train"] = labels["train"][keep]
            paths["train"] = [paths["train"][index] for index in keep.tolist()]
        if self.class_names is None:
            names = names_from_paths(listings["train"], num_classes)
        else:
            file = find_list(root, self.class_names, "class_names")
            names = read_names(file, num_classes)
        splits = {part: self.files(paths[part], labels[part], root) for part in listings}
        counts = np.bincount(labels["train"], minlength=num_classes)
        return Data(
            info=DatasetInfo(name, tuple(counts.tolist()), names, *self.statistics),
            train=splits["train"],
            test=splits["test"],
            val=splits.get("val"),
            manifest={f"{part}_list": listing.sha256 for part, listing in listings.items()},
        )


class ImageList(ListOptions, LongTail):
    """Anybody's images under one root, with lists of ``relative/path label`` lines.

    Lists may be gzip files; they are searched in the root first, then as given. Classes are
    numbered as in the lists and never renumbered.
    """

    def ready(self) -> None:
        """Check that the folder exists."""
        if not is_packed(self.root):
            find_root(self.root, NEEDED)

    def load(self) -> Data:
        """Read the lists and check that all images exist.

        Raises:
            UserError: the root or a list is missing, a list is invalid, or images are missing.
        """
        parts = open_parts(self.root)
        if parts is not None:
            data = assemble(self, "list", parts, self.thin(parts["train"].labels))
            return replace(data, manifest={**self.thinned(), **data.manifest})
        root = find_root(self.root, NEEDED)
        wanted = {"train": self.train, "test": self.test, "val": self.val}
        listings = {
            part: read_list(find_list(root, name, part)) for part, name in wanted.items() if name
        }
        check_parts(listings)
        data = self.assemble("list", root, listings, self.thin(listings["train"].labels))
        return replace(data, manifest={"source": "list", **self.thinned(), **data.manifest})


def rewrite(paths: Iterable[str], prefix: Mapping[str, str]) -> list[str]:
    """Return the paths with the longest matching prefix replaced."""
    if not prefix:
        return list(paths)
    rules = sorted(prefix.items(), key=lambda rule: -len(rule[0]))
    result = []
    for path in paths:
        old, new = next((rule for rule in rules if path.startswith(rule[0])), ("", ""))
        result.append(new + path[len(old) :])
    return result


def check_files(root: Path, paths: Sequence[str], source: Path) -> None:
    """Check that all files exist, listing each folder once.

    Raises:
        UserError: files are missing; the message has their number, the first three and the likely
            cause.
    """
    inside: dict[str, set[str] | None] = {}
    missing = []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder not in inside:
            inside[folder] = _names(os.path.join(root, folder))  # noqa: PTH118
        names = inside[folder]
        if names is None or name not in names:
            missing.append(path)
    if missing:
        some = ", ".join(f"`{path}`" for path in missing[:3])
        more = ", ..." if len(missing) > 3 else ""
        raise UserError(
            f"{len(missing):,} of {len(paths):,} images of `{source}` are not below "
            f"data.root=`{root}`: {some}{more}; {_likely_cause(root, missing, len(paths))}"
        )


def _names(folder: str) -> set[str] | None:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except OSError:
        return None


def _likely_cause(root: Path, missing: Sequence[str], total: int) -> str:
    first = missing[0]
    parts = first.split("/")
    for cut in range(1, len(parts)):
        if root.joinpath(*parts[cut:]).is_file():
            old = "/".join(parts[:cut]) + "/"
            return f'the image lies there without `{old}`: give data.prefix={{"{old}": ""}}'
    hits = {
        folder: sum((folder / path).is_file() for path in missing[:20])
        for folder in sorted(root.iterdir())
        if folder.is_dir()
    }
    best = max(hits, key=lambda folder: hits[folder], default=root)
    if hits.get(best):
        return f"they lie in `{best}`: give that as data.root, or data.prefix"
    if len(missing) == total:
        return "none is there: another data.root, or data.prefix for other beginnings of paths"
    folders = {path.rpartition("/")[0] for path in missing}
    gone = sorted(folder for folder in folders if not (root / folder).is_dir())
    if gone:
        return f"{len(gone)} folders are missing (first: `{gone[0]}`): an archive not unpacked"
    return "an incomplete copy, or another edition of the data set; copy the images again"
