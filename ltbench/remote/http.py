"""HTTP downloads by byte ranges, bounded in time and size; a broken transfer is resumed."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from typing import Any, Protocol

from ltbench.errors import UserError
from ltbench.remote.faults import Missing, Unreachable
from ltbench.remote.opener import open_request

TRIES = 3  # of a request, without progress in between
BACKOFF = 1.0  # seconds before the second try, three times that before the third
TIMEOUT = 30.0  # seconds without a byte, and for a whole head
SLOWEST = 1024  # bytes a second, over two time-outs, below which a connection counts as broken
PROGRESS = 2**20  # bytes after which a broken connection is a new one and not the next try
CHUNK = 2**18  # bytes that are handled at once
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # worth another try


class Place(Protocol):
    """Folder whose files ``Body`` reads."""

    def shown(self, path: str = "") -> str:
        """Return the address of a file for messages, without credentials."""

    def request(self, path: str) -> urllib.request.Request:
        """Return the request of a file, with the user's credentials if there are any."""


class Body:
    """Bytes of a remote file; a broken connection is taken up where it broke.

    No more than ``size`` or ``limit`` bytes are received, whatever the server sends, and every
    wait for it ends: for the head after ``TIMEOUT``, for data at less than ``SLOWEST``.

    Args:
        place: folder of the file.
        path: path of the file below it.
        start: first byte to read.
        size: size of the whole file in bytes, if it is known.
        limit: largest size in bytes of a file whose size is not known.
        tries: attempts of a request without progress in between.
        hint: advice for the case that there is no such file.

    Raises:
        UserError: by ``read``, which sends the request.
    """

    def __init__(
        self,
        place: Place,
        path: str,
        *,
        start: int = 0,
        size: int | None = None,
        limit: int | None = None,
        tries: int = TRIES,
        hint: str = "check the address",
    ) -> None:
        self.place, self.path, self.at, self.size, self.hint = place, path, start, size, hint
        self.limit = limit
        self.announced = False  # the end of the body can be told from a broken connection
        self._tries, self._failed, self._progress = tries, 0, 0
        self._response: Any = None

    def read(self, n: int = CHUNK) -> bytes:
        """Return the next bytes, at least one and at most ``n``; nothing at the end."""
        while True:
            if self.size is not None and self.at >= self.size:
                self.close()
                return b""
            wait: float | None = None
            try:
                if self._response is None:
                    self._connect()
                data = self._receive(n if self.size is None else min(n, self.size - self.at))
                if data or self.size is None:
                    self.at += len(data)
                    self._progress += len(data)
                    self._check_limit(self.at)
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
        """Close the connection; the next ``read`` makes a new one."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def _connect(self) -> None:
        request = self.place.request(self.path)
        if self.at:
            request.add_header("Range", f"bytes={self.at}-")
        response = open_request(request, TIMEOUT)
        self._response = response
        self._waited, self._got = 0.0, 0
        resumed = response.status == 206
        if response.length is not None:
            size = response.length + (self.at if resumed else 0)
            if self.size is not None and size != self.size:
                self.close()
                raise UserError(
                    f"{self.place.shown(self.path)} has {size:,} bytes, its manifest says "
                    f"{self.size:,}: an unfinished upload or another shard; copy it there again"
                )
            self._check_limit(size)
            self.size = size
        self.announced = self.size is not None or bool(response.chunked)
        skip = 0 if resumed else self.at  # a server that knows no ranges
        while skip:
            skipped = len(self._receive(min(skip, CHUNK)))
            if not skipped:
                raise OSError("the connection ended early")
            skip -= skipped

    def _receive(self, n: int) -> bytes:
        began = time.monotonic()
        self._response.limit_wait(2 * TIMEOUT)
        data: bytes = self._response.read1(n)
        self._waited += time.monotonic() - began
        self._got += len(data)
        if self._waited > 2 * TIMEOUT:
            if self._got < SLOWEST * self._waited:
                raise OSError(f"{self._got:,} bytes in {self._waited:.0f} s")
            self._waited, self._got = 0.0, 0
        return data

    def _check_limit(self, size: int) -> None:
        if self.limit is not None and size > self.limit:
            self.close()
            raise UserError(
                f"{self.place.shown(self.path)} is larger than the {self.limit:,} bytes that such "
                "a file can have; check the address, and that the folder was copied there whole"
            )

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
            "access is refused: log in to the Hub with `hf auth login`, or give data.root with "
            "USER:PASSWORD@ before its host"
        )
    return "check the address and the network, or try again later"
