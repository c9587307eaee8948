"""Meaning, range, default and value of the keys of a recipe."""

from __future__ import annotations

import ast
import fnmatch
import inspect
import json
import textwrap
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ltbench.config.files import leaves
from ltbench.config.recipe import Choice, Recipe
from ltbench.config.registry import registry as find_registry
from ltbench.config.schema import Config, Tagged
from ltbench.errors import UserError, did_you_mean, visible

SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class Explanation:
    """A key of a recipe.

    Args:
        key: dotted.
        meaning: from the options' documentation; may be empty.
        values: type, range or choices.
        default: as it would be typed; empty if the key is required.
    """

    key: str
    meaning: str
    values: str
    default: str


def explain(recipe: Recipe, patterns: Sequence[str]) -> list[Explanation]:
    """Return the keys of a recipe that match.

    Args:
        recipe: the recipe, whose parts decide which keys there are.
        patterns: keys, the ends of keys (``lr``), what keys begin with (``stages.0.optim``), or
            shell patterns.

    Raises:
        UserError: one matches no key.
    """
    keys = [key for key, _ in leaves(recipe.tree())]
    found: dict[str, Explanation] = {}
    for pattern in patterns:
        matching = [key for key in keys if _matches(key, pattern)]
        if not matching:
            hint = did_you_mean(pattern, [*keys, *(key.rpartition(".")[2] for key in keys)])
            raise UserError(
                f"`explain`: this recipe has no key `{visible(pattern)}`{hint}; "
                f"`ltbench show recipe={recipe.name}` lists all"
            )
        found |= {key: _explained(recipe, key) for key in matching}
    return list(found.values())


def _matches(key: str, pattern: str) -> bool:
    inside = key.startswith(f"{pattern}.") or key.endswith(f".{pattern}")
    return key == pattern or inside or fnmatch.fnmatchcase(key, pattern)


def _explained(recipe: Recipe, key: str) -> Explanation:
    node: Any = recipe
    owner: type[Any] | None = None
    name = ""
    for part in key.split("."):
        if isinstance(node, list | tuple) and part.isdigit():
            node = node[int(part)]
            continue
        if isinstance(node, Choice):
            if part in ("name", "plugin"):
                break  # explained by the field that the part is in
            node = node.config
        if not isinstance(node, Config):
            break  # a key inside a mapping: explained by the whole
        owner, name, node = type(node), part, getattr(node, part, None)
    assert owner is not None
    field = owner.model_fields[name]
    text = field.description or field_docs(owner).get(name, "")
    if isinstance(node, Choice):
        about = find_registry(_registry(field)).summary(node.name)
        text = " ".join(filter(None, (text, f"{node.name}: {about}")))
    default = "" if field.is_required() else _typed(field.get_default(call_default_factory=True))
    return Explanation(key, " ".join(text.replace("``", "`").split()), _values(field), default)


def field_docs(model: type[Any]) -> dict[str, str]:
    """Return the docstrings of a model's fields, those of its bases included, by name."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if cls is Config or not issubclass(cls, Config):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        except (OSError, TypeError, SyntaxError):  # a plugin without source, or of odd indentation
            continue
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                found[field.target.id] = after.value.value
    return found


def _registry(field: FieldInfo) -> str:
    return next((m.registry for m in field.metadata if isinstance(m, Tagged)), "")


def _values(field: FieldInfo) -> str:
    """Return what a field takes."""
    registry = _registry(field)
    if registry:
        return f"`ltbench list {registry.lower()}` names them"
    limits = [
        f"{sign} {value:g}" if isinstance(value, float) else f"{sign} {value}"
        for part in field.metadata
        for mark, sign in SIGNS.items()
        if (value := getattr(part, mark, None)) is not None
    ]
    return f"{_kind(field.annotation)} {', '.join(limits)}".rstrip()


def _kind(annotation: Any) -> str:
    """Return a type in words."""
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        parts = [_kind(a) for a in inner if a is not type(None)]
        return " or ".join([*parts, *(["null"] if type(None) in inner else [])])
    if origin in (tuple, list):
        return "values with commas between"
    if origin is dict:
        return "mapping"
    return names.get(annotation, "options")


def _typed(value: Any) -> str:
    if isinstance(value, Choice):
        return value.name
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except TypeError:
        return ""
