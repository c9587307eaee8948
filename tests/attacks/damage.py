"""Ways to damage files: flipped bits, cuts, zeroed pages, hostile values in every field."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, float("nan"),
    float("inf"), "", "x", "../../x", "/etc/passwd", "\x1b[31mred", "a\0b", "\ud800", "é" * 5000,
    "9" * 5000, "<script>x", "$(touch x)", [], {}, [[]], [None], ["x"] * 3, {"x": {"y": [1]}},
    {"__class__": "x"}, "http://127.0.0.1:9/x", "file:///etc/passwd",
)  # fmt: skip


def deep(levels: int = 20_000) -> str:
    """Return JSON that is nested deeper than Python's stack."""
    return "[" * levels + "]" * levels


def flip(path: Path, rng: random.Random) -> str:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    at, bit = rng.randrange(len(data)), rng.randrange(8)
    data[at] ^= 1 << bit
    path.write_bytes(data)
    return f"{path.name}: bit {bit} of byte {at}"


def cut(path: Path, rng: random.Random) -> str:
    """Cut a file off somewhere."""
    size = path.stat().st_size
    keep = rng.choice([0, 1, size // 2, size - 1, rng.randrange(size)])
    with path.open("r+b") as file:
        file.truncate(keep)
    return f"{path.name}: cut at {keep} of {size}"


def zero(path: Path, rng: random.Random) -> str:
    """Zero a part of a file, as a disk does that lost a page."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data)) // 512 * 512
    data[at : at + 4096] = bytes(len(data[at : at + 4096]))
    path.write_bytes(data)
    return f"{path.name}: zeros at {at}"


def damaged(
    *patterns: str, ways: Sequence[Callable[[Path, random.Random], str]] = (flip, flip, cut, zero)
) -> Callable[[Path, random.Random, int], str]:
    """Return a damage of one of the files that match."""

    def damage(folder: Path, rng: random.Random, number: int) -> str:
        files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
        return ways[number % len(ways)](rng.choice(files), rng)

    return damage


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in a tree, the first two of a list."""
    if at:
        yield at
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*at, key))
    elif isinstance(tree, list):
        for number, value in enumerate(tree[:2]):
            yield from places(value, (*at, number))


def put(tree: Any, at: tuple[Any, ...], value: Any) -> None:
    """Set the value at a place."""
    for key in at[:-1]:
        tree = tree[key]
    tree[at[-1]] = value


def remove(tree: Any, at: tuple[Any, ...]) -> None:
    """Remove the value at a place."""
    for key in at[:-1]:
        tree = tree[key]
    del tree[at[-1]]


def edit_tree(content: Any, rng: random.Random, number: int) -> tuple[Any, str]:
    """Change one place of a tree: most often to a hostile value."""
    where = list(places(content))
    at = where[number % len(where)] if rng.random() < 0.7 else rng.choice(where)
    kind = rng.random()
    if kind < 0.08:
        remove(content, at)
        return content, f"{at} removed"
    if kind < 0.12 and isinstance(at[-1], str):
        put(content, (*at[:-1], at[-1] + "\x1b"), 1)
        return content, f"a field beside {at}"
    value = rng.choice(HOSTILE)
    put(content, at, value)
    return content, f"{at} = {str(value)[:40] if value != 10**400 else '10^400'!r}"


def edited_json(
    pattern: str, seal: Callable[[Any], Any] | None = None
) -> Callable[[Path, random.Random, int], str]:
    """Return a damage that edits a JSON file by hand and, perhaps, puts its hashes right."""

    def damage(folder: Path, rng: random.Random, number: int) -> str:
        path = rng.choice(sorted(folder.glob(pattern)))
        if number % 40 == 39:
            path.write_text(deep())
            return f"{path.name}: deep"
        content, note = edit_tree(json.loads(path.read_bytes()), rng, number)
        try:
            content = seal(content) if seal else content
        except Exception:  # what cannot be sealed is tried without
            note += " (not sealed)"
        path.write_text(_text(content), errors="surrogatepass")
        return f"{path.name}: {note}"

    return damage


def _text(content: Any) -> str:
    import sys

    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(content)
    finally:
        sys.set_int_max_str_digits(digits)
