"""Tensors, numbers and text of a released checkpoint; nothing in it is executed."""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ltbench.digest import file_sha256, open_regular
from ltbench.errors import UserError, visible
from ltbench.importing import LARGEST
from ltbench.importing.legacy import read_legacy
from ltbench.importing.pickles import Damaged, Foreign
from ltbench.importing.storages import Storage, Stored
from ltbench.importing.zipped import read_zipped

MOST_TENSORS = 20_000
NESTED = 6  # levels of mappings that may hold tensors
TAR = 257, b"ustar"  # place and text in the head of a tar archive


@dataclass(frozen=True)
class Checkpoint:
    """Content of a released file.

    Args:
        path: of the file.
        content: its mappings, lists, numbers, text and ``Stored`` tensors; objects of other classes
            are ``Foreign``.
        sha256: of the file as released.
        bytes: size of the file.
        foreign: classes that were left aside.
    """

    path: Path
    content: Any
    sha256: str
    bytes: int
    foreign: tuple[str, ...] = ()


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the content of a checkpoint of torch, of either format, or of a safetensors file.

    Sizes are checked before tensors are read, and tensors are read when they are wanted.

    Raises:
        UserError: it is missing, damaged, too large, or of another format.
    """
    try:
        file = os.fdopen(open_regular(path), "rb")
        size = os.fstat(file.fileno()).st_size
        try:
            content, foreign = _content(file, path, size)
        except BaseException:
            file.close()  # else it stays open for the tensors
            raise
        others = sorted(name for name in foreign if not re.fullmatch(r"torch\.\w+Storage", name))
        return Checkpoint(path, content, file_sha256(path), size, tuple(others))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (Damaged, zipfile.BadZipFile, EOFError, MemoryError, RecursionError) as error:
        said = visible(str(error).partition("\n")[0], 160) or type(error).__name__
        raise UserError(
            f"{path} is no intact checkpoint of torch ({said}); download it again"
        ) from error


def _content(file: BinaryIO, path: Path, size: int) -> tuple[Any, set[str]]:
    """Return the content of a file and the classes that were left aside."""
    if size > LARGEST:
        raise Damaged(f"{size:,} bytes; at most {LARGEST:,} are read")
    head = file.read(512)
    if path.name.endswith(".safetensors"):
        content, foreign = _safetensors(path), set[str]()
    elif head.startswith(b"PK"):
        content, foreign = read_zipped(file, size)
    elif head[TAR[0] : TAR[0] + len(TAR[1])] == TAR[1]:
        raise Damaged("it is a tar archive; unpack it and give the file in it")
    else:
        content, foreign = read_legacy(file, size)
    if not sum(1 for _ in tensors_of(content)):
        raise Damaged("it holds no named tensors")
    return content, foreign


def tensors_of(node: Any, prefix: str = "", depth: int = NESTED) -> Iterator[tuple[str, Stored]]:
    """Yield the tensors of nested mappings, and of pickled modules, by names joined with dots.

    Raises:
        Damaged: there are too many.
    """
    budget = [MOST_TENSORS]

    def walk(node: Any, prefix: str, depth: int) -> Iterator[tuple[str, Stored]]:
        for key, value in entries(node):
            budget[0] -= 1
            if budget[0] < 0:
                raise Damaged(f"more than {MOST_TENSORS:,} named values")
            if isinstance(value, Stored):
                yield f"{prefix}{key}", value
            elif depth > 1:
                yield from walk(value, f"{prefix}{key}.", depth - 1)

    yield from walk(node, prefix, depth)


def entries(node: Any) -> Iterator[tuple[str, Any]]:
    """Yield names and values of a mapping, or of the parts of a pickled ``nn.Module``."""
    if isinstance(node, Foreign):
        parts = [node.state.get(kind) for kind in ("_parameters", "_buffers", "_modules")]
        for part in parts:
            yield from entries(part)
    elif isinstance(node, Mapping):
        yield from ((key, value) for key, value in node.items() if isinstance(key, str))


def loaded(tensors: Mapping[str, Stored], path: Path) -> dict[str, Tensor]:
    """Return the content of tensors.

    Args:
        tensors: by name.
        path: of their file.

    Raises:
        UserError: the file is damaged, or a value is not finite.
    """
    total = sum(t.numbers * t.storage.dtype.itemsize for t in tensors.values())
    if total > 2 * LARGEST:
        raise UserError(f"{path} unfolds to {total:,} bytes; at most {2 * LARGEST:,} are read")
    found = {}
    for name, stored in tensors.items():
        try:
            tensor = stored.load()
        except (Damaged, OSError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(f"{path} is damaged at `{visible(name)}` ({error})") from error
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: `{visible(name)}` has values that are not finite")
        found[name] = tensor
    return found


def _safetensors(path: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file, read at once."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            return {name: _held(file.get_tensor(name)) for name in names}
    except SafetensorError as error:
        raise Damaged(str(error)) from error


def _held(tensor: Tensor) -> Stored:
    storage = Storage(tensor.dtype, tensor.numel(), lambda: b"", tensor.contiguous().flatten())
    return Stored(storage, tuple(tensor.shape), _strides(tuple(tensor.shape)))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))
