"""All keys of recipes and grids, the parts that they belong to, and the values that recipes set."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from ltbench.config.explain import Explanation, default_of, explained, matches, registry_of
from ltbench.config.files import list_recipes, read_tree
from ltbench.config.launcher import Launcher
from ltbench.config.recipe import Recipe
from ltbench.config.registry import registry as find_registry
from ltbench.config.schema import Config
from ltbench.config.selection import Select
from ltbench.errors import UserError, did_you_mean, visible

POSITION = re.compile(r"(?<=\.)[0-9]+(?=\.|$)")  # of a stage


@dataclass(frozen=True)
class Use:
    """Values that the recipes of the package set.

    Args:
        recipes: number of recipes that set the key.
        example: one of them.
        values: each value as it would be typed, with its number of recipes, most frequent first.
    """

    recipes: int
    example: str
    values: tuple[tuple[str, int], ...]


def all_keys() -> list[Explanation]:
    """Return every key that a recipe can have, one entry for each part that it belongs to.

    Stages are numbered `N`. The words of `ltbench run` that begin with `select` and `launcher` come
    last.
    """
    words = [*_walk(Select, "select.", (), ()), *_walk(Launcher, "launcher.", (), ())]
    named = [replace(one, key=one.key.removesuffix(".executor")) for one in words]
    return [*_walk(Recipe, "", (), ()), *named]


def find_keys(patterns: Sequence[str]) -> list[Explanation]:
    """Return the keys that match, those that mean the same for several parts as one.

    Args:
        patterns: as for ``explain``; the number of a stage may be any.

    Raises:
        UserError: one matches no key.
    """
    every = all_keys()
    found: list[Explanation] = []
    for pattern in patterns:
        general = POSITION.sub("N", pattern).removesuffix(".name")
        near = [e for e in every if matches(e.key, general)]
        if not near:  # the options of an update inside an update are those of any update
            near = [e for e in every if matches(e.key, general.replace(".after.", "."))]
        if not near:  # a key inside a mapping, such as an argument of the network
            near = [e for e in every if e.values.startswith("mapping") and _holds(e.key, general)]
        if not near:
            names = {part for e in every for part in (e.key, e.key.rpartition(".")[2])}
            hint = did_you_mean(general, names)
            raise UserError(
                f"`key`: no recipe has a key `{visible(pattern)}`{hint}; recipes/KEYS.md lists all"
            )
        found += [e for e in near if e not in found]
    return merged(found)


def merged(found: Sequence[Explanation]) -> list[Explanation]:
    """Return explanations with those that differ only in their parts made one."""
    parts: dict[Explanation, tuple[str, ...]] = {}
    for one in found:
        same = replace(one, parts=())
        parts[same] = (*parts.get(same, ()), *one.parts)
    order = list(dict.fromkeys(one.key for one in parts))
    entries = [replace(one, parts=of) for one, of in parts.items()]
    return sorted(entries, key=lambda e: order.index(e.key))


def uses(found: Sequence[Explanation]) -> list[Use]:
    """Return what the recipes of the package set for each of some keys."""
    counts: list[Counter[str]] = [Counter() for _ in found]
    names: list[list[str]] = [[] for _ in found]
    for name in list_recipes():
        tree, _ = read_tree(name)
        for count, used, one in zip(counts, names, found, strict=True):
            values = {_short(value) for value in _set_in(tree, one)}
            count.update(values)
            used += [name] * bool(values)
    return [
        Use(len(used), used[0] if used else "", tuple(count.most_common()))
        for count, used in zip(counts, names, strict=True)
    ]


def _walk(
    model: type[Any], prefix: str, parts: tuple[str, ...], above: tuple[str, ...]
) -> Iterator[Explanation]:
    """Yield the keys of some options and of what is inside them.

    Args:
        model: the options.
        prefix: of their keys.
        parts: that they belong to, e.g. ``("update=plot",)``.
        above: registries whose parts are already being walked, so that none holds itself.
    """
    for name, field in model.model_fields.items():
        key, registry = f"{prefix}{name}", registry_of(field)
        inner, many = _options_in(field.annotation)
        if inner is None or registry:
            yield replace(_general(key, model, name), parts=parts)
        if registry and registry not in above:
            table = find_registry(registry)
            for part in table.names():
                of = (", ".join([*parts, f"{name}={part}"]),)
                yield from _walk(table.options(part), f"{key}.", of, (*above, registry))
        elif inner is not None:
            yield from _walk(inner, f"{key}.N." if many else f"{key}.", parts, above)


def _general(key: str, model: type[Any], name: str) -> Explanation:
    """Return the explanation of a field, with its default in every mode of the options."""
    found = explained(key, model, name)
    mode = model.model_fields.get("mode")
    if mode is None or get_origin(mode.annotation) is not Literal:
        return found
    others = {m: default_of(model, name, {"mode": m}) for m in get_args(mode.annotation)}
    differing = [f"{v} with mode={m}" for m, v in others.items() if v != found.default]
    return replace(found, default=", ".join([found.default, *differing]))


def _options_in(annotation: Any) -> tuple[type[Any] | None, bool]:
    """Return the options inside a type, and whether it holds several of them."""
    for inner in (annotation, *get_args(annotation)):
        if isinstance(inner, type) and issubclass(inner, Config):
            return inner, get_origin(annotation) in (tuple, list)
    return None, False


def _holds(mapping: str, key: str) -> bool:
    """Return whether a key, or one that ends like it, is inside a mapping."""
    above = key.rpartition(".")[0]
    return bool(above) and (f"{key}.".startswith(f"{mapping}.") or mapping.endswith(f".{above}"))


def _set_in(tree: Any, one: Explanation) -> list[Any]:
    """Return the values of a key in a recipe's tree, of all its stages."""
    *above, last = one.key.split(".")
    nodes = [tree]
    for step in above:
        inside = [node for n in nodes for node in (n if step == "N" else [_at(n, step)])]
        nodes = [node for node in inside if isinstance(node, Mapping | list)]
    names = {part.rpartition("=")[2] for part in one.parts}
    held = [n for n in nodes if isinstance(n, Mapping) and last in n]
    return [n[last] for n in held if not names or n.get("name") in names]


def _at(node: Any, step: str) -> Any:
    return node.get(step) if isinstance(node, Mapping) else None


def _short(value: Any) -> str:
    """Return a value as it would be typed, a part by its name."""
    if isinstance(value, Mapping) and "name" in value:
        value = value["name"]
    return value if isinstance(value, str) else json.dumps(value, default=str)
