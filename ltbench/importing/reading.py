"""Tensors, numbers and text of a released checkpoint; nothing in it is executed."""

from __future__ import annotations

import io
import math
import os
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ltbench.digest import file_sha256, open_regular
from ltbench.errors import UserError, visible
from ltbench.importing import LARGEST
from ltbench.importing.pickles import Damaged, Foreign, Interpreter, Known, plain_classes

LARGEST_PICKLE = 64 * 2**20  # bytes of the structure of a checkpoint, without its tensors
MOST_TENSORS = 20_000
MOST_ENTRIES = 100_000  # of a zip archive, each with at most about 1,000 bytes of directory
NESTED = 6  # levels of mappings that may hold tensors
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's format before 1.6
# What Python's reader of zip archives raises on damaged ones.
UNZIP = (ValueError, NotImplementedError, RuntimeError, LookupError, struct.error, EOFError)
TAR = 257, b"ustar"  # place and text in the head of a tar archive
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
        content, foreign = _zipped(file, size)
    elif head[TAR[0] : TAR[0] + len(TAR[1])] == TAR[1]:
        raise Damaged("it is a tar archive; unpack it and give the file in it")
    else:
        content, foreign = _legacy(file, size)
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


def _zipped(file: BinaryIO, size: int) -> tuple[Any, set[str]]:
    """Return the content of torch's zip format."""
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
        dtype, key, count, _ = _storage_id(pid)
        info = infos.get(f"{root}data/{key}")
        if info is None or info.file_size != count * dtype.itemsize:
            raise Damaged(f"storage {visible(key, 40)} is not of {count:,} numbers")
        found = made.setdefault(
            key, Storage(dtype, count, lambda: _entry(archive, info, info.file_size))
        )
        if found.dtype != dtype:
            raise Damaged(f"storage {visible(key, 40)} has two types")
        return found

    reader = Interpreter(_classes(), persistent)
    pickled = _entry(archive, infos[f"{root}data.pkl"], LARGEST_PICKLE)
    return reader.load(io.BytesIO(pickled)), reader.foreign


def _check_directory(file: BinaryIO, size: int) -> None:
    """Check the size of an archive's directory before it is read into memory."""
    file.seek(max(0, size - 2**16))
    tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + 22:
        raise Damaged("the end of the archive is missing")
    entries_, length = struct.unpack_from("<HI", tail, place + 10)
    large = tail.rfind(b"PK\x06\x06")
    if (entries_ == 0xFFFF or length == 0xFFFFFFFF) and 0 <= large <= len(tail) - 56:
        entries_, length = struct.unpack_from("<QQ", tail, large + 32)
    if entries_ > MOST_ENTRIES or length > 1000 * MOST_ENTRIES:
        raise Damaged(f"more than {MOST_ENTRIES:,} entries")
    file.seek(0)


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    try:
        with archive.open(info) as entry:
            return entry.read(most)
    except UNZIP as error:
        raise Damaged(str(error)) from error


def _legacy(file: BinaryIO, size: int) -> tuple[Any, set[str]]:
    """Return the content of torch's format before 1.6: pickles, then storages one by one."""
    file.seek(0)
    bounded: Any = _Bounded(file, LARGEST_PICKLE)
    made: dict[str, Storage] = {}

    def persistent(pid: Any) -> Storage:
        dtype, key, count, view = _storage_id(pid)
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

    reader = Interpreter(_classes(), persistent)
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


def _storage_id(pid: Any) -> tuple[torch.dtype, str, int, tuple[Any, int, int] | None]:
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


def _classes() -> dict[str, Known]:
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
