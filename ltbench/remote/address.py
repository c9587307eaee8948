"""Addresses of folders on web servers, kept apart from the credentials that open them."""

from __future__ import annotations

import base64
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ltbench.errors import UserError

if TYPE_CHECKING:
    import urllib.request
    from urllib.parse import SplitResult

CREDENTIALS = "LTBENCH_CREDENTIALS"  # environment variable: JSON, address -> [user, query]


@dataclass(frozen=True)
class Address:
    """Folder on a web server.

    User, password and query come from ``root`` or, if it has none, from an earlier
    ``without_credentials`` of the same address in this process or the one that started it.

    Args:
        root: ``http(s)://[USER:PASSWORD@]HOST/FOLDER[?QUERY]``.
    """

    root: str

    def shown(self, path: str = "") -> str:
        """Return the address of a file for messages, without credentials."""
        return f"`{'/'.join(filter(None, [self.public, path]))}`"

    @property
    def public(self) -> str:
        """The address without user, password, query and fragment."""
        parts = _split(self.root)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, parts.path, "", "")).rstrip("/")

    @property
    def identity(self) -> str:
        """Text that no two addresses share; user and password are left out."""
        query = self._secrets()[1]
        return f"{self.public}?{query}" if query else self.public

    def request(self, path: str) -> urllib.request.Request:
        """Return the request of a file, with the user's credentials if there are any."""
        import urllib.request

        parts = _split(self.public)
        user, query = self._secrets()
        at = f"{parts.path.rstrip('/')}/{quote(path)}"
        request = urllib.request.Request(urlunsplit((parts.scheme, parts.netloc, at, query, "")))
        if user:
            login = base64.b64encode(unquote(user).encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {login}")
        return request

    def _secrets(self) -> tuple[str, str]:
        """Return ``USER:PASSWORD`` and the query, both as written in the address."""
        parts = _split(self.root)
        found = parts.netloc.rpartition("@")[0], parts.query
        if any(found):
            return found
        return _kept().get(self.public, ("", ""))


def without_credentials(root: str) -> str:
    """Return an address without user, password, query and fragment.

    They are kept in the environment of this process and its children, so that ``Address`` finds
    them; what is written to a file holds the returned address.

    Args:
        root: a path, or an address.
    """
    if "://" not in root:
        return root
    address, parts = Address(root), _split(root)
    user, query = parts.netloc.rpartition("@")[0], parts.query
    if not (user or query or parts.fragment):
        return root
    if user or query:
        os.environ[CREDENTIALS] = json.dumps({**_kept(), address.public: [user, query]})
    return address.public


def _kept() -> dict[str, tuple[str, str]]:
    """Return user and query by public address."""
    try:
        found = json.loads(os.environ.get(CREDENTIALS, "{}"))
        return {str(root): (str(user), str(query)) for root, (user, query) in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f'{CREDENTIALS} is not as expected: {{"https://HOST/FOLDER": ["USER:PASSWORD", '
            '"QUERY"]}; correct or unset it'
        ) from error


def _split(root: str) -> SplitResult:
    try:
        return urlsplit(root)
    except ValueError as error:  # e.g. half of an IPv6 address
        shown = re.sub(r"//[^/]*@", "//", root.partition("?")[0])
        raise UserError(f"`{shown}` is no address: {error}") from error
