"""Meaning, range, default and value of the keys of a recipe."""

from __future__ import annotations

import ast
import fnmatch
import inspect
import json
import re
import textwrap
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ltbench.config.recipe import Choice, Recipe
from ltbench.config.registry import registry as find_registry
from ltbench.config.schema import Config, Tagged
from ltbench.config.tree import leaves
from ltbench.errors import UserError, did_you_mean, visible

SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_DOCS: dict[type[Any], dict[str, str]] = {}  # what `field_docs` has read
LARGE = {2**31 - 1: "2^31 - 1", 2**63: "2^63"}


@dataclass(frozen=True)
class Explanation:
    """A key of a recipe.

    Args:
        key: dotted.
        meaning: from the options' documentation; may be empty.
        values: type, range or choices.
        default: as it would be typed; empty if the key is required.
        parts: what the key belongs to, e.g. ``("update=sam",)``; empty for one of every recipe.
    """

    key: str
    meaning: str
    values: str
    default: str
    parts: tuple[str, ...] = ()


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
        matching = [key for key in keys if matches(key, pattern)]
        if not matching:
            hint = did_you_mean(pattern, [*keys, *(key.rpartition(".")[2] for key in keys)])
            raise UserError(
                f"`key`: this recipe has no key `{visible(pattern)}`{hint}; "
                f"`ltbench show recipe={recipe.name}` lists its keys, and `ltbench show "
                f"key={visible(pattern)}` explains a key of any recipe"
            )
        found |= {key: _explained(recipe, key) for key in matching}
    return list(found.values())


def matches(key: str, pattern: str) -> bool:
    """Return whether a pattern is a key, its end, its beginning, or a shell pattern of it."""
    inside = key.startswith(f"{pattern}.") or key.endswith(f".{pattern}")
    return key == pattern or inside or fnmatch.fnmatchcase(key, pattern)


def _explained(recipe: Recipe, key: str) -> Explanation:
    node: Any = recipe
    holder: Any = None
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
        holder, owner, name = node, type(node), part
        node = getattr(node, part, None)
    assert owner is not None
    values = {n: getattr(holder, n) for n, f in owner.model_fields.items() if not f.is_required()}
    found = explained(key, owner, name, values)
    if isinstance(node, Choice):
        about = find_registry(registry_of(owner.model_fields[name])).summary(node.name)
        text = " ".join(filter(None, (found.meaning, f"{node.name}: {about}")))
        found = replace(found, meaning=_one_line(text))
    return found


def explained(
    key: str, owner: type[Any], name: str, values: Mapping[str, Any] | None = None
) -> Explanation:
    """Return the explanation of a field of some options.

    Args:
        key: dotted key that sets it.
        owner: the options.
        name: of the field.
        values: of the other fields, which may decide its default.
    """
    field = owner.model_fields[name]
    text = _sentence(field) or field_docs(owner).get(name, "")
    return Explanation(key, _one_line(text), _values(field), default_of(owner, name, values or {}))


def default_of(owner: type[Any], name: str, values: Mapping[str, Any]) -> str:
    """Return the default of a field as it would be typed; empty if it is required."""
    field = owner.model_fields[name]
    if not field.is_required():
        return _typed(field.get_default(call_default_factory=True))
    implied = owner.complete(dict(values)) if issubclass(owner, Config) else {}
    if name not in implied:
        return ""
    value = implied[name]
    return str(value["name"]) if registry_of(field) and "name" in value else _typed(value)


def _sentence(field: FieldInfo) -> str:
    """Return the text of a command's help, which is a phrase, as a sentence."""
    text = (field.description or "").rstrip(".")
    first = re.split(r"\W", text)[0]
    listed = first in get_args(field.annotation) or text.startswith(f"{first},")
    if not listed:  # choices are written as they are typed
        text = f"{first[:1].upper()}{text[1:]}"
    return text and f"{text}."


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def field_docs(model: type[Any]) -> Mapping[str, str]:
    """Return the documentation of a model's fields, those of its bases included, by name.

    It is the string after a field, or its line under ``Args:`` in the docstring of the class.
    """
    if model not in _DOCS:
        _DOCS[model] = _field_docs(model)
    return _DOCS[model]


def _field_docs(model: type[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if cls is Config or not issubclass(cls, Config):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        except (OSError, TypeError, SyntaxError):  # a plugin without source, or of odd indentation
            continue
        assert isinstance(body, ast.ClassDef)
        _, _, arguments = (ast.get_docstring(body) or "").partition("\nArgs:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", arguments, re.MULTILINE):
            found[name] = text[0].upper() + text[1:]
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


def registry_of(field: FieldInfo) -> str:
    """Return the name of the registry that a field takes a part of; empty if it takes none."""
    return next((m.registry for m in field.metadata if isinstance(m, Tagged)), "")


def _values(field: FieldInfo) -> str:
    """Return what a field takes."""
    registry = registry_of(field)
    if registry:
        return f"`ltbench list {registry.lower()}` names them"
    return _kind(field.annotation, field.metadata)


def _kind(annotation: Any, marks: Sequence[Any] = ()) -> str:
    """Return a type in words, with the range that marks set."""
    names = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0], inner[1:])
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        kinds = [_kind(a, marks) for a in inner if a is not type(None)]
        null = ["null"] * (type(None) in inner)
        return (", or " if marks and null else " or ").join([*kinds, *null])
    if origin in (tuple, list):
        return "values separated by commas"
    if origin is dict:
        return "mapping"
    limits = [
        f"{sign} {LARGE.get(value, f'{value:g}' if isinstance(value, float) else str(value))}"
        for part in _flat(marks)
        for mark, sign in SIGNS.items()
        if annotation in (int, float) and (value := getattr(part, mark, None)) is not None
    ]
    return f"{names.get(annotation, 'options')} {', '.join(limits)}".rstrip()


def _flat(marks: Sequence[Any]) -> list[Any]:
    """Return marks of a type, those inside a pydantic `Field` included."""
    return [m for mark in marks for m in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]


def _typed(value: Any) -> str:
    if isinstance(value, Choice):
        return value.name
    if isinstance(value, str) and value:
        return value
    try:
        return json.dumps(value)
    except TypeError:
        return ""
