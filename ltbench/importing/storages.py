"""Storages and tensors of a pickled checkpoint, checked before their numbers are read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltbench.errors import visible
from ltbench.importing.pickles import Damaged, Foreign, Known, plain_classes

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(eq=False)
class Storage:
    """Numbers of a file, read when they are wanted.

    Args:
        dtype: of the numbers.
        count: how many there are.
        read: returns their bytes.
    """

    dtype: torch.dtype
    count: int
    read: Callable[[], bytes]
    _flat: Tensor | None = None

    def flat(self) -> Tensor:
        """Return the numbers [count].

        Raises:
            Damaged: there are fewer bytes than that.
        """
        if self._flat is None:
            raw = self.read()
            if len(raw) != self.count * self.dtype.itemsize:
                raise Damaged(f"{len(raw):,} bytes for {self.count:,} numbers")
            flat = torch.empty(0, dtype=self.dtype)
            self._flat = torch.frombuffer(bytearray(raw), dtype=self.dtype) if raw else flat
        return self._flat


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of a file: its place in a storage, checked, and its content on demand.

    Args:
        storage: the numbers.
        shape: sizes of the dimensions.
        stride: steps of the dimensions in the storage.
        offset: place of the first number.
    """

    storage: Storage
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    def __post_init__(self) -> None:
        """Check that the tensor lies inside its storage and repeats no number.

        Raises:
            Damaged: it does not.
        """
        sizes = (*self.shape, *self.stride, self.offset)
        plain = all(type(n) is int and 0 <= n < 2**62 for n in sizes)
        if not plain or len(self.shape) > 16 or len(self.shape) != len(self.stride):
            raise Damaged("a tensor without a shape")
        steps = zip(self.shape, self.stride, strict=True)
        last = self.offset + sum((n - 1) * step for n, step in steps)
        if self.numbers and last >= self.storage.count:
            raise Damaged(f"a tensor of {self.numbers:,} numbers beyond its {self.storage.count:,}")
        if self.numbers > self.storage.count:
            raise Damaged(f"{self.storage.count:,} numbers as a tensor of {self.numbers:,}")

    @property
    def numbers(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def load(self) -> Tensor:
        """Return the tensor, contiguous.

        Raises:
            Damaged: the file has fewer bytes than that.
        """
        flat = self.storage.flat()
        return torch.as_strided(flat, self.shape, self.stride, self.offset).contiguous()


def storage_id(pid: Any) -> tuple[torch.dtype, str, int, tuple[Any, int, int] | None]:
    """Return type, key, size and view of a storage from its persistent id."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
        raise Damaged("a reference to something other than a storage")
    kind, key, count = pid[1], pid[2], pid[4]
    view = pid[5] if len(pid) == 6 else None
    name = kind.name.removeprefix("torch.") if isinstance(kind, Foreign) else ""
    if name not in DTYPES or not isinstance(key, str) or type(count) is not int or count < 0:
        raise Damaged(f"a storage of type {visible(name, 40) or 'unknown'}")
    if view is not None and not (
        isinstance(view, tuple) and len(view) == 3 and all(type(n) is int for n in view[1:])
    ):
        raise Damaged("a part of a storage without a place")
    return DTYPES[name], key, count, view


def torch_classes() -> dict[str, Known]:
    """Return the stand-ins for torch's functions, containers and numpy numbers."""
    found = plain_classes()
    found["torch._utils._rebuild_tensor"] = Known(_tensor)
    found["torch._utils._rebuild_tensor_v2"] = Known(_tensor)
    found["torch._utils._rebuild_parameter"] = Known(_same)
    found["torch._utils._rebuild_parameter_with_state"] = Known(_same)
    found["torch.nn.parameter.Parameter"] = Known(_same)
    found["torch.nn.parameter.Buffer"] = Known(_same)
    return found


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Stored:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple | list):
        raise Damaged("a tensor without numbers")
    if not isinstance(stride, tuple | list):
        raise Damaged("a tensor without strides")
    return Stored(storage, tuple(shape), tuple(stride), offset)


def _same(tensor: Any = None, *_: Any) -> Any:
    return tensor
