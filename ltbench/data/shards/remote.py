"""Shards on a web server, cached on this machine; those of the Hub are in ``hub``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import filelock

from ltbench.config.paths import cache_base
from ltbench.data.shards.bounds import MANIFEST_BYTES, SPLITS, index_bytes, keys_bytes
from ltbench.data.shards.format import (
    INDEX,
    INFO,
    KEYS,
    MANIFEST,
    Manifest,
    Shard,
    parse_manifest,
    read_manifest,
)
from ltbench.digest import file_sha256, parse_json, read_json
from ltbench.errors import UserError
from ltbench.files import create, write_atomic
from ltbench.remote import http
from ltbench.remote.address import Address
from ltbench.remote.faults import Missing, Unreachable
from ltbench.remote.http import TRIES, Body, Place

LAYOUT = f"the folder that `ltbench data prepare` wrote, with {INFO} and train/{MANIFEST} in it"
HINT = f"data.root must be {LAYOUT}"
PATIENCE = 300.0  # seconds that another process may hold a shard's lock without progress
THREADS = 4  # that prefetch


@dataclass(frozen=True)
class RemoteSplit:
    """A split with manifest, index and keys on this machine; shards are fetched when needed.

    Args:
        place: of the data set.
        split: ``"train"``, ``"val"`` or ``"test"``.
        folder: of the split in the cache.
        manifest: of the split.
    """

    place: Place
    split: str
    folder: Path
    manifest: Manifest

    def shown(self, name: str) -> str:
        """Return the address of one of the split's files for messages."""
        return self.place.shown(f"{self.split}/{name}")

    def shard(self, number: int) -> Path:
        """Return the file of a shard, fetched by one process of a machine if need be.

        Args:
            number: of the shard, as the index has it.

        Raises:
            UserError: it cannot be fetched or kept, or is not what the manifest says.
        """
        shard = self.manifest.shards[number]
        if not self.has(number):
            with _locked(self.folder, shard.name):
                if not self.has(number):
                    self._obtain(shard)
        return self.folder / shard.name

    def has(self, number: int) -> bool:
        """Return whether a shard is in the cache, of the right size and checked when it came."""
        shard = self.manifest.shards[number]
        path = self.folder / shard.name
        try:
            checked = read_json(_sidecar(path), limit=1024)
            return path.stat().st_size == shard.bytes and checked == {"sha256": shard.sha256}
        except (OSError, ValueError):
            return False

    def repair(self, number: int) -> None:
        """Fetch a shard again unless all its bytes are right, after a wrong one was read.

        Args:
            number: of the shard.

        Raises:
            UserError: as ``shard``.
        """
        shard = self.manifest.shards[number]
        with _locked(self.folder, shard.name):
            self._obtain(shard)

    def prefetch(self, numbers: Sequence[int]) -> list[threading.Thread]:
        """Fetch shards in the background, a few at a time, without delaying reads of others.

        Args:
            numbers: of the shards, the most urgent first.

        Returns:
            The threads that do it, none if all shards are here.
        """
        waiting = deque(number for number in numbers if not self.has(number))
        threads = [
            threading.Thread(target=_drain, args=(self, waiting), daemon=True, name="prefetch")
            for _ in range(min(THREADS, len(waiting)))
        ]
        for thread in threads:
            thread.start()
        return threads

    def stream(self, number: int, start: int = 0) -> Body | BinaryIO:
        """Return the bytes of a shard, without storing them.

        Args:
            number: of the shard.
            start: first byte wanted.
        """
        shard = self.manifest.shards[number]
        if self.has(number):
            file = (self.folder / shard.name).open("rb")
            file.seek(start)
            return file
        path = f"{self.split}/{shard.name}"
        return Body(self.place, path, start=start, size=shard.bytes, hint=HINT)

    def _obtain(self, shard: Shard) -> None:
        path = self.folder / shard.name
        if not _is(path, shard):
            _sidecar(path).unlink(missing_ok=True)
            remote = f"{self.split}/{shard.name}"
            _download(self.place, remote, path, shard.sha256, size=shard.bytes)
        write_atomic(_sidecar(path), json.dumps({"sha256": shard.sha256}).encode())


def open_remote(root: str) -> dict[str, RemoteSplit]:
    """Return the splits of a prepared data set by name, with their indices but not their shards.

    If the server does not answer, the copy of an earlier run is used, with a warning.

    Args:
        root: ``http(s)://...``, the folder that ``ltbench data prepare`` wrote.

    Raises:
        UserError: there is no such folder, no access or no answer, or its files are damaged.
    """
    address = Address(root)
    if not re.match(r"https?://[^/]+", root):
        raise not_an_address(address)
    folder = cache_folder(address)
    kept = [name for name in SPLITS if (folder / name / MANIFEST).is_file()]
    tries = 1 if kept else TRIES
    try:
        names = find_splits(address, lambda path: _text(address, path, tries))
        return {name: _open_split(address, name, folder / name, tries) for name in names}
    except Unreachable as error:
        if not kept:
            raise
        warnings.warn(f"{error}; going on with what is in `{folder}`", stacklevel=2)
        return {
            name: RemoteSplit(address, name, folder / name, read_manifest(folder / name))
            for name in kept
        }


def cache_folder(address: Address) -> Path:
    """Return the cache folder of an address."""
    digest = hashlib.sha256(address.identity.encode()).hexdigest()[:24]
    readable = address.identity.partition("?")[0].partition("://")[2]
    readable = re.sub(r"[^\w.]+", "-", readable).strip("-.")[:60]
    return cache_base() / "shards" / f"{readable}-{digest}"


