"""Files of a web server or the Hugging Face Hub: where they are, and their bytes."""

from __future__ import annotations

import base64
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ltbench.data.shards.format import INFO, MANIFEST
from ltbench.errors import UserError

TRIES = 3  # of a request, without progress in between
BACKOFF = 1.0  # seconds before the second try, three times that before the third
TIMEOUT = 30.0  # seconds without a byte
SLOWEST = 1024  # bytes a second, over two time-outs, below which a connection counts as broken
PROGRESS = 2**20  # bytes after which a broken connection is a new one and not the next try
CHUNK = 2**18  # bytes that are handled at once
LAYOUT = f"the folder that `ltbench data prepare` wrote, with {INFO} and train/{MANIFEST} in it"
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
            raise Missing(f"there is no {self.shown(path)}: data.root must be {LAYOUT}") from error
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

    def read(self, n: int = CHUNK) -> bytes:
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
            skipped = len(self._receive(min(skip, CHUNK)))
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
            return Missing(f"{what}; data.root must be {LAYOUT}")
        return UserError(f"{what}; {_advice(status)}")


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
