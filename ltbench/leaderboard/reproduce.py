"""Command that reproduces a record."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ltbench.config import plugins
from ltbench.config.validation import build_recipe
from ltbench.data import DATASETS
from ltbench.digest import canonical
from ltbench.errors import UserError
from ltbench.records.record import Record


def changed(record: Record) -> dict[str, Any]:
    """Return the options that differ from the recipe of the record's name, with their values.

    Options of a part that was exchanged for another one are left out.
    """
    resolved = record.recipe.resolved
    found = {path: _at(resolved, path) for path in record.recipe.overrides}
    if not all(found.values()):  # a digest may leave out what is at its default
        with suppress(UserError):
            full = build_recipe({**resolved, "name": record.recipe.name}).tree()
            found = {path: value or _at(full, path) for path, value in found.items()}
    return {path: value[0] for path, value in found.items() if value}


def command(seeds: Sequence[Record]) -> str:
    """Return the command that trains what some records of one recipe hold.

    Args:
        seeds: records that differ in the seed only.
    """
    first = seeds[0]
    words = ["ltbench", "run", f"recipe={first.recipe.name}"]
    words.append(f"seed={','.join(str(record.seed) for record in seeds)}")
    if not DATASETS.facts(first.dataset.name).rootless:
        words.append("data.root=DIR")
    used = plugins.marks(first.recipe.resolved)
    words += [f"plugins={','.join(mark.partition('@')[0] for mark in used)}"] if used else []
    options = {path: v for path, v in changed(first).items() if not path.endswith(".plugin")}
    for path in sorted(options, key=lambda path: (not path.endswith(".name"), path)):
        value = options[path]  # names of parts first: their options are those of the part
        text = value if isinstance(value, str) else canonical(value)
        words.append(f"{path.removesuffix('.name')}={text}")
    return " ".join(shlex.quote(word) for word in words)


def _at(tree: Any, path: str) -> list[Any]:
    """Return the value at a dotted path of mappings and lists; nothing if there is none."""
    for part in path.split("."):
        if isinstance(tree, dict) and part in tree:
            tree = tree[part]
        elif isinstance(tree, (list, tuple)) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            return []
    return [tree]
