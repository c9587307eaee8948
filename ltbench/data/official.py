"""Data sets with official lists: their facts, and the checks of the lists."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
from pydantic import Field

from ltbench.config.paths import expanded
from ltbench.data.base import Data
from ltbench.data.listing import Listing, check_parts, look_for, read_list
from ltbench.data.lists import ListOptions
from ltbench.data.shards.dataset import assemble, is_packed, listings, open_parts
from ltbench.data.shards.reader import ShardSource
from ltbench.errors import UserError

LISTS = "https://github.com/facebookresearch/classifier-balancing"
EDITIONS = {"isic2019_lt": (100, 200, 500)}  # imbalance ratios with lists of their own


class PartFacts(TypedDict):
    """Facts about an official list.

    Args:
        lines: number of images.
        counts: images of each class [C], or one number if it is the same for all classes.
        sha256: ``Listing.sha256`` of the list, or ``None`` if unknown.
    """

    lines: int
    counts: list[int] | int
    sha256: str | None


class Facts(TypedDict):
    """Facts about an official data set, by part."""

    num_classes: int
    parts: dict[str, PartFacts]


@functools.cache
def facts(name: str) -> Facts:
    """Return the facts of an official data set by its ``Official.edition``, e.g. ``"inat18"``."""
    text = resources.files("ltbench.data").joinpath("facts", f"{name}.json").read_text("utf-8")
    loaded: Facts = json.loads(text)
    return loaded


def edition(name: str, options: Mapping[str, Any]) -> str:
    """Return the name of the facts of a data set with its options.

    Args:
        name: registered name of the data set.
        options: its options by name.
    """
    if name not in EDITIONS:
        return name
    ratio = options.get("imbalance_ratio")
    return f"{name}_{int(ratio) if isinstance(ratio, (int, float)) else ratio}"


class Official(ListOptions):
    """Data set with official lists, which ``load`` verifies first."""

    registered: ClassVar[str]  # name in the registry
    lenient: ClassVar[bool] = True
    needs: ClassVar[str]  # description of the images and their source, for messages
    lists_from: ClassVar[str] = LISTS  # source of the lists
    lists_in: ClassVar[str] = "data"  # folder of the lists there
    published_as: ClassVar[Mapping[str, str]] = {}  # other names of the default lists, by part
    also: ClassVar[str] = ""  # how the lists are made from what is there, if they are not there

    image_size: int = Field(224, ge=8, le=2048, description="side of the network's input in pixels")
    verify: Literal["official", "counts", "none"] = Field(
        "official",
        description="checks of the lists: class counts and known hashes, counts only, or none",
    )

    @property
    def edition(self) -> str:
        """Name of the facts of these options."""
        return edition(self.registered, self.model_dump())

    def load(self) -> Data:
        """Read and verify the lists and check that all images exist.

        Raises:
            UserError: images or lists are missing, or are not the official ones.
        """
        parts = open_parts(self.root)
        if parts is not None:
            return self._from_shards(parts)
        root, files = self._find()
        listings = {part: read_list(file) for part, file in files.items()}
        manifest = {"source": "official lists", "verify": self.verify}
        for part, listing in listings.items():
            manifest[f"{part}_official"] = self._verify(part, listing)
        check_parts(listings)
        data = self.assemble(self.registered, root, listings)
        return self.hold_out(replace(data, manifest={**manifest, **data.manifest}))

    def ready(self) -> None:
        """Check that the folder and the lists exist."""
        if not is_packed(self.root):
            self._find()

    def _from_shards(self, parts: Mapping[str, ShardSource]) -> Data:
        named = parts["train"].manifest.dataset
        if named != self.registered and self.verify != "none":
            raise UserError(
                f"data.root=`{self.root}` holds shards of `{named}`, needed are those of "
                f"`{self.registered}`; give another root, or use data=shards"
            )
        manifest: dict[str, str] = {"verify": self.verify}
        for part, listing in listings(parts, self.root).items():
            manifest[f"{part}_official"] = self._verify(part, listing)
        data = assemble(self, self.registered, parts)
        return self.hold_out(replace(data, manifest={**manifest, **data.manifest}))

    def _wanted(self) -> dict[str, str]:
        lists = {"train": self.train, "val": self.val, "test": self.test}
        return {part: name or "" for part, name in lists.items() if name or part != "val"}

    def _find(self) -> tuple[Path, dict[str, Path]]:
        """Return the root and the paths of the lists; one message names everything missing."""
        if not self.root:
            raise UserError(self._missing("no data.root is given"))
        root = expanded(self.root)
        if not root.is_dir():
            raise UserError(self._missing(f"data.root=`{self.root}` is not a folder"))
        if next(root.iterdir(), None) is None:
            raise UserError(self._missing(f"data.root=`{self.root}` is empty"))
        files = {part: self._look_for(root, part, name) for part, name in self._wanted().items()}
        absent = [name for part, name in self._wanted().items() if files[part] is None]
        if absent:
            raise UserError(
                self._missing(f"no list {', '.join(absent)} (nor .gz) in `{self.root}`")
            )
        return root, {part: file for part, file in files.items() if file is not None}

    def _look_for(self, root: Path, part: str, name: str) -> Path | None:
        """Return the path of a list, a default one also under the name it is published by."""
        found, other = look_for(root, name), self.published_as.get(part)
        if found or not other or Path(name).name != type(self).model_fields[part].default:
            return found
        return look_for(root, str(Path(name).with_name(other)))

    def _missing(self, found: str) -> str:
        lists = self._wanted()
        return (
            f"data set `{self.registered}`: {found}; needed are {self.needs}, and the lists "
            f"{', '.join(lists.values())} ({self.lists_from}, folder {self.lists_in}"
            f"{self._called()}); then run this again with "
            f"data.root=DIR, the folder that holds the images as the lists name them, and the "
            f"lists (or give these by "
            f"{' '.join(f'data.{part}=FILE' for part in lists)}); or pack both once with `ltbench "
            f"data prepare dataset={self.registered} root=IMAGES lists=LISTS out=SHARDS` and give "
            "data.root=SHARDS"
        )

    def _called(self) -> str:
        """Return how the lists are called or made where they are published, if that differs."""
        names = [name for part, name in self.published_as.items() if part in self._wanted()]
        words = [f"there {', '.join(names)}"] * bool(names) + [self.also] * bool(self.also)
        return "".join(f": {text}" for text in words)

    def _verify(self, part: str, listing: Listing) -> str:
        """Check a list and return whether it is official: ``"yes"``, ``"no"`` or ``"unknown"``."""
        known = facts(self.edition)["parts"].get(part)
        if known is None:
            return "unknown"
        if self.verify != "none":
            self._check_counts(part, listing, known["counts"])
        if known["sha256"] is None:
            return "unknown"
        if listing.sha256 == known["sha256"]:
            return "yes"
        if self.verify == "official":
            raise UserError(
                f"`{listing.file}` has the counts of the official {part} list of "
                f"{self.registered} but other images: sha256 of its sorted `label basename` lines "
                f"is {listing.sha256[:12]}..., official {known['sha256'][:12]}...; take the list "
                f"from {self.lists_from}, or use data.verify=counts"
            )
        return "no"

    def _check_counts(self, part: str, listing: Listing, official: list[int] | int) -> None:
        num_classes = facts(self.edition)["num_classes"]
        expected = np.broadcast_to(np.array(official), num_classes)
        largest = int(listing.labels.max())
        if largest >= num_classes:
            line = listing.lines[int(listing.labels.argmax())]
            raise UserError(
                f"{listing.file}, line {line}: label {largest}, but {self.registered} has classes "
                f"0..{num_classes - 1}; take the list from {self.lists_from}"
            )
        counts = np.bincount(listing.labels, minlength=num_classes)
        wrong = np.nonzero(counts != expected)[0]
        if len(wrong):
            first = int(wrong[0])
            raise UserError(
                f"`{listing.file}` does not have the counts of the official {part} list of "
                f"{self.registered}: {len(listing.labels):,} images, official "
                f"{int(expected.sum()):,}; {len(wrong):,} classes differ, first class {first}: "
                f"{counts[first]}, official {expected[first]}; take the list from "
                f"{self.lists_from}, or use data.verify=none"
            )
