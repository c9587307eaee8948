"""HTTP requests whose answers end: a deadline for each head and each wait for data."""

from __future__ import annotations

import http.client
import io
import socket
import time
import urllib.request
from typing import Any
from urllib.parse import urljoin, urlsplit

from ltbench.errors import UserError


def open_request(request: urllib.request.Request, timeout: float) -> Any:
    """Return the answer to a request: a ``http.client.HTTPResponse`` with ``limit_wait``.

    Only http and https are used, also after a redirect; https never redirects to http.

    Args:
        request: GET request.
        timeout: seconds to connect, for each byte, and for a whole head.

    Raises:
        UserError: the server redirects to an address that is not followed.
        OSError, http.client.HTTPException: there is no answer, or an error is the answer.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        _Http(),
        _Https(),
    ):
        opener.add_handler(handler)
    return opener.open(request, timeout=timeout)


class _Stream(io.RawIOBase):
    """Bytes of a socket until a deadline.

    Args:
        sock: to read from.
        timeout: seconds for each byte.
    """

    def __init__(self, sock: socket.socket, timeout: float | None) -> None:
        self._raw = sock.makefile("rb", buffering=0)
        self._sock, self._timeout = sock, timeout
        self.deadline: float | None = None if timeout is None else time.monotonic() + timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._sock.settimeout(left if self._timeout is None else min(left, self._timeout))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """Answer of a server; its head must be complete within the connection's timeout."""

    def __init__(self, sock: socket.socket, *args: Any, **named: Any) -> None:
        super().__init__(sock, *args, **named)
        self.fp.close()
        self._stream = _Stream(sock, sock.gettimeout())
        self.fp = io.BufferedReader(self._stream)

    def limit_wait(self, seconds: float) -> None:
        """Set a deadline, in seconds from now, for all further reads."""
        self._stream.deadline = time.monotonic() + seconds


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _SecureConnection(http.client.HTTPSConnection):
    response_class = _Response


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_Connection, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_SecureConnection, req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects between web servers, without their bodies; credentials stay at a host."""

    def http_error_302(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any
    ) -> Any:
        fp.close()  # the base class would read the body, which may have no end
        target = urlsplit(
            urljoin(req.full_url, headers.get("Location") or headers.get("URI") or "")
        )
        allowed = ("https",) if req.type == "https" else ("http", "https")
        if target.scheme not in allowed:
            raise UserError(
                f"{req.type}://{req.host} redirects to {target.scheme}://{target.hostname}, which "
                f"is not followed: only {' and '.join(allowed)} are; give the address of the data "
                "themselves"
            )
        return super().http_error_302(req, io.BytesIO(), code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and _origin(newurl) == _origin(req.full_url):
            for name, value in req.unredirected_hdrs.items():
                new.add_unredirected_header(name, value)
        return new


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc
