"""HTTP downloads by byte ranges; a broken transfer is resumed."""

from __future__ import annotations

import base64
import http.client
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ltbench.errors import UserError
from ltbench.remote.faults import Missing, Unreachable

TRIES = 3  # of a request, without progress in between
BACKOFF = 1.0  # seconds before the second try, three times that before the third
TIMEOUT = 30.0  # seconds without a byte
SLOWEST = 1024  # bytes a second, over two time-outs, below which a connection counts as broken
PROGRESS = 2**20  # bytes after which a broken connection is a new one and not the next try
CHUNK = 2**18  # bytes that are handled at once
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # worth another try


class Place(Protocol):
    """Folder that ``Body`` reads files of."""

    def shown(self, path: str = "") -> str:
        """Return the address of a file for messages, without credentials."""

    def request(self, path: str) -> urllib.request.Request:
        """Return what to ask for a file, with the user's credentials if there are any."""


@dataclass(frozen=True)
class Address:
    """Folder on a web server.

    Args:
        root: ``http(s)://[USER:PASSWORD@]HOST/FOLDER[?QUERY]``.
    """

    root: str

    def shown(self, path: str = "") -> str:
        """Return the address of a file for messages, without credentials."""
        return f"`{'/'.join(filter(None, [self._public(), path]))}`"

    def _public(self) -> str:
        parts = urlsplit(self.root)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", "")).rstrip("/")

    @property
    def identity(self) -> str:
        """What no two addresses share; user and password are left out."""
        query = urlsplit(self.root).query
        return f"{self._public()}?{query}" if query else self._public()

    def request(self, path: str) -> urllib.request.Request:
        """Return what to ask for a file, with the user's credentials if there are any."""
        parts = urlsplit(self.root)
        user, _, host = parts.netloc.rpartition("@")
        at = f"{parts.path.rstrip('/')}/{quote(path)}"
        request = urllib.request.Request(urlunsplit((parts.scheme, host, at, parts.query, "")))
        if user:
            login = base64.b64encode(unquote(user).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {login}")
        return request


class Body:
    """The bytes of a remote file; a broken connection is taken up where it broke.

    Args:
        place: of the folder.
        path: of the file below it.
        start: first byte wanted.
        size: of the whole file, where it is known.
        tries: of a request, without progress in between.
        hint: what to do where there is no such file.

    Raises:
        UserError: by ``read``, which is where the file is asked for.
    """

    def __init__(
        self,
        place: Place,
        path: str,
        *,
        start: int = 0,
        size: int | None = None,
        tries: int = TRIES,
        hint: str = "check the address",
    ) -> None:
        self.place, self.path, self.at, self.size, self.hint = place, path, start, size, hint
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
                    f"cannot fetch {self.place.shown(self.path)}: {reason} ({self._failed} "
                    f"{'try' if self._failed == 1 else 'tries'}); {_advice(None)}"
                )
            time.sleep(BACKOFF * 3 ** (self._failed - 1) if wait is None else wait)

    def close(self) -> None:
        """Let the connection go; the next ``read`` makes a new one."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def _connect(self) -> None:
        request = self.place.request(self.path)
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
                    f"{self.place.shown(self.path)} has {size:,} bytes, its manifest says "
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
        what = f"{self.place.shown(self.path)} cannot be fetched: HTTP {status}"
        if status in (404, 410):
            return Missing(f"{what}; {self.hint}")
        return UserError(f"{what}; {_advice(status)}")


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
