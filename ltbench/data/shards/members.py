"""Members of tar files from anywhere, read without trust in what their headers say."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import IO, BinaryIO, cast

from ltbench.data.shards.bounds import shown

_HEADERS = 2**18  # bytes that may describe one member: names, pax fields
_FIELDS = 100  # pax fields for all members
_DIGITS = re.compile(rb"[0-9]{256}")  # tarfile's patterns need quadratic time for long runs


class DamagedTar(Exception):
    """A tar that no reader can be trusted to read; the message has the reason."""


class Members:
    """The members of a plain tar, in its order.

    Args:
        file: the tar, at its start.

    Attributes:
        end: byte at which the members that were iterated over end.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.end = 0
        self._file = file
        self._tap = _Tap(file)

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Yield the members.

        Raises:
            DamagedTar: the file is no tar, damaged, cut, or describes what cannot be.
        """
        tap = self._tap
        try:
            archive = tarfile.open(  # noqa: SIM115 (it has nothing to close)
                fileobj=cast(IO[bytes], tap), mode="r:", encoding="utf-8", errors="surrogateescape"
            )
            while True:
                tap.left = _HEADERS
                member = archive.next()
                archive.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member is None:
                    return
                if len(archive.pax_headers) > _FIELDS:
                    raise DamagedTar(f"more than {_FIELDS} pax fields for all members")
                if member.size < 0 or archive.offset <= self.end:
                    raise DamagedTar(f"a member at byte {self.end} has a size below 0")
                self.end = archive.offset
                yield member
        except DamagedTar:
            raise
        except Exception as error:  # tarfile raises anything, from IndexError to RecursionError
            text = shown(getattr(error, "strerror", None) or error)
            raise DamagedTar(text or type(error).__name__) from error

    def content(self, member: tarfile.TarInfo, limit: int) -> bytes:
        """Return the first ``limit`` bytes of the member that was yielded last.

        Raises:
            DamagedTar: it is sparse, or the file ends before.
        """
        if member.issparse():
            raise DamagedTar(f"`{shown(member.name)}` is a sparse member")
        size = min(member.size, limit)
        self._tap.seek(member.offset_data)
        data = self._file.read(size)
        if len(data) != size:
            raise DamagedTar("unexpected end of data")
        return data


class _Tap:
    """A file for tarfile that reads no more than the headers of a member may need."""

    def __init__(self, file: BinaryIO) -> None:
        self.left = _HEADERS
        self.seek, self.tell = file.seek, file.tell
        self._file = file
        self._ended = -1  # where the last read found the end

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise DamagedTar(f"the headers of a member have more than {_HEADERS:,} bytes")
        data = self._file.read(size)
        self.left -= len(data)
        if not data and self._ended == self.tell():
            raise DamagedTar("unexpected end of data")  # where tarfile would read forever
        self._ended = -1 if data else self.tell()
        if _DIGITS.search(data):
            raise DamagedTar("a header has a number of 256 digits or more")
        return data
