"""Errors of Hub requests as one-line messages; transient ones are retried."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ltbench.errors import UserError
from ltbench.remote import limits

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

T = TypeVar("T")
_UNREADABLE = (TypeError, LookupError, AttributeError, RecursionError)  # of an answer's JSON

TRIES = 4
PAUSE = 0.5  # seconds before the second try, doubled before each further one
PATIENCE = 20.0  # seconds after which nothing is tried again; the client repeats some calls itself


class Missing(UserError):
    """The Hub, or the cache in offline mode, has no such repository, revision or file."""


class Unreachable(UserError):
    """The Hub gave no usable answer to any of several requests."""


class Conflict(UserError):
    """Someone else committed in the meantime: read the repository again and repeat the commit."""


@dataclass(frozen=True)
class Fault:
    """Meaning of an exception of the client.

    Args:
        reason: one line without secrets.
        error: class of the exception to raise.
    """

    reason: str
    error: type[UserError] = UserError


def attempt(
    what: str,
    call: Callable[[], T],
    *,
    tries: int = TRIES,
    seconds: float | None = None,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """Return the result of a call to the Hub, repeated while the fault may pass.

    Args:
        what: file and repository, as messages name them.
        call: one attempt.
        tries: attempts at most.
        seconds: deadline of one attempt; by default ``limits.DEADLINE``.
        progress: returns the bytes received so far; while they grow, there is no deadline.

    Raises:
        UserError: one line that names ``what``; no exception of the client is attached to it,
            since those hold the request and its token.
    """
    begun = time.monotonic()
    limits.bound_answers()
    for number in range(1, tries + 1):
        try:
            return limits.within(call, seconds or limits.DEADLINE, progress)
        except limits.TooLarge as error:
            raise limits.TooLarge(f"{what}: {error}") from None
        except UserError:
            raise
        except Exception as error:
            found = explain(error)
            if found is None:
                raise
            fault = found
        if fault.error is not Unreachable or time.monotonic() - begun > PATIENCE:
            break
        if number < tries:
            time.sleep(PAUSE * 2 ** (number - 1))
    raise fault.error(f"{what}: {fault.reason}")


def explain(error: BaseException) -> Fault | None:
    """Return the meaning of an exception of the Hub, the net or the disk, or ``None``."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return _refused(error)
    if isinstance(error, _UNREADABLE) and _raised_in(error, ("huggingface_hub", "httpx", "json")):
        return Fault(
            f"{_endpoint()} gave an answer that its client cannot read "
            f"({type(error).__name__}: {one_line(error)}); check HF_ENDPOINT, or try again later"
        )
    if error.__cause__ is not None and isinstance(error, (OSError, RuntimeError, ValueError)):
        return explain(error.__cause__) or Fault(one_line(error))
    if isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)):
        return Fault(
            "not in the cache, and offline mode is on; unset HF_HUB_OFFLINE, or fetch it first",
            Missing,
        )
    if isinstance(error, errors.LocalTokenNotFoundError):
        return Fault("you are not logged in; run `hf auth login` or set HF_TOKEN")
    if _is_a(error, "TimeoutException") or isinstance(error, TimeoutError):
        return Fault(f"{_endpoint()} did not answer in time; try again later", Unreachable)
    if _is_a(error, "ConnectError"):
        return Fault(f"cannot connect to {_endpoint()}; check the network", Unreachable)
    if _is_a(error, "HTTPError") or isinstance(error, ConnectionError):
        return Fault(f"the connection broke ({type(error).__name__}); try again", Unreachable)
    if str(error).startswith("Consistency check failed"):
        return Fault("it arrived incomplete; try again", Unreachable)
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename else ""
        return Fault(f"{error.strerror}{where}; make room or use another folder")
    if isinstance(error, (OSError, RuntimeError)):  # those of hf_xet carry no more than a message
        return Fault(one_line(error), Unreachable)
    ours = type(error).__module__.startswith("huggingface_hub")
    return Fault(one_line(error)) if ours or isinstance(error, ValueError) else None


def one_line(text: object) -> str:
    """Return a message as one line, without tokens, passwords and signatures of addresses."""
    line = " ".join(str(text).split())
    line = re.sub(r"(https?://[^\s?]+)\?\S+", r"\1", line)
    line = re.sub(r"(://)[^\s/@]+@", r"\1", line)
    line = re.sub(r"hf_[A-Za-z0-9]{8,}|(?i:bearer)\s+\S+", "[token]", line)
    return line[:300] or type(text).__name__


def _refused(error: HfHubHTTPError) -> Fault:
    """Explain an answer that is an HTTP error."""
    from huggingface_hub import errors

    status = error.response.status_code
    said = one_line(error.server_message or f"HTTP {status}")
    if isinstance(error, errors.GatedRepoError):
        return Fault(
            f"access to it is granted on request (HTTP {status}); ask for it on its page at "
            f"{_endpoint()}, then log in with `hf auth login`",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        if status == 401:
            advice = "it is private and you are not logged in; check the name or `hf auth login`"
        else:
            advice = "it is private and your token may not read it; check the name and the token"
        return Fault(f"there is no such repository at {_endpoint()}, or {advice}", Missing)
    if isinstance(error, errors.RevisionNotFoundError):
        return Fault("the repository has no such revision; check branch, tag or commit", Missing)
    if isinstance(error, errors.EntryNotFoundError):
        return Fault("the repository has no such file at this revision", Missing)
    if status == 401:
        return Fault(
            f"{_endpoint()} does not accept the token, or wants one; log in with `hf auth login`"
        )
    if status == 403:
        return Fault(
            f"your token does not permit this ({said}); use one with write access to this "
            "repository"
        )
    if status == 412:
        return Fault("someone else committed in the meantime; read it again and repeat", Conflict)
    if status in (408, 429) or status >= 500:
        reasons = {429: "asks to come back later", 408: "timed out"}
        return Fault(
            f"{_endpoint()} {reasons.get(status, 'reports a server error')} (HTTP {status}); try "
            "again later",
            Unreachable,
        )
    return Fault(f"{_endpoint()} refused it (HTTP {status}): {said}")


def _is_a(error: BaseException, name: str) -> bool:
    """Return whether an error has a class of this name; the client's HTTP library may change."""
    return any(c.__name__ == name and "http" in c.__module__ for c in type(error).__mro__)


def _raised_in(error: BaseException, packages: tuple[str, ...]) -> bool:
    """Return whether an error comes from the code of one of these packages."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    module = str(place.tb_frame.f_globals.get("__name__")) if place is not None else ""
    return module.startswith(packages)


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT
