"""Bounds of the Hub's answers in time and size, which its client does not have."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ltbench.errors import UserError

T = TypeVar("T")

DEADLINE = 120.0  # seconds for a whole answer, or during which a download must make progress
SLOWEST = 1024  # bytes a second, below which a download counts as broken
ANSWER = 64 * 2**20  # bytes of an answer of the Hub's interface
REFUSAL = 2**20  # bytes of an error or a redirect


class TooLarge(UserError):
    """More bytes arrive than were announced or expected."""


def within(call: Callable[[], T], seconds: float, progress: Callable[[], int]) -> T:
    """Return the result of a call, unless it takes too long.

    The call runs in a thread of its own, which is left behind after a timeout.

    Args:
        call: function to run.
        seconds: time for the call, or for ``SLOWEST`` bytes a second of progress.
        progress: returns the bytes received so far.

    Raises:
        TimeoutError: it took too long.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=work, daemon=True, name="hub").start()
    before = progress()
    began = time.monotonic()
    while not done.wait(seconds):
        now = progress()
        if 0 <= now - before < SLOWEST * (time.monotonic() - began):  # below 0: it was restarted
            raise TimeoutError(f"no answer within {seconds:g} s")
        before, began = now, time.monotonic()
    if errors:
        raise errors[0]
    return results[0]


class Meter:
    """Counts the bytes of a download and ends it when there are too many.

    Args:
        size: expected size in bytes, if it is known.
        limit: largest size in bytes otherwise; the announced size is a limit too.
        quiet: show no progress bar.
    """

    def __init__(self, size: int | None, limit: int | None, quiet: bool) -> None:
        self.limit = limit if size is None else size
        self.expected = f"{'at most ' if size is None else ''}{self.limit or 0:,}"
        self.quiet, self.received = quiet, 0

    def bar(self) -> type[Any]:
        """Return a class of progress bars for the Hub's client that count into this meter."""
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

        meter = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:
                announced = options.get("total")
                meter.received = int(options.get("initial") or 0)
                if announced is not None:
                    meter.check(int(announced))
                    meter.limit, meter.expected = int(announced), f"{announced:,}"
                if meter.quiet:
                    options["disable"] = True
                super().__init__(*args, **options)  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> bool | None:
                meter.received += int(n or 0)
                meter.check(meter.received)
                super().update(n)
                return None

        return Bar

    def check(self, size: int) -> None:
        """Raise ``TooLarge`` if a size is above the limit."""
        if self.limit is not None and size > self.limit:
            raise TooLarge(
                f"expected {self.expected} bytes, found {size:,} or more; nothing was kept, tell "
                "the owner of the repository"
            )


def bound_answers() -> None:
    """Bound the answers that the Hub's client reads into memory; a second call does nothing."""
    from huggingface_hub import get_session

    hooks = get_session().event_hooks["response"]
    if _bounded not in hooks:
        hooks.append(_bounded)


def _bounded(response: Any) -> None:
    path = response.request.url.path
    if not 200 <= response.status_code < 300:
        limit = REFUSAL
    elif path.startswith("/api/") and not path.startswith("/api/resolve-cache/"):
        limit = ANSWER
    else:
        return  # a file, which a ``Meter`` counts
    inner = response.stream
    base = next((c for c in type(inner).__mro__ if c.__name__ == "SyncByteStream"), None)
    if base is not None:
        response.stream = _stream_class(base)(inner, limit)


def _stream_class(base: type[Any]) -> type[Any]:
    class Bounded(base):  # type: ignore[misc]
        """Stream that ends with an error after a number of bytes."""

        def __init__(self, inner: Any, limit: int) -> None:
            self.inner, self.limit = inner, limit

        def __iter__(self) -> Iterator[bytes]:
            received = 0
            for data in self.inner:
                received += len(data)
                if received > self.limit:
                    raise TooLarge(f"the answer is larger than {self.limit:,} bytes")
                yield data

        def close(self) -> None:
            self.inner.close()

    return Bounded
