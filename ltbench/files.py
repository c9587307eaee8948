"""Files written under a temporary name, then renamed: none is ever seen half-written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]

from ltbench.digest import parse_json, read_regular
from ltbench.errors import UserError, visible

MOST = 2**28  # bytes of a sealed file
AGE = 3600  # seconds without a change after which a temporary file counts as abandoned
# Flags to open by: follow no link, wait for no pipe.
PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
SEALED = re.compile(rb'(\{.*),\n "checksum": "([0-9a-f]{64})"\n\}\n', re.DOTALL)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Temporary path to write to; renamed to ``path`` at the end, removed after an error."""
    with _replacing(path) as (partial, _):
        yield partial


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file.

    Raises:
        UserError: it could not be written; a file that was there before is untouched.
    """
    try:
        with _replacing(path) as (_, file):
            file.write(content)
    except OSError as error:
        raise _unwritten(path, error) from error


def write_json(path: Path, content: Any) -> None:
    """Write a file of JSON; errors as ``write_atomic``."""
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())


def seal(text: str) -> bytes:
    """Return the text of a JSON object with one more value: the SHA-256 of all that precedes it."""
    body = text.rstrip().removesuffix("}").rstrip().encode()
    return body + b',\n "checksum": "%s"\n}\n' % hashlib.sha256(body).hexdigest().encode()


def read_sealed(path: Path, last: str) -> dict[str, Any]:
    """Return the content of a file written by ``seal``, without its checksum.

    Args:
        path: path of the file.
        last: last key of a file that was written before there were checksums, and is not checked.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a JSON object, or was modified after it was written.
    """
    return unseal(read_regular(path, MOST), last)


def unseal(text: bytes, last: str) -> dict[str, Any]:
    """Return the content of a sealed text; arguments and errors as ``read_sealed``."""
    found = SEALED.fullmatch(text)
    if found is not None and hashlib.sha256(found[1]).hexdigest().encode() != found[2]:
        raise ValueError("it was damaged or edited: its checksum does not match")
    content = parse_json(text, limit=MOST)
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    if found is None and next(reversed(content), None) != last:
        raise ValueError("it was damaged or edited: it does not end with its checksum")
    return {key: value for key, value in content.items() if key != "checksum"}


def copied(path: Path, target: Path) -> Path:
    """Copy a file, make the folder it goes to, and return its new path.

    Raises:
        UserError: it could not be written; a file that was there before is untouched.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, _replacing(target) as (_, file):
            shutil.copyfileobj(source, file, 2**20)
    except OSError as error:
        raise _unwritten(target, error) from error
    return target


def fresh_folder(path: Path) -> None:
    """Make an empty folder and its parents, replacing whatever has its name.

    Raises:
        OSError: it could not be made.
    """
    if path.is_symlink() or path.is_file():
        path.unlink()  # never what a link points to
    else:
        shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


@contextlib.contextmanager
def replaced_folder(path: Path, own: Collection[str]) -> Iterator[Path]:
    """Empty folder to write to; takes the name ``path`` at the end, and is removed after an error.

    Args:
        path: the folder; its parents are made. One that holds nothing but ``own`` is replaced.
        own: names of the files that are written.

    Raises:
        UserError: ``path`` holds something else, or cannot be written.
    """
    check_replaceable(path, own)
    try:
        with new_folder(path) as partial:
            yield partial
    except OSError as error:
        raise _unwritten(path, error) from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Empty folder to write to; replaces the folder ``path``, and is removed after an error.

    Raises:
        OSError: it could not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _partial(path, _new_folder) as (partial, _):
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)


def check_replaceable(path: Path, own: Collection[str]) -> None:
    """Check that a folder does not exist, or holds nothing but some files.

    Raises:
        UserError: it holds something else, or is a file.
    """
    try:
        if path.is_dir():
            other = next((p.name for p in sorted(path.iterdir()) if p.name not in own), None)
        else:
            other = "it is a file" if path.exists() or path.is_symlink() else None
    except OSError as error:
        raise _unwritten(path, error) from error
    if other is not None:
        raise UserError(
            f"`out`: expected a new folder, found {path} with something else ({visible(other)}); "
            "pass another folder"
        )


def create(path: Path) -> IO[bytes]:
    """Open a new file for writing, replacing whatever has its name, without following a link."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    return os.fdopen(_new_file(path), "wb")


def append(path: Path, text: str) -> None:
    """Append a text to a file, new or not, without following a link.

    Raises:
        OSError: it could not be written, or is a link or no plain file.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | PLAIN
    with os.fdopen(os.open(path, flags, 0o666), "ab") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path} is no plain file")
        file.write(text.encode("utf-8", "backslashreplace"))


def mode_of(file: IO[bytes]) -> int:
    """Return the permission bits of an open file; those of a new one follow the umask."""
    return stat.S_IMODE(os.fstat(file.fileno()).st_mode)


def flush(path: Path, mode: int | None = None) -> None:
    """Write a file's content, or a folder's names, to the disk.

    Args:
        path: file or folder; not a link.
        mode: permission bits to set; libraries that write a file themselves choose their own.
    """
    handle = os.open(path, os.O_RDONLY | PLAIN)
    try:
        if mode is not None and hasattr(os, "fchmod"):
            os.fchmod(handle, mode)
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_abandoned(path: Path) -> None:
    """Remove temporary files and folders of a path whose writers are gone."""
    name = re.compile(re.escape(f".partial-{path.name}") + r"(\.[0-9a-f]{8})?")
    with contextlib.suppress(OSError):
        for other in [Path(e.path) for e in os.scandir(path.parent) if name.fullmatch(e.name)]:
            found = other.lstat()
            folder = stat.S_ISDIR(found.st_mode)
            if not folder and not stat.S_ISREG(found.st_mode):
                other.unlink()
                continue
            handle = os.open(other, (os.O_RDONLY if folder else os.O_RDWR) | PLAIN)
            try:
                if _lock(handle, unsure=time.time() - found.st_mtime > AGE):
                    _remove(other)
            finally:
                os.close(handle)


def reason(error: Exception) -> str:
    """Return an error of the file system or of a file's format in a few words."""
    text = (
        getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    )
    return f"{type(error).__name__}: {text}" if isinstance(error, KeyError) else text


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Temporary path and its open file; content may be written to either."""
    with _partial(path, _new_file) as (partial, handle):
        with os.fdopen(os.dup(handle), "wb") as file:
            mode = mode_of(file)
            yield partial, file
        flush(partial, mode)
        partial.replace(path)


@contextlib.contextmanager
def _partial(path: Path, make: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    """Temporary path that no other writer of ``path`` has, and its handle; removed at the end.

    The writer holds a lock on it, so that what a killed one left behind is known and removed.

    Args:
        path: what it will be renamed to.
        make: makes a new file or folder and returns its handle.
    """
    remove_abandoned(path)
    while True:
        partial = path.with_name(f".partial-{path.name}.{secrets.token_hex(4)}")
        handle = make(partial)
        if _lock(handle, unsure=True) and os.fstat(handle).st_nlink:
            break  # else another writer took it for abandoned, and removed it
        os.close(handle)
    try:
        yield partial, handle
    finally:
        _remove(partial)
        os.close(handle)


def _new_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN, 0o666)


def _new_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY | PLAIN)


def _lock(handle: int, *, unsure: bool) -> bool:
    """Return True once an open file or folder is locked, False if another process has locked it.

    Args:
        handle: of the file or folder.
        unsure: returned on systems and file systems without locks.
    """
    if fcntl is None:
        return unsure
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return unsure
    return True


def _remove(path: Path) -> None:
    """Remove a file, link or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _unwritten(path: Path, error: OSError) -> UserError:
    return UserError(f"could not write {path}: {reason(error)}; make room or pass another folder")
