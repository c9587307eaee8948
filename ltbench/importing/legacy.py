"""Checkpoints in torch's format before 1.6: pickles, then storages one by one."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from ltbench.errors import visible
from ltbench.importing.pickles import LARGEST_PICKLE, Damaged, Interpreter
from ltbench.importing.storages import Storage, storage_id, torch_classes

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format


def read_legacy(file: BinaryIO, size: int) -> tuple[Any, set[str]]:
    """Return the content of a file and the classes that were left aside.

    Args:
        file: open at any place; it has to stay open for the tensors.
        size: of the file in bytes.

    Raises:
        Damaged: it is inconsistent, too large, or not written by ``torch.save``.
    """
    file.seek(0)
    bounded: Any = _Bounded(file, LARGEST_PICKLE)
    made: dict[str, Storage] = {}

    def persistent(pid: Any) -> Storage:
        dtype, key, count, view = storage_id(pid)
        if count * dtype.itemsize > size:
            raise Damaged(f"storage {visible(key, 40)} is larger than the file")
        base = made.setdefault(key, Storage(dtype, count, lambda: b""))
        if base.dtype != dtype or base.count != count:
            raise Damaged(f"storage {visible(key, 40)} has two types or sizes")
        if view is None:
            return base
        _, start, length = view
        if min(start, length) < 0 or start + length > count:
            raise Damaged("a part of a storage beyond its end")
        width = dtype.itemsize
        return Storage(dtype, length, lambda: base.read()[start * width : (start + length) * width])

    reader = Interpreter(torch_classes(), persistent)
    try:
        magic = reader.load(bounded)
    except Damaged as error:
        raise Damaged(f"expected a zip archive or a pickle, found neither: {error}") from error
    if magic != MAGIC:
        raise Damaged("a pickle that torch did not write")
    if reader.load(bounded) != PROTOCOL:
        raise Damaged("another version of the format")
    system = reader.load(bounded)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise Damaged("its numbers have another byte order")
    content, keys = reader.load(bounded), reader.load(bounded)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(made):
        raise Damaged("its list of storages is not that of its tensors")
    at = file.tell()
    for key in keys:
        storage = made[key]
        file.seek(at)
        (count,) = struct.unpack("<q", _exactly(file, 8))
        if count != storage.count:
            raise Damaged(f"storage {visible(key, 40)} is not of {storage.count:,} numbers")
        length = count * storage.dtype.itemsize
        storage.read = _part(file, at + 8, length)
        at += 8 + length
    if at > size:
        raise Damaged("it ends too early")
    return content, reader.foreign


def _part(file: BinaryIO, start: int, length: int) -> Callable[[], bytes]:
    def read() -> bytes:
        file.seek(start)
        return _exactly(file, length)

    return read


def _exactly(file: BinaryIO, length: int) -> bytes:
    raw = file.read(length)
    if len(raw) != length:
        raise Damaged("it ends too early")
    return raw


class _Bounded:
    """Beginning of a file for a reader of pickles, which must not read more than some bytes."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file, self._most = file, most

    def read(self, n: int = -1) -> bytes:
        """Return the next bytes."""
        return self._counted(self._file.read(self._least(n)))

    def readline(self, n: int = -1) -> bytes:
        """Return the next line."""
        return self._counted(self._file.readline(self._least(n)))

    def tell(self) -> int:
        """Return the place in the file."""
        return self._file.tell()

    def _least(self, n: int) -> int:
        return self._most + 1 if n < 0 else min(n, self._most + 1)

    def _counted(self, data: bytes) -> bytes:
        self._most -= len(data)
        if self._most < 0:
            raise Damaged(f"its structure has more than {LARGEST_PICKLE:,} bytes")
        return data
