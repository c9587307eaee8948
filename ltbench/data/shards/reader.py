"""Random access to images in shards."""

from __future__ import annotations

import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from isal.isal_zlib import crc32 as crc32_of

from ltbench.data.shards import format
from ltbench.data.shards.format import (
    INDEX,
    Shard,
    content_of,
    fingerprint_of,
    read_index,
    read_keys,
    read_manifest,
)
from ltbench.data.shards.manifest import index_problems
from ltbench.digest import open_regular
from ltbench.errors import UserError

if TYPE_CHECKING:
    from ltbench.data.shards.remote import RemoteSplit

TRIES = 3  # of a read that fails or comes back short
PAUSE = 0.1  # seconds before the second try, twice that before the third
OPEN_FILES = 128  # per process and source; far below the usual limit of 1024
_AT_ONCE = getattr(os, "RWF_NOWAIT", 0)  # fail rather than wait for the disk
_PAGE = 4096
_Job = tuple[int, int, int, memoryview, int]  # place in the batch, shard, offset, bytes, crc32


class ShardSource:
    """The images of a sharded split; implements ``ltbench.data.base.Source``.

    Each process opens the shards it needs by itself, so a source may be used after a fork and be
    sent to a new process. One source serves one thread.

    Args:
        folder: of the split, or a split that ``open_remote`` found.
        rows: images of the index to use, in this order, int64 [N]; ``None`` is all.

    Attributes:
        manifest: of the whole split.
        index: of the whole split, ``ROW`` records.
        rows: as given, or ``None`` if they are the whole split in its order.
        labels: class of each image, int64 [N].
        class_counts: images of each class among them, int64 [C].
        folder: of the index, and of the shards as far as they are on this machine.
        remote: where the others come from, or ``None``.

    Raises:
        UserError: the folder holds no finished shards, or its index is damaged.
    """

    def __init__(self, folder: Path | RemoteSplit, rows: np.ndarray | None = None) -> None:
        self.remote = None if isinstance(folder, Path) else folder
        self.folder = folder if isinstance(folder, Path) else folder.folder
        self.manifest = read_manifest(self.folder) if self.remote is None else self.remote.manifest
        self.rows = None if rows is None else np.array(rows, dtype=np.int64)
        if rows is not None and np.array_equal(rows, np.arange(self.manifest.samples)):
            self.rows = None
        self._open()

    def _open(self) -> None:
        self.index = np.asarray(read_index(self.folder, self.manifest))
        shards = self.manifest.shards
        problem = next(index_problems(self.manifest, self.index), "")
        if problem:
            raise UserError(
                f"`{self.folder / INDEX}` and the manifest beside it disagree: {problem}; copy the "
                "folder again, or run `ltbench data prepare` again"
            )
        labels = self.index["label"].astype(np.int64)
        self.labels = labels if self.rows is None else labels[self.rows]
        self.class_counts = np.bincount(self.labels, minlength=self.manifest.num_classes)
        self._files = _Files(self.folder, self.remote, shards)
        self._buffer = np.empty(0, dtype=np.uint8)
        self._keys: np.ndarray | None = None  # one block; read when a message needs a name

    def __getstate__(self) -> dict[str, Any]:
        kept = ("folder", "remote", "manifest", "rows")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        """Return the number of images N."""
        return len(self.labels)

    def subset(self, rows: np.ndarray) -> ShardSource:
        """Return a source of some of these images, int64 [M], in this order."""
        return ShardSource(
            self.remote or self.folder, rows if self.rows is None else self.rows[rows]
        )

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Return the bytes of some images, uint8 [n] each; they change at the next call.

        At the first image that is not in the page cache, the whole batch is announced to the
        system before any wait.

        Args:
            indices: which images, int64 [B].

        Raises:
            UserError: an image cannot be read, or its bytes are not those that were packed.
        """
        indices = np.asarray(indices)
        wanted = self.index.take(indices if self.rows is None else self.rows[indices])
        order = np.lexsort((wanted["offset"], wanted["shard"]))
        wanted = wanted.take(order)  # several times as fast as wanted[order]
        ends = np.cumsum(wanted["size"], dtype=np.int64)
        columns = [wanted[name].tolist() for name in ("shard", "offset", "crc32")]
        descriptors = self._files.open(columns[0])
        if len(order) and ends[-1] > len(self._buffer):
            self._buffer = self._room(int(ends[-1]))
        buffer, room = self._buffer, self._buffer.data
        images = [buffer] * len(order)
        rest: list[_Job] = []
        # This loop is what reading small images costs, so it calls nothing else until it must.
        at, flags, preadv, checksum = 0, _AT_ONCE, os.preadv, crc32_of
        for place, end, shard, offset, crc32 in zip(
            order.tolist(), ends.tolist(), *columns, strict=True
        ):
            into, images[place] = room[at:end], buffer[at:end]
            size, at = end - at, end
            try:
                if (
                    preadv(descriptors[shard], [into], offset, flags) == size
                    and checksum(into) == crc32
                ):
                    continue
            except OSError:
                pass
            if flags:
                flags = 0
                self._files.announce(wanted)
            rest.append((place, shard, offset, into, crc32))
        for place, shard, offset, into, crc32 in rest:
            if not self._files.fill(shard, offset, into, crc32):
                raise self._damaged(int(indices[place]), shard, offset, len(into))
        return images

    def prefetch(self, order: np.ndarray) -> None:
        """Begin to fetch remote shards in the order of their first use; nothing for local ones.

        Args:
            order: indices as they will be read, int64 [n].
        """
        if self.remote is None or not len(order):
            return
        rows = np.asarray(order) if self.rows is None else self.rows[order]
        shards, first = np.unique(self.index["shard"][rows], return_index=True)
        self.remote.prefetch(shards[np.argsort(first)].tolist())

    def name(self, index: int) -> str:
        """Return the name of an image in messages: its key and its shard."""
        row = int(index if self.rows is None else self.rows[index])
        return f"{self._key(row)} ({self.manifest.shards[self.index[row]['shard']].name})"

    def fingerprint(self, labels: np.ndarray) -> str:
        """Return ``content_of`` the images, as a folder of the same files has it.

        Args:
            labels: class of each image [N].
        """
        chosen = self.index if self.rows is None else self.index[self.rows]
        small = int(chosen["size"].sum(dtype=np.int64)) <= format.CONTENT_LIMIT
        paths: Sequence[str] = ()
        if not small:  # only then are names part of it
            paths = self.keys()
        crc32 = chosen["crc32"] if small else None
        found = content_of(paths, np.asarray(labels), chosen["size"], crc32)
        whole = self.rows is None and np.array_equal(labels, self.labels)
        if whole and found != self.manifest.content:
            raise UserError(
                f"the manifest in `{self.folder}` says {self.manifest.content[:20]}... of the "
                f"images, its index {found[:20]}...: one of them is of other shards; copy the "
                "folder again, or run `ltbench data prepare` again"
            )
        return found

    def keys(self) -> list[str]:
        """Return the path of each image as its list has it [N].

        Raises:
            UserError: the keys are missing or damaged.
        """
        keys = read_keys(self.folder, self.manifest)
        return keys if self.rows is None else [keys[row] for row in self.rows.tolist()]

    def verify(self) -> None:
        """Check the manifest's fingerprint, which records name, against index and keys.

        Raises:
            UserError: they differ, or the keys are damaged.
        """
        keys = read_keys(self.folder, self.manifest)
        found = fingerprint_of(keys, self.index["label"], self.index["crc32"])
        if found != self.manifest.fingerprint:
            raise UserError(
                f"the manifest in `{self.folder}` has fingerprint "
                f"{self.manifest.fingerprint[:12]}..., its index and keys {found[:12]}...: one of "
                "them is of other shards; copy the folder again, or run `ltbench data prepare` "
                "again"
            )

    def _room(self, size: int) -> np.ndarray:
        try:
            return np.empty(size, dtype=np.uint8)
        except MemoryError as error:
            raise UserError(
                f"there is no memory for a batch of {size:,} bytes of images in `{self.folder}`; "
                "use a smaller batch, or check the folder with `ltbench data check`"
            ) from error

    def _key(self, row: int) -> str:
        if self._keys is None:
            try:
                keys = read_keys(self.folder, self.manifest)
                self._keys = np.array([key.encode("utf-8", "surrogateescape") for key in keys])
            except UserError:  # a message must not fail because a name cannot be read
                return f"image {row}"
        return bytes(self._keys[row]).decode("utf-8", "replace")

    def _damaged(self, index: int, shard: int, offset: int, size: int) -> UserError:
        row = int(index if self.rows is None else self.rows[index])
        name = self.manifest.shards[shard].name
        where = f"the {size:,} bytes of `{self._key(row)}` at offset {offset} of"
        if self.remote is None:
            return UserError(
                f"{where} `{self.folder / name}` are not those that were packed; run `ltbench data "
                f"check {self.folder} level=sha256` and copy that shard again"
            )
        return UserError(
            f"{where} {self.remote.shown(name)} are not those that were packed, though the shard "
            f"was fetched again into `{self.folder}`; check that disk, or set LTBENCH_CACHE to a "
            "folder on another"
        )


class _Files:
    """Descriptors of the shards in this process; those used least recently are closed."""

    def __init__(self, folder: Path, remote: RemoteSplit | None, shards: tuple[Shard, ...]) -> None:
        self._folder, self._remote, self._shards = folder, remote, shards
        self._pid = os.getpid()
        self._open: OrderedDict[int, int] = OrderedDict()

    def __del__(self) -> None:
        if self._pid == os.getpid():
            while self._open:
                self._close(next(iter(self._open)))

    def open(self, shards: Sequence[int]) -> dict[int, int]:
        """Return a descriptor of each shard, -1 where that fails."""
        found = dict.fromkeys(shards, -1)
        for shard in found:
            with contextlib.suppress(OSError):  # comes up again when the shard is read
                found[shard] = self._get(shard)
        while len(self._open) > max(OPEN_FILES, len(found)):
            self._close(next(iter(self._open)))
        return found

    def announce(self, rows: np.ndarray) -> None:
        """Announce coming reads to the system, so that the disk can work on them all at once."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):
                for shard, _, offset, size, _ in rows.tolist():
                    os.posix_fadvise(self._get(shard), offset, size, os.POSIX_FADV_WILLNEED)

    def fill(self, shard: int, offset: int, into: memoryview, crc32: int) -> bool:
        """Read a range until its checksum is right; return whether it is in the end."""
        self._read(shard, offset, into)
        if crc32_of(into) == crc32:
            return True
        self._forget(shard, offset, len(into))
        self._read(shard, offset, into)
        if crc32_of(into) != crc32 and self._remote is not None:
            self._close(shard)
            self._remote.repair(shard)
            self._read(shard, offset, into)
        return crc32_of(into) == crc32

    def _read(self, shard: int, offset: int, into: memoryview) -> None:
        reason = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(attempt * PAUSE)
            try:
                got = os.preadv(self._get(shard), [into], offset)
                if got == len(into):
                    return
                reason = f"got {got} of {len(into)} bytes at offset {offset}"
            except OSError as error:
                reason = str(error.strerror or error)
            self._close(shard)
        raise UserError(
            f"cannot read `{self._folder / self._shards[shard].name}`: {reason} ({TRIES} tries); "
            "check that the disk is there, and copy this shard again if it is missing"
        )

    def _get(self, shard: int) -> int:
        if self._pid != os.getpid():  # the parent's descriptors stay the parent's
            self._pid, self._open = os.getpid(), OrderedDict()
        found = self._open.get(shard)
        if found is not None:
            self._open.move_to_end(shard)
            return found
        path = self._folder / self._shards[shard].name
        if self._remote is not None:
            path = self._remote.shard(shard)
        found = open_regular(path)
        size, expected = os.fstat(found).st_size, self._shards[shard].bytes
        if size != expected:
            os.close(found)
            raise UserError(
                f"`{path}` has {size:,} bytes, its manifest says {expected:,}: a partial copy or "
                "another shard; copy this shard again"
            )
        self._open[shard] = found
        return found

    def _close(self, shard: int) -> None:
        found = self._open.pop(shard, None)
        if found is not None and self._pid == os.getpid():
            with contextlib.suppress(OSError):
                os.close(found)

    def _forget(self, shard: int, offset: int, size: int) -> None:
        """Drop bytes that the system may hold wrongly in memory, so that they are read again."""
        if hasattr(os, "posix_fadvise"):
            start = max(0, offset - _PAGE)
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._get(shard), start, size + 2 * _PAGE, os.POSIX_FADV_DONTNEED)
