"""Comparison of a record with the recipe of its name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ltbench.config import plugins
from ltbench.config.files import read_tree
from ltbench.errors import UserError
from ltbench.records.making import changes
from ltbench.records.record import Record

if TYPE_CHECKING:
    from ltbench.config.recipe import Recipe

UNLIKE = "not today's recipe"


class OtherVersion(UserError):
    """Another version of ltbench wrote the record: its recipe cannot be compared here."""


def check_recipe(record: Record, get: Callable[[str], Recipe] | None = None) -> str:
    """Check that the recipe of this name is what was run, but for the overrides listed.

    Args:
        record: sound.
        get: returns a recipe by name; by default it is read anew.

    Raises:
        OtherVersion: this version resolves the recipe in another way.
        UserError: the overrides, or the options that shorten it, are not those listed.
    """
    from ltbench.config.validation import build_recipe

    name, stated = record.recipe.name, record.recipe.digest
    away = plugins.missing(record.recipe.resolved)
    if away:
        raise OtherVersion(f"recipe `{name}` cannot be built: {away}")
    try:
        recipe = build_recipe({**record.recipe.resolved, "name": name})
    except UserError as error:
        raise OtherVersion(
            f"recipe `{name}` cannot be built by this version of ltbench "
            f"({str(error).splitlines()[0]}); use the version that ran it, {record.code.version}"
        ) from error
    if recipe.digest != stated:
        raise OtherVersion(
            f"recipe `{name}`: this version of ltbench resolves it to digest {recipe.digest}, the "
            f"record says {stated}; submit it with the version that ran it, {record.code.version}"
        )
    overrides, shortened = changes(recipe, get)
    for what, now, then in (
        ("overrides", overrides, record.recipe.overrides),
        ("shortening options", shortened, record.shortened),
    ):
        if tuple(now) != then:
            raise UserError(
                f"recipe `{name}` is not what was run: the record names as {what} "
                f"{', '.join(then) or 'nothing'}, against today's recipe they are "
                f"{', '.join(now) or 'nothing'}; run the recipe as it is now"
            )
    if not registered(name):
        return f"recipe {name} is not registered, so there is nothing to compare it with"
    but = f" but for {', '.join(overrides)}" if overrides else ""
    return f"recipe {name} is what was run{but}"


def remark(record: Record) -> str:
    """Return a table's note on the name of a record's recipe; nothing if it is that recipe.

    The recipe's file is compared with the resolved recipe without building it, so that no method
    is imported. A record of an older version may differ as well.
    """
    if record.origin == "paper":
        return ""
    if not registered(record.recipe.name):
        return "unregistered recipe"
    stages, stated = _stated(record.recipe.name)
    resolved = record.recipe.resolved
    known = (*record.recipe.overrides, *record.shortened)
    run = len(resolved.get("stages", ()))
    if run > stages or (run < stages and not known):
        return UNLIKE
    for path, steps, value in stated:
        found = _leaf(resolved, steps)
        if found is None or found == value or f"{path}.name" in known:
            continue
        if not any(f"{path}.".startswith(f"{key}.") for key in known):
            return UNLIKE
    return ""


def _leaf(tree: Any, steps: tuple[str, ...]) -> Any:
    """Return a value of plain data by its path, for a part its name; ``None`` if it has none."""
    for step in steps:
        if isinstance(tree, list) and step.isdecimal() and int(step) < len(tree):
            tree = tree[int(step)]
        elif isinstance(tree, dict) and step in tree:
            tree = tree[step]
        else:
            return None
    if isinstance(tree, dict) and tree:
        return tree.get("name")  # `update: plot` for `{name: plot}`
    return None if tree and _nested(tree) else tree


@functools.lru_cache(maxsize=2048)
def registered(name: str) -> bool:
    """Return whether there is a recipe of this name; a file's path is none."""
    if name.endswith((".yaml", ".yml")):
        return False
    try:
        _stated(name)
    except UserError:
        return False
    return True


@functools.lru_cache(maxsize=2048)
def _stated(name: str) -> tuple[int, tuple[tuple[str, tuple[str, ...], Any], ...]]:
    """Return the values that a registered recipe's file states and a digest counts.

    Returns:
        The number of its stages; of each value the path, its steps and the value.
    """
    tree, _ = read_tree(name)
    kept = {key: tree[key] for key in ("data", "backbone", "stages", "run") if key in tree}
    return len(tree.get("stages", ())), tuple(_leaves(kept, ()))


def _leaves(tree: Any, steps: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yield path, steps and value of every leaf of plain data; a key may hold a dot."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        here = (*steps, str(key))
        if value and _nested(value):
            yield from _leaves(value, here)
        else:
            yield ".".join(here), here, value


def _nested(value: Any) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and any(isinstance(v, dict) for v in value)
    )
