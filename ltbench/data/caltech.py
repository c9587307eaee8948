"""Caltech-101 with its natural long tail, or a thinner one."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from ltbench.data.base import Data
from ltbench.data.folder import Folder
from ltbench.data.longtail import class_profile, subsample
from ltbench.errors import UserError
from ltbench.seeding import derive

CLASSES = 101
CLUTTER = "BACKGROUND_Google"


class Caltech101LT(Folder):
    """Caltech-101: 101 classes of photographs and drawings, naturally long-tailed.

    The folder is that of the original archive, ``<class>/``, without the clutter class
    ``BACKGROUND_Google``, or has ``train/<class>/`` and ``test/<class>/``. The test images are the
    same number for each class, as in ``folder``.

    Reference:
        Fei-Fei et al., Learning Generative Visual Models from Few Training Examples, CVPR
        Workshops 2004.

    Departures:
        not a benchmark of the long-tailed literature. The classes `Faces` and `Faces_easy` show
        the same photographs in two framings; both are kept.
    """

    registered: ClassVar[str] = "caltech101_lt"

    image_size: int = Field(128, ge=8, le=2048, description="side of the network's input in pixels")
    imbalance_ratio: float | None = Field(
        None,
        ge=1,
        description="thin the tail to this largest/smallest class ratio: the class of rank r keeps "
        "at most the r-th number of the profile; default: the natural tail, about 25",
    )

    @property
    def needed(self) -> str:
        """Description of what the root must hold, for messages."""
        return (
            f"{super().needed}: the images of Caltech-101 (https://data.caltech.edu, "
            "101_ObjectCategories), which are not downloaded"
        )

    def load(self) -> Data:
        """Find the images, which are read on demand.

        Raises:
            UserError: the root is missing or empty, or has other classes.
        """
        data = super().load()
        if data.info.num_classes != CLASSES:
            clutter = CLUTTER in data.info.class_names
            hint = f"move `{CLUTTER}` elsewhere" if clutter else "use data=folder for other images"
            raise UserError(
                f"Caltech-101 has {CLASSES} classes without `{CLUTTER}`, found "
                f"{data.info.num_classes} in `{self.root}`; {hint}"
            )
        return data

    def thin(self, labels: np.ndarray) -> np.ndarray:
        """Return the sorted indices to keep [M]: all, or those of a thinned tail.

        Raises:
            UserError: the smallest class would have no image.
        """
        if self.imbalance_ratio is None:
            return np.arange(len(labels))
        available = np.bincount(labels)
        largest, ratio = int(available.max()), self.imbalance_ratio
        most = np.zeros_like(available)
        by_size = np.argsort(-available, kind="stable")
        most[by_size] = class_profile(largest, len(available), ratio, self.profile)
        counts = np.minimum(available, most)
        if counts.min() < 1:
            raise UserError(
                f"data.imbalance_ratio={ratio:g} leaves a class without a training image; give at "
                f"most {largest}"
            )
        return subsample(labels, counts.tolist(), derive(self.split_seed, "longtail"))
