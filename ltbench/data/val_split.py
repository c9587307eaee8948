"""Validation images held out from a training list: stratified, frozen, recorded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from ltbench.config.schema import ADDED
from ltbench.data.base import Data, DatasetConfig
from ltbench.data.frozen_lists import list_hash
from ltbench.errors import UserError
from ltbench.seeding import derive, keyed_permutation

if TYPE_CHECKING:
    from ltbench.data.base import Split

SEED = 0  # of the draws; the same for every data set and every run


def held_out(count: int, fraction: float) -> int:
    """Return how many of a class's images are held out: its share, but one at least stays.

    Args:
        count: training images of the class, at least 1.
        fraction: share of them, in (0, 1).
    """
    return min(max(1, int(fraction * count + 0.5)), count - 1)


def val_indices(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Return the training images that are held out for validation.

    A class of n images gives up round(fraction * n) of them, halves rounded up, but at least one
    and at most n - 1; so a class of one image gives none. Which ones is a function of the labels
    alone: the first of a keyed permutation of the class's images in their order in the list, with
    a key derived from ``SEED`` and the class.

    Args:
        labels: class of each training image, int64 [N].
        fraction: share of the images of each class, in [0, 1).

    Returns:
        Sorted indices, int64 [M].
    """
    held = []
    for label in np.unique(labels).tolist() if fraction else ():
        rows = np.flatnonzero(labels == label)
        count = held_out(len(rows), fraction)
        order = keyed_permutation(derive(SEED, "validation", label), len(rows))
        held.append(rows[order[:count]])
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *held]))


class ValFraction(DatasetConfig):
    """Option of data sets whose training images can be divided."""

    val_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training images of each class that is held out for validation "
        "and not trained on, at least one of every class of two or more; always the same images",
        json_schema_extra=ADDED,
    )

    def hold_out(self, data: Data) -> Data:
        """Return the data with ``val_fraction`` of the training images as validation images.

        Raises:
            UserError: there are validation images already, nothing can be held out, or the images
                cannot be divided.
        """
        if not self.val_fraction:
            return data
        given = f"data.val_fraction={self.val_fraction:g}"
        if data.val is not None:
            raise UserError(
                f"{given}, but {data.info.name} has {len(data.val):,} validation images of its "
                "own; leave data.val_fraction out, or turn those off with data.val=null where they "
                "come from a list"
            )
        labels = data.train.labels
        held = val_indices(labels, self.val_fraction)
        if not len(held):
            raise UserError(
                f"{given}: every class of {data.info.name} has one training image, which stays in "
                "training; leave data.val_fraction out"
            )
        train = np.setdiff1d(np.arange(len(labels)), held)
        counts = np.bincount(labels[train], minlength=data.info.num_classes)
        return replace(
            data,
            info=replace(data.info, class_counts=tuple(counts.tolist())),
            train=_subset(data.train, train, data),
            val=_subset(data.train, held, data),
            manifest={
                **data.manifest,
                "val_fraction": f"{self.val_fraction:g}",
                "val_images": str(len(held)),
                "val_index_sha256": list_hash(held),
            },
        )


def _subset(split: Any, rows: np.ndarray, data: Data) -> Split:
    if not hasattr(split, "subset"):
        raise UserError(
            f"data.val_fraction: the images of {data.info.name} cannot be divided; its split "
            f"`{type(split).__name__}` needs a method `subset(indices)`"
        )
    part: Split = split.subset(rows)
    return part
