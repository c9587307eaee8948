"""CIFAR-10-LT and CIFAR-100-LT: frozen lists applied to any copy of the data set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from ltbench.config.paths import expanded
from ltbench.config.schema import ADDED
from ltbench.data.base import Data, DatasetInfo
from ltbench.data.cifar_sources import (
    TITLES,
    WEBSITE,
    Dataset,
    Part,
    Source,
    find_source,
    shard_source,
    torchvision_source,
)
from ltbench.data.frozen_lists import Frozen, Protocol, list_hash, read_frozen
from ltbench.data.listing import find_root
from ltbench.data.longtail import Profile
from ltbench.data.pipelines import ENCODER_SIDE, ENCODERS, Channels, Interpolation, statistics
from ltbench.data.pipelines import SmallAugment as Augment
from ltbench.data.shards.dataset import is_packed, open_parts
from ltbench.data.val_split import ValFraction
from ltbench.errors import UserError

if TYPE_CHECKING:
    from ltbench.data.images import PixelSplit
    from ltbench.data.memory import MemorySplit

# Mean and standard deviation of each channel, as in the literature.
STATISTICS: dict[str, tuple[Channels, Channels]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


class CIFARLT(ValFraction):
    """Options of both long-tailed CIFAR data sets."""

    dataset: ClassVar[Dataset]

    root: str | None = Field(
        None, description="folder with a copy of the data set", json_schema_extra={"digest": False}
    )
    download: bool = Field(
        False,
        description="let torchvision download the data set to data.root",
        json_schema_extra={"digest": False},
    )
    imbalance_ratio: Literal[1, 10, 20, 50, 100, 200] = Field(
        100, description="largest over smallest class; 1 is the balanced data set"
    )
    profile: Profile = Field("exp", description="shape of the long tail")
    protocol: Protocol = Field(
        "seed0", description="frozen subset; seed0 is the one of most papers"
    )
    augment: Augment = Field(
        "standard",
        description="none, standard (crop and flip), rotate (standard and a rotation by up to 15 "
        "degrees), cutout (standard and Cutout), autoaugment (standard and AutoAugment), strong "
        "(standard and both), sim or sim_hue (as in contrastive learning, with and without blur), "
        "clip, half, clip_minimalist or half_minimalist (images enlarged for an encoder)",
    )
    augment_views: tuple[Augment, ...] = Field(
        (),
        description="augment of the second, third, ... view of methods with several views; the "
        "last one repeats; empty: all like the first",
    )

    statistics: Literal["cifar10", "cifar100"] = Field(
        "cifar10",
        description="data set whose mean and standard deviation normalise the images; most of the "
        "literature uses those of CIFAR-10 for both; the pipelines of encoders have their own",
        json_schema_extra=ADDED,
    )
    image_size: int | None = Field(
        None,
        ge=32,
        le=2048,
        description="side of the enlarged images in pixels, 224 in the pipelines of encoders; null "
        "is the images' own, in all others",
        json_schema_extra=ADDED,
    )
    interpolation: Interpolation = Field(
        "bilinear",
        description="interpolation of the enlarging, in the pipelines of encoders",
        json_schema_extra=ADDED,
    )

    @classmethod
    def complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the options with the side of enlarged images."""
        if values.get("augment") in ENCODERS and values.get("image_size") is None:
            return {**values, "image_size": ENCODER_SIDE}
        return values

    @model_validator(mode="after")
    def _one_kind(self) -> CIFARLT:
        names = (self.augment, *self.augment_views)
        enlarged = {name in ENCODERS for name in names}
        if len(enlarged) > 1:
            raise ValueError(
                f"augment and augment_views: all of {', '.join(ENCODERS)}, or none of them; found "
                f"{', '.join(names)}"
            )
        changed = self.image_size is not None or self.interpolation != "bilinear"
        if enlarged == {False} and changed:
            raise ValueError(
                f"image_size and interpolation belong to augment {', '.join(ENCODERS)}, found "
                f"`{self.augment}`; leave them out"
            )
        return self

    def load(self) -> Data:
        """Load the images of the frozen list from the copy at ``root``.

        Raises:
            UserError: there is no copy, or it lacks images, or its labels are not the official
                ones.
        """
        frozen = read_frozen(self.dataset)
        source = self._source(frozen)
        kept = frozen.indices(self.protocol, self.profile, self.imbalance_ratio)
        recipe = f"{self.protocol}/{self.profile}/{self.imbalance_ratio}"
        train = self._pick(source, "training", frozen, kept, recipe)
        everything = np.arange(len(frozen.test_labels))
        test = self._pick(source, "test", frozen, everything, "the balanced test set")
        counts = np.bincount(frozen.train_labels[kept], minlength=frozen.num_classes)
        large = self.augment in ENCODERS
        mean, std = STATISTICS[self.statistics]
        if large:
            mean, std = statistics(self.augment)  # type: ignore[arg-type]
        data = Data(
            info=DatasetInfo(
                name=f"{self.dataset}_lt",
                class_counts=tuple(counts.tolist()),
                class_names=frozen.class_names,
                mean=mean,
                std=std,
            ),
            train=self._split(train, frozen.train_labels[kept], mean, std, self.augment),
            test=self._split(
                test, frozen.test_labels, mean, std, self.augment if large else "none"
            ),
            val=None,
            manifest={
                "protocol": self.protocol,
                "profile": self.profile,
                "imbalance_ratio": str(self.imbalance_ratio),
                "index_sha256": list_hash(kept),
                "source": source.kind,
            },
        )
        return self.hold_out(data)

    def named_classes(self) -> tuple[str, ...]:
        """Return the name of each class [C], without reading images."""
        return read_frozen(self.dataset).class_names

    def _split(
        self, images: np.ndarray, labels: np.ndarray, mean: Channels, std: Channels, augment: Any
    ) -> MemorySplit | PixelSplit:
        """Return a split in the pipelines of small images, or enlarged in those of encoders."""
        if augment in ENCODERS:
            from ltbench.data.images import PixelSplit

            return PixelSplit(
                images,
                labels,
                augment=augment,
                image_size=self.image_size or ENCODER_SIDE,
                augment_views=self.augment_views,
                interpolation=self.interpolation,
            )
        from ltbench.data.memory import MemorySplit

        views = () if augment == "none" else self.augment_views
        return MemorySplit(
            images,
            labels,
            mean=mean,
            std=std,
            augment=augment,
            augment_views=views,  # type: ignore[arg-type]
        )

    def ready(self) -> None:
        """Check that the folder exists."""
        if not is_packed(self.root) and not (self.download and self.root):
            find_root(self.root, self._needed())

    def _source(self, frozen: Frozen) -> Source:
        parts = open_parts(self.root)
        if parts is not None:
            return shard_source(parts, self.dataset)
        if self.download and self.root:
            return torchvision_source(expanded(self.root), self.dataset, download=True)
        root = find_root(self.root, self._needed())
        return find_source(root, self.dataset, frozen.class_names)

    def _needed(self) -> str:
        return (
            f"{self.dataset}_lt needs the images of {TITLES[self.dataset]}: data.root=DIR with the "
            f"python or binary version from {WEBSITE}, or "
            "data.root=DIR data.download=true where there is a network; or pack them once with "
            f"`ltbench data prepare dataset={self.dataset} root=DIR out=SHARDS` and give "
            "data.root=SHARDS"
        )

    def _pick(
        self, source: Source, split: str, frozen: Frozen, wanted: np.ndarray, purpose: str
    ) -> np.ndarray:
        """Return the images at official positions, after checks of the whole part of the source."""
        part: Part = source.train if split == "training" else source.test
        official = (frozen.train_labels if split == "training" else frozen.test_labels).astype(int)
        here = f"the {split} images in `{source.where}` ({source.kind})"
        row = np.full(len(official), -1)
        outside = part.index[(part.index < 0) | (part.index >= len(official))]
        if len(outside):
            raise UserError(
                f"{here} carry official index {outside[0]}, beyond 0..{len(official) - 1}; "
                f"name the images by their position in {TITLES[self.dataset]}"
            )
        row[part.index] = np.arange(len(part.index))
        if np.count_nonzero(row >= 0) != len(part.index):
            twice = np.flatnonzero(np.bincount(part.index) > 1)
            raise UserError(f"{here} hold official index {twice[0]} twice; remove one of the two")
        wrong = np.flatnonzero(part.labels != official[part.index])
        if len(wrong):
            i = part.index[wrong[0]]
            raise UserError(
                f"{here} disagree with the official labels for {len(wrong)} of {len(part.index)} "
                f"images, first at index {i}: class {part.labels[wrong[0]]} there, officially "
                f"{official[i]} ({frozen.class_names[official[i]]}); use the original order"
            )
        missing = wanted[row[wanted] < 0]
        if len(missing):
            first = ", ".join(f"{i} ({frozen.class_names[official[i]]})" for i in missing[:5])
            raise UserError(
                f"{here} lack {len(missing)} of the {len(wanted)} that {purpose} needs, first "
                f"official indices {first}; give a complete copy of {TITLES[self.dataset]}"
                + (" or another imbalance_ratio, profile or protocol" * (split == "training"))
            )
        return part.read(row[wanted])


class CIFAR10LT(CIFARLT):
    """Long-tailed CIFAR-10: 10 classes, 32x32, frozen lists.

    Reference:
        Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009; Cui et al.,
        Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019, arXiv:1901.05555;
        Cao et al., LDAM-DRW, NeurIPS 2019, arXiv:1906.07413 (the subset's code).

    Departures:
        none known for protocol ``seed0``; repositories with other seeds or without shuffling use
        other images with the same counts.
    """

    dataset: ClassVar[Dataset] = "cifar10"


class CIFAR100LT(CIFARLT):
    """Long-tailed CIFAR-100: 100 classes, 32x32, frozen lists.

    Reference:
        as for ``CIFAR10LT``.

    Departures:
        as for ``CIFAR10LT``; images are normalised with CIFAR-10's statistics, as is common;
        ``statistics: cifar100`` uses those of CIFAR-100.
    """

    dataset: ClassVar[Dataset] = "cifar100"
