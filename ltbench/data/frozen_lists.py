"""Committed image lists of CIFAR-10-LT and CIFAR-100-LT."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ltbench.data.longtail import Profile, class_profile
from ltbench.errors import UserError

FOLDER = Path(__file__).parent / "frozen"
Protocol = Literal["seed0", "draw1", "draw2"]
PROTOCOLS: tuple[Protocol, ...] = ("seed0", "draw1", "draw2")
RATIOS = (10, 20, 50, 100, 200)


@dataclass(frozen=True)
class Frozen:
    """Frozen labels and lists of one data set.

    Args:
        class_names: official names, in label order [C].
        train_labels: class of every official training image, uint8 [50000].
        test_labels: class of every official test image, uint8 [10000].
        draws: for each protocol, the official indices of the exponential profile at ratio 10,
            class by class, in the order drawn; all other lists follow from them.
        hashes: SHA-256 of the sorted list by ``"protocol/profile/ratio"``.
    """

    class_names: tuple[str, ...]
    train_labels: np.ndarray
    test_labels: np.ndarray
    draws: dict[str, np.ndarray]
    hashes: dict[str, str]

    @property
    def num_classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    def indices(self, protocol: Protocol, profile: Profile, imbalance_ratio: int) -> np.ndarray:
        """Return the official training indices of a list, sorted, int64.

        Args:
            protocol: name of the draw.
            profile: ``"exp"`` or ``"step"``.
            imbalance_ratio: one of ``RATIOS``, or 1 for the whole training set.

        Raises:
            UserError: the list differs from the frozen one.
        """
        everything = np.arange(len(self.train_labels))
        if imbalance_ratio == 1:
            return everything
        n_max = len(everything) // self.num_classes
        held = class_profile(n_max, self.num_classes, RATIOS[0])
        drawn = np.split(self.draws[protocol].astype(np.int64), np.cumsum(held)[:-1])
        kept = []
        for c, count in enumerate(class_profile(n_max, self.num_classes, imbalance_ratio, profile)):
            whole = everything[self.train_labels == c]
            kept.append(whole if count == n_max else drawn[c][:count])
        found = np.sort(np.concatenate(kept))
        if list_hash(found) != self.hashes[f"{protocol}/{profile}/{imbalance_ratio}"]:
            raise UserError(
                f"the list {protocol}/{profile}/{imbalance_ratio} in `{FOLDER}` is not the "
                "published one; the installation is damaged, install ltbench again"
            )
        return found


@lru_cache(maxsize=2)
def read_frozen(dataset: Literal["cifar10", "cifar100"]) -> Frozen:
    """Read the committed lists of a data set.

    Raises:
        UserError: the files are missing or damaged.
    """
    try:
        facts = json.loads((FOLDER / f"{dataset}.json").read_text(encoding="utf-8"))
        arrays = load_file(FOLDER / f"{dataset}.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"the frozen lists of {dataset} cannot be read ({error}); install ltbench again"
        ) from None
    return Frozen(
        class_names=tuple(facts["class_names"]),
        train_labels=arrays["train_labels"],
        test_labels=arrays["test_labels"],
        draws={protocol: arrays[protocol] for protocol in PROTOCOLS},
        hashes=facts["sha256"],
    )


def list_hash(indices: np.ndarray) -> str:
    """Return the SHA-256 of a list of indices, as 8-byte little-endian integers."""
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
