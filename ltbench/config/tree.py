"""Trees of plain data by dotted key, and where each of their values comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ltbench.config.schema import DEEPEST
from ltbench.config.validation import Origins, Tree
from ltbench.config.values import Word, contradictions
from ltbench.errors import UserError, brief, visible

COMMAND_LINE, ARGUMENT = "command line", "argument"  # where values given with a call come from


def assign_all(
    tree: Tree, origins: Origins, values: Mapping[str, Any], origin: str | None = None
) -> None:
    """Set dotted keys in a tree of plain data, whatever their order.

    A key is set before those inside it.

    Args:
        tree: is changed.
        origins: is changed.
        values: by dotted key.
        origin: where they come from; None is the command line for words, else the call.

    Raises:
        UserError: two of them contradict each other, or a key leads nowhere.
    """
    where = f" (in {origin})" if origin else ""
    for key in values:
        if not isinstance(key, str) or "" in key.split(".") or key.count(".") > DEEPEST:
            shown = visible(key) if isinstance(key, str) else brief(key)
            raise UserError(f"expected a key such as `stages.0.epochs`, found `{shown}`{where}")
    problems = contradictions(values)
    if problems:
        raise UserError("\n".join(f"{problem}{where}" for problem in problems))
    for key in sorted(values, key=lambda k: (k.count("."), k)):
        value = values[key]
        given = COMMAND_LINE if isinstance(value, Word) else ARGUMENT
        assign(tree, origins, key, value, origin or given)


def assign(tree: Tree, origins: Origins, key: str, value: Any, origin: str) -> None:
    """Set a dotted key, list positions allowed, in a tree of plain data.

    A name in place of a `{name: ...}` mapping picks another part and drops the old one's options.

    Raises:
        UserError: the key goes through a value that has no such position.
    """
    *steps, last = key.split(".")
    node: Any = tree
    for i, step in enumerate(steps):
        here = ".".join(steps[:i]) or "the recipe"
        if isinstance(node, list):
            node = node[_position(node, step, key, here)]
        elif isinstance(node, dict):
            node = node.setdefault(step, {})
        else:
            raise _no_field(key, here, node, step)
        if node is None or isinstance(node, str):
            node = _opened(node)
            _put(tree, steps[: i + 1], node)
    if isinstance(node, list):
        node[_position(node, last, key, ".".join(steps))] = value
    elif isinstance(node, dict):
        old = node.get(last)
        if isinstance(value, str) and isinstance(old, dict) and old.get("name") == value:
            return
        node[last] = value
    else:
        raise _no_field(key, ".".join(steps), node, last)
    for known in [k for k in origins if k == key or k.startswith(key + ".")]:
        del origins[known]
    mark(origins, value, key, origin)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted path and value of every leaf of plain data."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        here = f"{path}.{key}" if path else str(key)
        nested = isinstance(value, dict) or (
            isinstance(value, list) and any(isinstance(v, dict) for v in value)
        )
        if nested and value:
            yield from leaves(value, here)
        else:
            yield here, value


def _opened(node: str | None) -> Any:
    """Return the mapping that holds a key; `update: plot` is short for a part's name."""
    content = node.content() if isinstance(node, Word) else node
    if isinstance(content, dict | list):
        return content
    return {} if content is None else {"name": str(node)}


def _no_field(key: str, where: str, node: Any, field: str) -> UserError:
    """Return the error for a key that goes through a value without fields."""
    return UserError(
        f"`{visible(key)}`: `{visible(where)}` is {brief(node)} and has no field `{visible(field)}`"
    )


def _position(node: list[Any], step: str, key: str, where: str) -> int:
    """Return the position in a list that a step of a key names.

    Raises:
        UserError: there is no such position.
    """
    if not re.fullmatch("0|[1-9][0-9]{0,3}", step) or int(step) >= len(node):
        raise UserError(
            f"`{visible(key)}`: `{visible(where)}` is a list of {len(node)}; expected a position "
            f"0..{len(node) - 1}, found `{visible(step)}`"
        )
    return int(step)


def _put(tree: Tree, steps: list[str], value: Any) -> None:
    """Replace the value at a path that is there."""
    node: Any = tree
    for step in steps[:-1]:
        node = node[int(step)] if isinstance(node, list) else node[step]
    node[int(steps[-1]) if isinstance(node, list) else steps[-1]] = value


def mark(origins: Origins, value: Any, path: str, origin: str) -> None:
    """Note where a value, or each leaf in it, comes from.

    Args:
        origins: is changed.
        value: of plain data.
        path: its dotted key; empty for the whole tree.
        origin: where it comes from.
    """
    if isinstance(value, Word):
        origins[path] = origin
        value = value.content()
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            mark(origins, item, f"{path}.{key}" if path else str(key), origin)
    else:
        origins[path] = origin
