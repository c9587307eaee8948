from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_MIX1, _MIX2, _STEP = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15


def derive(seed: int, *purpose: str | int) -> int:
    """Derive a 63-bit seed for one purpose, e.g. ``derive(seed, "order", epoch)``.

    All randomness of a run is a function of (seed, purpose, counters): no generator state is
    saved, and a resumed run repeats the uninterrupted one.
    """
    text = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


class EpochKey(int):
    """Key of an epoch's random numbers that also says which epoch it is.

    It is a number like any other key, and everything that depends on the epoch is thus a function
    of the key, in loader processes and after a resume too.

    Args:
        key: the number.
        epoch: 0-based epoch of the stage.
        epochs: number of epochs of the stage.
    """

    epoch: int
    epochs: int

    def __new__(cls, key: int, epoch: int, epochs: int) -> EpochKey:
        """Return the key."""
        made = super().__new__(cls, key)
        made.epoch, made.epochs = epoch, epochs
        return made

    def __getnewargs__(self) -> tuple[int, int, int]:  # type: ignore[override]
        return int(self), self.epoch, self.epochs


def epoch_of(key: int) -> tuple[int, int]:
    """Return the 0-based epoch of a key and the number of epochs; of a plain number (0, 2)."""
    return (key.epoch, key.epochs) if isinstance(key, EpochKey) else (0, 2)


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))


def keyed_bits(key: int, counters: np.ndarray) -> np.ndarray:
    """Return 64 random bits per counter: the splitmix64 stream of ``key`` at ``counters``.

    Unlike NumPy's Generator streams, the values are fixed by arithmetic and cannot change
    between library versions.

    Args:
        key: key of the stream, a non-negative integer below 2**63.
        counters: non-negative integers of any shape.

    Returns:
        uint64 array of the same shape.
    """
    with np.errstate(over="ignore"):
        z = _finish(np.uint64(key) + np.uint64(_STEP))  # decorrelates neighbouring keys
        return _finish(z + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(_STEP))


def keyed_uniform(key: int, counters: np.ndarray) -> np.ndarray:
    """Return one float64 in [0, 1) per counter, from ``keyed_bits``."""
    return (keyed_bits(key, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def keyed_uniform_on_device(key: int, counters: Tensor) -> Tensor:
    """Return one float32 in [0, 1) per counter: the upper 24 of ``keyed_bits``.

    Args:
        key: key of the stream, a non-negative integer below 2**63.
        counters: non-negative int64; their device computes the numbers.
    """
    with np.errstate(over="ignore"):
        start = int(_finish(np.uint64(key) + np.uint64(_STEP))) + _STEP
    z = counters * _signed(_STEP) + _signed(start)
    z = (z ^ _shifted(z, 30)) * _signed(_MIX1)
    z = (z ^ _shifted(z, 27)) * _signed(_MIX2)
    z = z ^ _shifted(z, 31)
    return _shifted(z, 40).float() * 2.0**-24


def keyed_permutation(key: int, n: int) -> np.ndarray:
    """Return a permutation of ``range(n)`` as int64: the order of ``n`` keyed random numbers."""
    return np.argsort(keyed_bits(key, np.arange(n)), kind="stable").astype(np.int64)


def _finish(z: np.ndarray | np.uint64) -> np.ndarray:
    z = np.asarray(z)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX2)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _signed(number: int) -> int:
    """Return the int64 with the lower 64 bits of a number."""
    return (number + 2**63) % 2**64 - 2**63


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Return int64 numbers shifted to the right as if they had no sign."""
    shifted: Tensor = (z >> bits) & (2 ** (64 - bits) - 1)
    return shifted
