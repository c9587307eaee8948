"""Bounds on the contents of shard files, checked before memory is allocated for them."""

from __future__ import annotations

import errno
import os
import re
import zlib
from pathlib import Path
from typing import Any

from ltbench.digest import open_regular
from ltbench.errors import visible

MANIFEST_BYTES = 64 * 2**20
MOST_IMAGES = 100_000_000  # of a split
MOST_CLASSES = 1_000_000  # a larger label is a mistake
MOST_BYTES = 2**50  # of a shard
KEY_BYTES = 4096  # of an image's path, line end included
SPLITS = ("train", "val", "test")

_HEADER = 4096  # bytes beside the rows of index.npy, or that zlib may add
_DATASET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_SHARD = re.compile(r"[^/\\:.][^/\\:]{0,254}")


def index_bytes(samples: int) -> int:
    """Return the largest size of the ``index.npy`` of a split of N images: 24 bytes an image."""
    return 24 * samples + _HEADER


def keys_bytes(samples: int) -> int:
    """Return the largest size of the keys of a split of N images, compressed or not."""
    return KEY_BYTES * samples + _HEADER


def read_within(path: Path, limit: int) -> bytes:
    """Return the content of a file of at most ``limit`` bytes.

    Raises:
        OSError: it cannot be read, is larger, or is no regular file.
    """
    with open(open_regular(path), "rb") as file:  # noqa: PTH123 (a descriptor)
        size = os.fstat(file.fileno()).st_size
        data = file.read(limit + 1) if size <= limit else b""
    if size > limit or len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than the {limit:,} bytes that it can need", str(path))
    return data


def unpack(data: bytes, limit: int) -> bytes:
    """Return the content of a zlib stream, at most ``limit`` bytes.

    Raises:
        ValueError: it is no zlib stream, cut, followed by other bytes, or holds more.
    """
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(content) > limit:
        raise ValueError(f"it unpacks to more than {limit:,} bytes")
    if not stream.eof or stream.unused_data:
        raise ValueError("it is cut, or other bytes follow")
    return content


def is_dataset_name(name: Any) -> bool:
    """Return whether a text can be the name of a data set, which records and files carry."""
    return isinstance(name, str) and _DATASET.fullmatch(name) is not None


def is_shard_name(name: Any) -> bool:
    """Return whether a text is a plain, printable file name that does not begin with a dot."""
    return isinstance(name, str) and _SHARD.fullmatch(name) is not None and name.isprintable()


def shown(value: Any) -> str:
    """Return a value from a file for a message: short, without control characters."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__}"
    try:
        return visible(str(value), 80)
    except ValueError:  # an integer of more digits than Python writes
        return "a number too large"