def find_splits(place: Place, read: Callable[[str], bytes]) -> list[str]:
    """Return the names of the splits at a place.

    Args:
        place: for messages.
        read: returns the content of a file, or raises ``Missing``.

    Raises:
        UserError: there are none, or no answer.
    """
    try:
        told = parse_json(read(INFO), limit=MANIFEST_BYTES)["splits"]
        names = [name for name in SPLITS if name in dict(told)]
    except Missing:
        names = [name for name in SPLITS if _exists(f"{name}/{MANIFEST}", read)]
    except (ValueError, KeyError, TypeError, IndexError):
        names = []
    if not names:
        raise UserError(f"there are no shards at {place.shown()}: {HINT}")
    return names


def not_an_address(place: Place) -> UserError:
    """Return the error about a ``data.root`` that is no address of shards."""
    return UserError(
        f"data.root={place.shown()} is no address of shards: needed is http(s)://HOST/FOLDER or "
        "hf://datasets/ORG/NAME[@REVISION][/FOLDER]"
    )


def _exists(path: str, read: Callable[[str], bytes]) -> bool:
    try:
        return bool(read(path))
    except Missing:
        return False


def _open_split(address: Address, name: str, folder: Path, tries: int) -> RemoteSplit:
    text = _text(address, f"{name}/{MANIFEST}", tries)
    manifest = parse_manifest(text, address.shown(f"{name}/{MANIFEST}"))
    parts = {
        INDEX: manifest.index_sha256,
        KEYS: manifest.keys_sha256,
        MANIFEST: hashlib.sha256(text).hexdigest(),
    }
    limits = {INDEX: index_bytes(manifest.samples), KEYS: keys_bytes(manifest.samples)}
    if any(_sha256(folder / file) != digest for file, digest in parts.items()):
        with _locked(folder, MANIFEST):
            for file in (INDEX, KEYS):
                if _sha256(folder / file) != parts[file]:
                    _download(
                        address, f"{name}/{file}", folder / file, parts[file],
                        limit=limits[file], tries=tries,
                    )  # fmt: skip
            write_atomic(folder / MANIFEST, text)
    return RemoteSplit(address, name, folder, manifest)


def _text(address: Address, path: str, tries: int) -> bytes:
    """Return a file of JSON; one whose end the server does not announce is fetched until whole."""
    for number in range(1, tries + 1):
        body = Body(address, path, limit=MANIFEST_BYTES, tries=tries, hint=HINT)
        try:
            text = b"".join(iter(body.read, b""))
        finally:
            body.close()
        if body.announced or number == tries or _is_json(text):
            break
        time.sleep(http.BACKOFF * 3 ** (number - 1))
    return text


def _is_json(text: bytes) -> bool:
    try:
        parse_json(text, limit=MANIFEST_BYTES)
    except ValueError:
        return False
    return True


def _download(
    place: Place,
    path: str,
    target: Path,
    sha256: str,
    *,
    size: int | None = None,
    limit: int | None = None,
    tries: int = TRIES,
) -> None:
    """Fetch a file under a temporary name and check its hash, twice at most; then rename it."""
    partial = target.with_name(f"{target.name}.part")
    for _ in range(2):
        body = Body(place, path, size=size, limit=limit, tries=tries, hint=HINT)
        digest = hashlib.sha256()
        try:
            with create(partial) as file:
                for data in iter(body.read, b""):
                    file.write(data)
                    digest.update(data)
                file.flush()
                os.fsync(file.fileno())
            if digest.hexdigest() == sha256:
                partial.replace(target)
                return
        except OSError as error:
            raise _unwritable(target.parent, error, size) from error
        finally:
            body.close()
            with contextlib.suppress(OSError):
                partial.unlink()
    raise UserError(
        f"{place.shown(path)} is not the file that its manifest describes (SHA-256 "
        f"{digest.hexdigest()[:12]}... instead of {sha256[:12]}...): damaged, or exchanged after "
        "the manifest was written; copy the prepared folder there again"
    )


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Hold a lock on a file of the cache; wait for another holder while it makes progress."""
    lock = folder / f".{name}.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = filelock.FileLock(lock)
        before: tuple[int, int] | None = None
        while True:
            try:
                held.acquire(timeout=PATIENCE)
                break
            except filelock.Timeout:
                now = _state(folder / f"{name}.part")
                if now == before:
                    raise UserError(
                        f"another process has held `{lock}` for {2 * PATIENCE:.0f} s without "
                        "getting on; end it, or wait until it is done and start again"
                    ) from None
                before = now
    except OSError as error:
        raise _unwritable(folder, error, None) from error
    try:
        yield
    finally:
        held.release()


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)


def _drain(split: RemoteSplit, waiting: deque[int]) -> None:
    with contextlib.suppress(IndexError, UserError):  # a read that needs the shard says it
        while True:
            split.shard(waiting.popleft())


def _is(path: Path, shard: Shard) -> bool:
    try:
        return path.stat().st_size == shard.bytes and _sha256(path) == shard.sha256
    except OSError:
        return False


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError:
        return ""


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.checked")


def _unwritable(folder: Path, error: OSError, size: int | None) -> UserError:
    room = f" ({size:,} bytes)" if size else ""
    return UserError(
        f"cannot keep a file{room} in `{folder}`: {error.strerror or error}; make room, or set "
        "LTBENCH_CACHE to a folder on another disk"
    )
