"""Long-tailed subset of scikit-learn's handwritten digits: real, small, offline."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from ltbench.data.base import Data, DatasetInfo
from ltbench.data.frozen_lists import list_hash
from ltbench.data.longtail import Profile, class_profile, subsample
from ltbench.data.val_split import ValFraction
from ltbench.errors import UserError

TEST_PER_CLASS = 60
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MEAN, STD = (0.305,) * 3, (0.376,) * 3  # of all 1,797 images


class DigitsLT(ValFraction):
    """Long-tailed handwritten digits from scikit-learn: 10 classes, 8x8 enlarged, no network.

    A demonstration, not a benchmark. Sixty images of each class, always the same, are held out for
    testing; the others are subsampled to the profile.

    Reference:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning
        Repository, 1998 (its test part, as packaged by scikit-learn).

    Departures:
        training and test images are not separated by writer, since the package does not name the
        writers.
    """

    imbalance_ratio: float = Field(20, ge=1, description="largest over smallest class")
    profile: Profile = Field("exp", description="shape of the long tail")
    image_size: Literal[8, 16, 32] = Field(16, description="side of the enlarged images in pixels")
    augment: Literal["none", "standard"] = Field(
        "standard", description="none, or standard: shifts by up to one original pixel"
    )

    def named_classes(self) -> tuple[str, ...]:
        """Return the name of each class [C], without reading images."""
        return NAMES

    def load(self) -> Data:
        """Load the digits from scikit-learn.

        Raises:
            UserError: the ratio leaves a class without images.
        """
        from ltbench.data.memory import MemorySplit

        pixels, labels = _read()
        grey = np.floor(pixels * (255 / 16) + 0.5).astype(np.uint8)  # 0..16 to 0..255
        images = np.repeat(grey[..., None], 3, axis=3)

        test = subsample(labels, [TEST_PER_CLASS] * len(NAMES), seed=0)
        rest = np.setdiff1d(np.arange(len(labels)), test)
        n_max = int(np.bincount(labels[rest]).min())
        counts = class_profile(n_max, len(NAMES), self.imbalance_ratio, self.profile)
        if min(counts) < 1:
            raise UserError(
                f"data.imbalance_ratio must be at most {n_max}, the images of the largest class, "
                f"found {self.imbalance_ratio:g}; lower it"
            )
        train = rest[subsample(labels[rest], counts, seed=1)]

        def split(index: np.ndarray, augment: Literal["none", "standard"]) -> MemorySplit:
            return MemorySplit(
                images[index],
                labels[index],
                mean=MEAN,
                std=STD,
                augment=augment,
                pad=self.image_size // 8,
                flip=False,
                image_size=self.image_size,
            )

        data = Data(
            info=DatasetInfo("digits_lt", counts, NAMES, MEAN, STD),
            train=split(train, self.augment),
            test=split(test, "none"),
            val=None,
            manifest={
                "profile": self.profile,
                "imbalance_ratio": f"{self.imbalance_ratio:g}",
                "index_sha256": list_hash(train),
                "test_index_sha256": list_hash(test),
                "source": "scikit-learn",
            },
        )
        return self.hold_out(data)


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Return pixels [N, 8, 8] from 0 to 16, and labels, as scikit-learn's ``load_digits`` does.

    The library's file is read directly, since importing the library takes longer than a short run.
    """
    found = importlib.util.find_spec("sklearn")
    folder = Path(found.origin).parent if found and found.origin else Path()
    file = folder / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        with gzip.open(file, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, delimiter=",")
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)

    from sklearn.datasets import load_digits  # for releases with another layout

    digits = load_digits()
    return digits.images, digits.target.astype(np.int64)
