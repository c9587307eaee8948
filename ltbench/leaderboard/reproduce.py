"""Command that reproduces a record."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ltbench.config import plugins
from ltbench.config.tree import leaves
from ltbench.config.validation import build_recipe
from ltbench.data import DATASETS
from ltbench.digest import canonical
from ltbench.errors import UserError
from ltbench.records.record import Record


def changed(record: Record) -> dict[str, Any]:
    """Return the options that differ from the recipe of the record's name, with their values.

    Options of a part that was exchanged for another one are left out.
    """
    resolved, overrides = record.recipe.resolved, record.recipe.overrides
    found = dict(leaves(resolved))
    if not found.keys() >= set(overrides):  # a digest may leave out what is at its default
        with suppress(UserError):
            full = build_recipe({**resolved, "name": record.recipe.name}).tree()
            found = {**dict(leaves(full)), **found}
    kept = [path for path in overrides if path in found]
    whole = {path.rpartition(".")[0] for path in kept}  # said again by what they hold
    return {path: found[path] for path in kept if path not in whole}


def command(seeds: Sequence[Record], options: Mapping[str, Any] | None = None) -> str:
    """Return the command that repeats the runs of some records of one recipe.

    Args:
        seeds: records that differ in the seed only.
        options: ``changed`` of the first of them, if it is at hand.
    """
    first = seeds[0]
    if first.imported is not None:
        return _import(first, changed(first) if options is None else options)
    words = ["ltbench", "run", f"recipe={first.recipe.name}"]
    words.append(f"seed={','.join(str(record.seed) for record in seeds)}")
    if not DATASETS.facts(first.dataset.name).rootless:
        words.append("data.root=DIR")
    used = plugins.marks(first.recipe.resolved)
    words += [f"plugins={','.join(mark.partition('@')[0] for mark in used)}"] if used else []
    options = changed(first) if options is None else options
    options = {path: v for path, v in options.items() if not path.endswith(".plugin")}
    for path in sorted(options, key=lambda path: (not path.endswith(".name"), path)):
        value = options[path]  # names of parts first: their options are those of the part
        text = value if isinstance(value, str) else canonical(value)
        words.append(f"{path.removesuffix('.name')}={text}")
    return " ".join(shlex.quote(word) for word in words)


def _import(record: Record, options: Mapping[str, Any]) -> str:
    """Return the command that imports the released file of a record again."""
    facts = record.imported
    assert facts is not None
    words = ["ltbench", "import"]
    if facts.release is not None:
        words += [f"release={facts.release}"]
    else:
        words += [f"file={facts.file}", f"recipe={record.recipe.name}", f"family={facts.family}"]
        words += [f"classes={facts.class_order}", f"sha256={facts.sha256}"]
    words += [] if DATASETS.facts(record.dataset.name).rootless else ["data.root=DIR"]
    data = {key: value for key, value in options.items() if key.startswith("data.")}
    words += [f"{key}={v if isinstance(v, str) else canonical(v)}" for key, v in data.items()]
    return " ".join(shlex.quote(word) for word in [*words, "out=DIR"])
