"""Hostile input for property tests: texts, names, nested values, damaged bytes.

    @property_of(st.binary())
    def test_any_file_is_read_or_refused(content, tmp_path):
        (tmp_path / "x").write_bytes(content)
        takes_or_refuses(lambda: read(tmp_path / "x"))

A property is tested on a few examples by default and on many under ``-m slow``, the same ones every
time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ltbench.errors import UserError

FEW, MANY = 25, 1_000  # examples
SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=timedelta(seconds=20),  # of an example, generous on a busy machine
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)

NAMES = [  # of folders, which YAML takes for something else
    *("2024-01-01", "~", "#1", "a #b", "null", "Null", "yes", "no", "on", "1e3", "1e-3", "007"),
    *("1:30", "0x10", "1_000", ".inf", ".nan", "a: b", "[raw] x", "{a}", "@x", "*x", "&x", "!x"),
    *("%x", "`x`", "'x'", '"x"', "- x", "? x", "|", ">", "=", "a=b", "<<", "..", "a b", "ü", "名"),
]

text = st.text(max_size=20)
"""Any text, control characters, half characters and all."""

printable = st.one_of(
    st.sampled_from(NAMES),
    st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=20),
)
"""Text that a folder may be called."""

paths = st.one_of(
    printable,
    text,
    st.lists(printable, min_size=1, max_size=4).map("/".join),
    st.sampled_from(
        ["/", "/dev/null", "../../x", "a/../../x", "~/x", "~nobody/x", "\0", "x" * 300]
    ),
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400]),
    st.floats(),
    text,
    printable,
)

json_values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(text, printable), inner, max_size=4)
    ),
    max_leaves=12,
)
"""Whatever JSON can hold, NaN and numbers of any size included."""


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """Return a tree of plain data with one to three places replaced, removed or added to."""
    for _ in range(draw(st.integers(1, 3))):
        tree = _changed(draw, tree, draw(st.integers(0, 6)))
    return tree


def _changed(draw: st.DrawFn, node: Any, depth: int) -> Any:
    keys = list(node) if isinstance(node, dict) else range(len(node) if _is_list(node) else 0)
    if not keys or not depth:
        return draw(json_values)
    copy = dict(node) if isinstance(node, dict) else list(node)
    key = draw(st.sampled_from(list(keys)))
    what = draw(st.sampled_from(["deeper", "deeper", "deeper", "remove", "add"]))
    if what == "deeper":
        copy[key] = _changed(draw, copy[key], depth - 1)
    elif what == "remove":
        del copy[key]
    elif isinstance(copy, dict):
        copy[draw(text)] = draw(json_values)
    else:
        copy.append(draw(json_values))
    return copy


def _is_list(node: Any) -> bool:
    return isinstance(node, list | tuple)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Return bytes that were cut, flipped, doubled or filled with something else."""
    at = draw(st.integers(0, max(0, len(content) - 1)))
    what = draw(st.sampled_from(["cut", "flip", "flip", "insert", "double", "zero"]))
    if what == "cut":
        return content[:at]
    if what == "flip":
        flipped = content[at] ^ (1 << draw(st.integers(0, 7))) if content else 0
        return content[:at] + bytes([flipped]) + content[at + 1 :]
    if what == "insert":
        return content[:at] + draw(st.binary(min_size=1, max_size=9)) + content[at:]
    if what == "double":
        return content[:at] + content
    size = draw(st.integers(1, 64))
    return content[:at] + bytes(size) + content[at + size :]


def takes_or_refuses(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return a call's result, or None and the lines of a `UserError`; all else is raised."""
    try:
        return call(), []
    except UserError as error:
        lines = str(error).split("\n")
    assert all(0 < len(line) < 5_000 for line in lines), lines
    return None, lines


def property_of(
    strategy: st.SearchStrategy[Any], few: int = FEW, many: int = MANY
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that makes a test of a check on one value.

    Args:
        strategy: draws the values, the first argument of the check; the others are fixtures.
        few: examples by default.
        many: examples under ``-m slow``.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        _, *fixtures = inspect.signature(check).parameters

        def test(examples: int, **made: Any) -> None:
            @settings(SETTINGS, max_examples=examples)
            @given(strategy)
            def run(value: Any) -> None:
                check(value, **made)

            run()

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = ("examples", *fixtures)
        test.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
        test.__doc__, test.__module__ = check.__doc__, check.__module__
        choices = [few, pytest.param(many, marks=pytest.mark.slow)]
        return pytest.mark.parametrize("examples", choices)(test)

    return decorate
