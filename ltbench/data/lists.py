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
from ltbench.data.overlap import Occurrences, overlap
from ltbench.data.shards.dataset import assemble, is_packed, open_parts
from ltbench.data.val_split import ValFraction
from ltbench.data.walk import Files, files_in
from ltbench.errors import UserError

NEEDED = "data set `list` needs data.root=DIR, the folder that its lists refer to"


class ListOptions(ImageOptions, ValFraction):
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
        for listing in listings.values():
            check_inside(root, listing, self.prefix)
        ids = {
            part: check_files(root, paths[part], listing.file) for part, listing in listings.items()
        }
        facts = self.compare(
            root,
            {part: Occurrences(paths[part], listings[part].labels, ids[part]) for part in listings},
        )
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
            manifest={
                **{f"{part}_list": listing.sha256 for part, listing in listings.items()},
                **facts,
            },
        )

    def compare(self, root: Path, parts: Mapping[str, Occurrences]) -> dict[str, str]:
        """Return facts for the record about images that the lists name twice; here none.

        Args:
            root: folder of the images.
            parts: ``"train"`` and the other parts.
        """
        return {}


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
            return self.hold_out(replace(data, manifest={**self.thinned(), **data.manifest}))
        root = find_root(self.root, NEEDED)
        wanted = {"train": self.train, "test": self.test, "val": self.val}
        listings = {
            part: read_list(find_list(root, name or "", part))
            for part, name in wanted.items()
            if name or part != "val"
        }
        check_parts(listings)
        data = self.assemble("list", root, listings, self.thin(listings["train"].labels))
        manifest = {"source": "list", **self.thinned(), **data.manifest}
        return self.hold_out(replace(data, manifest=manifest))

    def compare(self, root: Path, parts: Mapping[str, Occurrences]) -> dict[str, str]:
        """Issue notes about images that the lists name twice; return facts for the record."""
        return overlap(root, parts)


def check_inside(root: Path, listing: Listing, prefix: Mapping[str, str]) -> None:
    """Check that the paths of a list, apart from replaced prefixes, do not lead out of the root.

    Raises:
        UserError: a path is absolute or has a ``..``.
    """
    text = "\n".join(("", *listing.paths))
    if "\n/" not in text and ".." not in text:
        return
    for path, line in zip(listing.paths, listing.lines, strict=True):
        old = max((old for old in prefix if path.startswith(old)), key=len, default="")
        rest = path[len(old) :]
        absolute = rest.startswith("/") and not prefix.get(old)
        if absolute or ".." in rest.split("/"):
            cut = f"{root}/" if path.startswith(f"{root}/") else f"{path.rpartition('/')[0]}/"
            raise UserError(
                f"{listing.file}, line {line}: `{path[:200]}` leads out of data.root=`{root}`; "
                f"name images by their path below it, or replace the beginning of paths, e.g. "
                f'data.prefix={{"{cut[:200]}": ""}}'
            )


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


def check_files(root: Path, paths: Sequence[str], source: Path) -> list[str]:
    """Check that all files exist, listing each folder once.

    Returns:
        Path of each file itself where ``paths`` lead through links, else as in ``paths`` [N].

    Raises:
        UserError: files are missing; the message has their number, the first three and the likely
            cause.
    """
    top = os.path.realpath(root)
    inside: dict[str, Files] = {}
    plain: dict[str, set[str]] = {}  # names of the files whose path is as in the list
    rest: list[int] = []
    for row, path in enumerate(paths):
        folder, _, name = path.rpartition("/")
        names = plain.get(folder)
        if names is None:
            files = inside[folder] = files_in(top, folder)
            names = plain[folder] = set() if files.moved else files.names
        if name not in names:
            rest.append(row)
    missing, real = [], list(paths)
    for row in rest:
        folder, _, name = paths[row].rpartition("/")
        if name in inside[folder].names:
            real[row] = inside[folder].moved + name
        elif name in inside[folder].links:
            real[row] = inside[folder].links[name]
        else:
            missing.append(paths[row])
    if missing:
        some = ", ".join(f"`{path}`" for path in missing[:3])
        more = ", ..." if len(missing) > 3 else ""
        raise UserError(
            f"{len(missing):,} of {len(paths):,} images of `{source}` are not below "
            f"data.root=`{root}`: {some}{more}; {_likely_cause(root, missing, len(paths))}"
        )
    return real


def _likely_cause(root: Path, missing: Sequence[str], total: int) -> str:
    first = missing[0]
    if "\\" in first:
        return "paths have backslashes: write `/` instead"
    if os.path.islink(root / first):  # noqa: PTH114 (Path's raises if a name is too long)
        return "links that lead nowhere, or no files: copy the images themselves"
    parts = first.split("/")
    for cut in range(1, len(parts)):
        if os.path.isfile(root.joinpath(*parts[cut:])):  # noqa: PTH113
            old = "/".join(parts[:cut]) + "/"
            return f'the image lies there without `{old}`: give data.prefix={{"{old}": ""}}'
    hits = {
        folder: sum(os.path.isfile(folder / path) for path in missing[:20])  # noqa: PTH113
        for folder in sorted(root.iterdir())
        if folder.is_dir()
    }
    best = max(hits, key=lambda folder: hits[folder], default=root)
    if hits.get(best):
        return f"they lie in `{best}`: give that as data.root, or data.prefix"
    if len(missing) == total:
        return "none is there: another data.root, or data.prefix for other beginnings of paths"
    folders = {path.rpartition("/")[0] for path in missing}
    gone = sorted(folder for folder in folders if not os.path.isdir(root / folder))  # noqa: PTH112
    if gone:
        return f"{len(gone)} folders are missing (first: `{gone[0]}`): an archive not unpacked"
    return "an incomplete copy, or another edition of the data set; copy the images again"
