"""Checkpoints in torch's zip format."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any, BinaryIO

from ltbench.errors import visible
from ltbench.importing.pickles import LARGEST_PICKLE, Damaged, Interpreter
from ltbench.importing.storages import Storage, storage_id, torch_classes

MOST_ENTRIES = 100_000  # of a zip archive, each with at most about 1,000 bytes of directory
# What Python's reader of zip archives raises on damaged ones.
UNZIP = (ValueError, NotImplementedError, RuntimeError, LookupError, struct.error, EOFError)


def read_zipped(file: BinaryIO, size: int) -> tuple[Any, set[str]]:
    """Return the content of a file and the classes that were left aside.

    Args:
        file: open at any place; it has to stay open for the tensors.
        size: of the file in bytes.

    Raises:
        Damaged: it is inconsistent, too large, or not written by ``torch.save``.
    """
    _check_directory(file, size)
    try:
        archive = zipfile.ZipFile(file)
    except UNZIP as error:
        raise Damaged(str(error)) from error
    infos = {info.filename: info for info in archive.infolist()}
    roots = [name[: -len("data.pkl")] for name in infos if name.endswith("data.pkl")]
    if len(roots) != 1:
        raise Damaged("it has no data.pkl")
    root = roots[0]
    if f"{root}constants.pkl" in infos:
        raise Damaged("it is a TorchScript program; only checkpoints of torch.save are read")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
        raise Damaged("its entries are compressed, those of torch are not")
    if sum(info.file_size for info in infos.values()) > size:
        raise Damaged("its entries are larger than the file")
    if f"{root}byteorder" in infos and _entry(archive, infos[f"{root}byteorder"], 16) != b"little":
        raise Damaged("its numbers have another byte order")
    if infos[f"{root}data.pkl"].file_size > LARGEST_PICKLE:
        raise Damaged(f"its structure has more than {LARGEST_PICKLE:,} bytes")
    made: dict[str, Storage] = {}

    def persistent(pid: Any) -> Storage:
        dtype, key, count, _ = storage_id(pid)
        info = infos.get(f"{root}data/{key}")
        if info is None or info.file_size != count * dtype.itemsize:
            raise Damaged(f"storage {visible(key, 40)} is not of {count:,} numbers")
        found = made.setdefault(
            key, Storage(dtype, count, lambda: _entry(archive, info, info.file_size))
        )
        if found.dtype != dtype:
            raise Damaged(f"storage {visible(key, 40)} has two types")
        return found

    reader = Interpreter(torch_classes(), persistent)
    pickled = _entry(archive, infos[f"{root}data.pkl"], LARGEST_PICKLE)
    return reader.load(io.BytesIO(pickled)), reader.foreign


def _check_directory(file: BinaryIO, size: int) -> None:
    """Check the size of an archive's directory before it is read into memory."""
    file.seek(max(0, size - 2**16))
    tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + 22:
        raise Damaged("the end of the archive is missing")
    entries, length = struct.unpack_from("<HI", tail, place + 10)
    large = tail.rfind(b"PK\x06\x06")
    if (entries == 0xFFFF or length == 0xFFFFFFFF) and 0 <= large <= len(tail) - 56:
        entries, length = struct.unpack_from("<QQ", tail, large + 32)
    if entries > MOST_ENTRIES or length > 1000 * MOST_ENTRIES:
        raise Damaged(f"more than {MOST_ENTRIES:,} entries")
    file.seek(0)


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    try:
        with archive.open(info) as entry:
            return entry.read(most)
    except UNZIP as error:
        raise Damaged(str(error)) from error
