"""Shards on a web server or the Hugging Face Hub, kept in a cache on this machine."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import filelock

from ltbench.atomic import write_atomic
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
from ltbench.errors import UserError

SPLITS = ("train", "val", "test")
TRIES = 3  # of a request, without progress in between
BACKOFF = 1.0  # seconds before the second try, three times that before the third
TIMEOUT = 30.0  # seconds without a byte
SLOWEST = 1024  # bytes a second, over two time-outs, below which a connection counts as broken
PROGRESS = 2**20  # bytes after which a broken connection is a new one and not the next try
PATIENCE = 300.0  # seconds that another process may hold a shard's lock without progress
THREADS = 4  # that prefetch
_CHUNK = 2**18
_LAYOUT = f"the folder that `ltbench data prepare` wrote, with {INFO} and train/{MANIFEST} in it"
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # worth another try


class Unreachable(UserError):
    """The other side does not answer, or only with errors of its own."""


class Missing(UserError):
    """The other side answers that there is no such file."""


@dataclass(frozen=True)
class Address:
    """A folder on a web server, or in a dataset repository of the Hub.

    Args:
        root: ``http(s)://host/folder`` or ``hf://datasets/org/name[@revision][/folder]``.
        commit: of the repository, once known: a branch may move on during a run.
    """

    root: str
    commit: str = ""

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/]+|hf://datasets/[^/@]+/[^/@]+(@[^/]+)?(/|$)", self.root):
            raise UserError(
                f"data.root=`{self._public()}` is no address of shards: needed is http(s)://HOST/"
                "FOLDER or hf://datasets/ORG/NAME[@REVISION][/FOLDER]"
            )

    def shown(self, path: str = "") -> str:
        """Return the address of a file for messages, without credentials."""
        return f"`{'/'.join(filter(None, [self._public(), path]))}`"

    def _public(self) -> str:
        parts = urlsplit(self.root)
        clean = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        return (self.root if parts.scheme == "hf" else clean).rstrip("/")

    @property
    def identity(self) -> str:
        """What no two addresses share; user and password are left out."""
        if self.root.startswith("hf://"):
            repository, revision, folder = self._hub()
            return f"{_endpoint()}/{repository}@{revision}/{folder}"
        query = urlsplit(self.root).query
        return f"{self._public()}?{query}" if query else self._public()

    def pinned(self, path: str) -> Address:
        """Return the address at the commit that now has a file; a web server's as it is.

        Args:
            path: of a file below the root.

        Raises:
            UserError: there is no such repository, revision or file, or no answer.
        """
        if not self.root.startswith("hf://") or self.commit:
            return self
        from huggingface_hub import errors, get_hf_file_metadata

        try:
            found = get_hf_file_metadata(self._hub_url(path), endpoint=_endpoint(), timeout=TIMEOUT)
        except errors.GatedRepoError as error:
            raise UserError(
                f"{self.shown()} is gated: accept its terms on the Hub, then log in with `hf auth "
                "login` or set HF_TOKEN"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise UserError(
                f"there is no dataset {self.shown()}, or it is private: check the name, log in "
                "with `hf auth login` or set HF_TOKEN"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise UserError(
                f"{self.shown()}: the repository has no such revision; check what follows the @"
            ) from error
        except errors.EntryNotFoundError as error:
            raise Missing(f"there is no {self.shown(path)}: data.root must be {_LAYOUT}") from error
        except Exception as error:  # the client lets its own HTTP library's errors through
            status = getattr(getattr(error, "response", None), "status_code", None)
            reason = f"HTTP {status}" if status else type(error).__name__
            kind = UserError if status in (401, 403) else Unreachable
            raise kind(f"cannot reach {self.shown(path)}: {reason}; {_advice(status)}") from error
        return replace(self, commit=found.commit_hash or "")

    def request(self, path: str) -> urllib.request.Request:
        """Return what to ask for a file, with the user's credentials if there are any."""
        if self.root.startswith("hf://"):
            from huggingface_hub import constants
            from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

            if constants.HF_HUB_OFFLINE:
                raise Unreachable(f"cannot fetch {self.shown(path)}: HF_HUB_OFFLINE is set")
            request = urllib.request.Request(self._hub_url(path))
            for name, value in build_hf_headers().items():
                request.add_unredirected_header(name.capitalize(), value)
            return request
        parts = urlsplit(self.root)
        user, _, host = parts.netloc.rpartition("@")
        at = f"{parts.path.rstrip('/')}/{quote(path)}"
        request = urllib.request.Request(urlunsplit((parts.scheme, host, at, parts.query, "")))
        if user:
            login = base64.b64encode(unquote(user).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {login}")
        return request

    def _hub(self) -> tuple[str, str, str]:
        org, name, *folder = self.root.removeprefix("hf://datasets/").strip("/").split("/")
        name, _, revision = name.partition("@")
        return f"{org}/{name}", unquote(revision) or "main", "/".join(folder)

    def _hub_url(self, path: str) -> str:
        from huggingface_hub import hf_hub_url

        repository, revision, folder = self._hub()
        return hf_hub_url(
            repository,
            f"{folder}/{path}" if folder else path,
            repo_type="dataset",
            revision=self.commit or revision,
            endpoint=_endpoint(),
        )


class Body:
    """The bytes of a remote file; a broken connection is taken up where it broke.

    Args:
        address: of the folder.
        path: of the file below it.
        start: first byte wanted.
        size: of the whole file, where it is known.
        tries: of a request, without progress in between.

    Raises:
        UserError: by ``read``, which is where the file is asked for.
    """

    def __init__(
        self,
        address: Address,
        path: str,
        *,
        start: int = 0,
        size: int | None = None,
        tries: int = TRIES,
    ) -> None:
        self.address, self.path, self.at, self.size = address, path, start, size
        self._tries, self._failed, self._progress = tries, 0, 0
        self._response: Any = None

    def read(self, n: int = _CHUNK) -> bytes:
        """Return the next bytes, at most ``n``, at least one; nothing at the end."""
        while True:
            if self.size is not None and self.at >= self.size:
                self.close()
                return b""
            wait: float | None = None
            try:
                if self._response is None:
                    self._connect()
                data = self._receive(n)
                if data or self.size is None:
                    self.at += len(data)
                    self._progress += len(data)
                    return data
                reason = f"the connection ended after {self.at:,} of {self.size:,} bytes"
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"HTTP {error.code}"
                if error.code not in _PASSING:
                    raise self._refused(error.code) from None
                wait = _seconds(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = _reason(error)
            self.close()
            self._failed = 1 if self._progress >= PROGRESS else self._failed + 1
            self._progress = 0
            if self._failed >= self._tries:
                raise Unreachable(
                    f"cannot fetch {self.address.shown(self.path)}: {reason} ({self._failed} "
                    f"{'try' if self._failed == 1 else 'tries'}); {_advice(None)}"
                )
            time.sleep(BACKOFF * 3 ** (self._failed - 1) if wait is None else wait)

    def close(self) -> None:
        """Let the connection go; the next ``read`` makes a new one."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def _connect(self) -> None:
        request = self.address.request(self.path)
        if self.at:
            request.add_header("Range", f"bytes={self.at}-")
        opener = urllib.request.build_opener(_Redirects)
        response = opener.open(request, timeout=TIMEOUT)
        self._response = response
        self._waited, self._got = 0.0, 0
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        if length is not None:
            size = int(length) + (self.at if resumed else 0)
            if self.size is not None and size != self.size:
                self.close()
                raise UserError(
                    f"{self.address.shown(self.path)} has {size:,} bytes, its manifest says "
                    f"{self.size:,}: an unfinished upload or another shard; copy it there again"
                )
            self.size = size
        skip = 0 if resumed else self.at  # a server that knows no ranges
        while skip:
            skipped = len(self._receive(min(skip, _CHUNK)))
            if not skipped:
                raise OSError("the connection ended early")
            skip -= skipped

    def _receive(self, n: int) -> bytes:
        began = time.monotonic()
        data: bytes = self._response.read1(n)
        self._waited += time.monotonic() - began
        self._got += len(data)
        if self._waited > 2 * TIMEOUT:
            if self._got < SLOWEST * self._waited:
                raise OSError(f"{self._got:,} bytes in {self._waited:.0f} s")
            self._waited, self._got = 0.0, 0
        return data

    def _refused(self, status: int) -> UserError:
        what = f"{self.address.shown(self.path)} cannot be fetched: HTTP {status}"
        if status in (404, 410):
            return Missing(f"{what}; data.root must be {_LAYOUT}")
        return UserError(f"{what}; {_advice(status)}")


@dataclass(frozen=True)
class RemoteSplit:
    """A split whose manifest, index and keys are here and whose shards come when they are needed.

    Args:
        address: of the data set.
        split: ``"train"``, ``"val"`` or ``"test"``.
        folder: of the split in the cache.
        manifest: of the split.
    """

    address: Address
    split: str
    folder: Path
    manifest: Manifest

    def shown(self, name: str) -> str:
        """Return the address of one of the split's files for messages."""
        return self.address.shown(f"{self.split}/{name}")

    def shard(self, number: int) -> Path:
        """Return a shard's file, after it was fetched; one process of a machine fetches it.

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
        """Whether a shard is in the cache: its hash was right once, and its size is right now."""
        shard = self.manifest.shards[number]
        path = self.folder / shard.name
        try:
            checked = json.loads(_sidecar(path).read_bytes())
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
        """Fetch shards in the background, a few at a time; a read that needs one does not wait.

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
        """Return a shard's bytes from some byte on, without keeping them.

        Args:
            number: of the shard.
            start: first byte wanted.
        """
        shard = self.manifest.shards[number]
        if self.has(number):
            file = (self.folder / shard.name).open("rb")
            file.seek(start)
            return file
        return Body(self.address, f"{self.split}/{shard.name}", start=start, size=shard.bytes)

    def _obtain(self, shard: Shard) -> None:
        path = self.folder / shard.name
        if not _is(path, shard):
            _sidecar(path).unlink(missing_ok=True)
            remote = f"{self.split}/{shard.name}"
            _download(self.address, remote, path, shard.sha256, size=shard.bytes)
        write_atomic(_sidecar(path), json.dumps({"sha256": shard.sha256}).encode())


def open_remote(root: str) -> dict[str, RemoteSplit]:
    """Return the splits of a prepared data set by name, with their indices but not their shards.

    Where nothing answers, what an earlier run left in the cache is used, with a warning.

    Args:
        root: ``http(s)://...`` or ``hf://datasets/org/name[@revision][/folder]``, the folder that
            ``ltbench data prepare`` wrote.

    Raises:
        UserError: there is no such folder, no access or no answer, or its files are damaged.
    """
    address = Address(root)
    folder = cache_folder(address)
    kept = [name for name in SPLITS if (folder / name / MANIFEST).is_file()]
    tries = 1 if kept else TRIES
    try:
        address, names = _find_splits(address, tries)
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
    """Return where the files of an address are kept: $LTBENCH_CACHE, or the user's cache folder."""
    own = os.environ.get("LTBENCH_CACHE")
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    base = Path(own or f"{users}/ltbench").expanduser()
    digest = hashlib.sha256(address.identity.encode()).hexdigest()[:24]
    readable = address.identity.partition("?")[0].partition("://")[2]
    readable = re.sub(r"[^\w.]+", "-", readable).strip("-.")[:60]
    return base / "shards" / f"{readable}-{digest}"


def _find_splits(address: Address, tries: int) -> tuple[Address, list[str]]:
    """Return the address at a fixed commit, and which splits are there."""
    try:
        address = address.pinned(INFO)
        told = json.loads(_text(address, INFO, tries))["splits"]
        names = [name for name in SPLITS if name in told]
    except Missing:
        address = address.pinned(f"train/{MANIFEST}")
        names = [name for name in SPLITS if _exists(address, f"{name}/{MANIFEST}", tries)]
    except (ValueError, KeyError, TypeError):
        names = []
    if not names:
        raise UserError(f"there are no shards at {address.shown()}: data.root must be {_LAYOUT}")
    return address, names


def _exists(address: Address, path: str, tries: int) -> bool:
    try:
        return bool(_text(address, path, tries))
    except Missing:
        return False


def _open_split(address: Address, name: str, folder: Path, tries: int) -> RemoteSplit:
    text = _text(address, f"{name}/{MANIFEST}", tries)
    manifest = parse_manifest(text, address.shown(f"{name}/{MANIFEST}"))
    strange = [s.name for s in manifest.shards if not re.fullmatch(r"[^/\\.\0][^/\\\0]*", s.name)]
    if strange:
        raise UserError(
            f"{address.shown(f'{name}/{MANIFEST}')} names a shard `{strange[0][:80]}`, which is no "
            "plain name of a tar file; run `ltbench data prepare` again"
        )
    parts = {
        INDEX: manifest.index_sha256,
        KEYS: manifest.keys_sha256,
        MANIFEST: hashlib.sha256(text).hexdigest(),
    }
    if any(_sha256(folder / file) != digest for file, digest in parts.items()):
        with _locked(folder, MANIFEST):
            for file in (INDEX, KEYS):
                if _sha256(folder / file) != parts[file]:
                    _download(address, f"{name}/{file}", folder / file, parts[file], tries=tries)
            write_atomic(folder / MANIFEST, text)
    return RemoteSplit(address, name, folder, manifest)


def _text(address: Address, path: str, tries: int) -> bytes:
    body = Body(address, path, tries=tries)
    try:
        return b"".join(iter(body.read, b""))
    finally:
        body.close()


def _download(
    address: Address,
    path: str,
    target: Path,
    sha256: str,
    *,
    size: int | None = None,
    tries: int = TRIES,
) -> None:
    """Fetch a file under another name, check it, give it its name; a second time if it is wrong."""
    partial = target.with_name(f"{target.name}.part")
    for _ in range(2):
        body = Body(address, path, size=size, tries=tries)
        digest = hashlib.sha256()
        try:
            with partial.open("wb") as file:
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
        f"{address.shown(path)} is not the file that its manifest describes (SHA-256 "
        f"{digest.hexdigest()[:12]}... instead of {sha256[:12]}...): damaged, or exchanged after "
        "the manifest was written; copy the prepared folder there again"
    )


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Hold a lock on a file of the cache; wait for others as long as they get on with it."""
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
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            for data in iter(lambda: file.read(_CHUNK), b""):
                digest.update(data)
    except OSError:
        return ""
    return digest.hexdigest()


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.checked")


def _unwritable(folder: Path, error: OSError, size: int | None) -> UserError:
    room = f" ({size:,} bytes)" if size else ""
    return UserError(
        f"cannot keep a file{room} in `{folder}`: {error.strerror or error}; make room, or set "
        "LTBENCH_CACHE to a folder on another disk"
    )


def _endpoint() -> str:
    """Return the Hub's address as it is set now; the client's own was read at its import."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"no answer for {TIMEOUT:g} s"
    text = getattr(error, "strerror", None) or str(error).split("\n")[0]
    return text or type(error).__name__


def _seconds(text: str | None) -> float | None:
    return min(float(text), 60.0) if text and text.isdigit() else None


def _advice(status: int | None) -> str:
    if status in (401, 403):
        return (
            "access is refused: log in to the Hub with `hf auth login`, or write "
            "https://USER:PASSWORD@HOST/FOLDER"
        )
    return "check the address and the network, or try again later"


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Takes credentials along within one host, and to no other."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and _origin(newurl) == _origin(req.full_url):
            for name, value in req.unredirected_hdrs.items():
                new.add_unredirected_header(name, value)
        return new
