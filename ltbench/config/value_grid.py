"""Several values of one key, `stages.0.optim.lr=0.05,0.1`, and ranges of values to search.

A key that takes one value (a number, a name, a choice, true or false) may be given several, with
commas between or as a list in a grid's file; each makes runs of its own. Where a key takes a list,
a comma separates the items of one list, and several lists have brackets: `[160,180],[80,90]`. Text
and paths are never divided. A range is `0.01..0.5`, or `log:0.01..0.5` for uniform logarithms.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ltbench.config import plugins
from ltbench.config.files import read_tree
from ltbench.config.recipe import Recipe
from ltbench.config.registry import registry as find_registry
from ltbench.config.tree import assign_all
from ltbench.config.validation import item_model, model_of, tag_of
from ltbench.config.values import Word, kinds, takes, takes_name
from ltbench.errors import UserError, brief, visible

Layer = Mapping[str, Any]  # values by dotted key
NUMBERS = (int, float)


@dataclass(frozen=True)
class Range:
    """Range of numbers to search.

    Args:
        low: smallest value.
        high: largest value.
        log: whether the logarithm is uniform.
        whole: whether only whole numbers are meant.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Point:
    """One choice of values.

    Args:
        values: chosen value by key, as it would be typed; empty if nothing is varied.
        given: all values that go over the recipe's file, with the chosen ones among them.
    """

    values: Mapping[str, str]
    given: tuple[Layer, ...]


def points(name: str, given: Sequence[Layer]) -> Iterator[Point]:
    """Yield every combination of the values of the keys that have several.

    Args:
        name: of a recipe, or the path of its file.
        given: values by dotted key; what comes later replaces what came before.

    Raises:
        UserError: a list has an empty item, or a key has a range, which only a search takes.
    """
    varied = space(name, given)
    for key, values in varied.items():
        if isinstance(values, Range):
            raise UserError(
                f"`{visible(key)}`: a range such as {_words(given, key)} is searched with "
                "select.metric=balanced select.trials=20; for a grid, give values with commas "
                "between"
            )
    for chosen in itertools.product(*(v for v in varied.values() if not isinstance(v, Range))):
        yield point(given, dict(zip(varied, chosen, strict=True)))


def point(given: Sequence[Layer], values: Layer) -> Point:
    """Return the choice of one value for each key that has several.

    Args:
        given: values by dotted key, several for some.
        values: the chosen ones.
    """
    layers = tuple({k: values.get(k, v) for k, v in layer.items()} for layer in given)
    return Point({key: typed_text(value) for key, value in values.items()}, layers)


def space(name: str, given: Sequence[Layer]) -> dict[str, list[Any] | Range]:
    """Return the keys that have several values, or a range, with these.

    Args:
        name: of a recipe, or the path of its file.
        given: as for ``points``.

    Raises:
        UserError: a list has an empty item, or a range is none.
    """
    several = {key: parts for layer in given for key, value in layer.items()
               if (parts := _parts(value))}  # fmt: skip
    if not several:
        return {}
    tree, origins = read_tree(name)
    for layer in given:
        first = {k: several[k][0] if k in several and _parts(v) else v for k, v in layer.items()}
        assign_all(tree, origins, first)
    found: dict[str, list[Any] | Range] = {}
    with plugins.of_recipe(name, tree):
        for key, parts in several.items():
            last = next(layer[key] for layer in reversed(given) if key in layer)
            field = _field(tree, key)
            if field is None or not _parts(last):
                continue
            values = _values(key, last, parts, field)
            if values:
                found[key] = values
    return found


def typed_text(value: Any) -> str:
    """Return a value as it would be typed."""
    return str(value) if isinstance(value, str) else json.dumps(value)


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest end of each key that names it among them, e.g. ``lr``."""
    found = {}
    for key in keys:
        steps = key.split(".")
        ends = [".".join(steps[-n:]) for n in range(1, len(steps)) if not steps[-n].isdigit()]
        others = [f".{other}" for other in keys if other != key]
        free = (e for e in ends if not any(o.endswith(f".{e}") for o in others))
        found[key] = next(free, key)
    return found


def label(values: Mapping[str, str]) -> str:
    """Return chosen values as a short text, e.g. ``lr=0.05 rho=0.1``."""
    short = short_keys(list(values))
    return " ".join(f"{short[key]}={_rounded(value)}" for key, value in values.items())


def _rounded(text: str) -> str:
    """Return a number with four digits where it has many more."""
    try:
        number = float(text)
    except ValueError:
        return text
    return f"{number:.4g}" if len(text) > 8 else text


def _parts(value: Any) -> list[Any]:
    """Return the values that a word or list may stand for; empty for a single one."""
    if isinstance(value, Word):
        parts = [Word(part.strip()) for part in _split(str(value))]
        if len(parts) == 1 and ".." in value:
            return [Word(str(value).removeprefix("log:").partition("..")[0])]
        return parts if len(parts) > 1 else []
    if isinstance(value, str) and ".." in value:  # a range in a grid's file
        return [value.removeprefix("log:").partition("..")[0]]
    return list(value) if isinstance(value, list | tuple) else []


def _split(text: str) -> list[str]:
    """Cut a text at the commas that are in no brackets and no quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _values(key: str, value: Any, parts: list[Any], field: FieldInfo) -> list[Any] | Range | None:
    """Return the values of a key, or None if they are one value, or a mistake found elsewhere."""
    number = any(takes(field, kind) for kind in NUMBERS) or field.annotation is Any
    if len(parts) == 1 and isinstance(value, str):
        return _range(key, value, field) if number else None
    if not _takes_one(field):
        lists = [v.content() if isinstance(v, Word) else v for v in parts]
        return parts if takes(field, tuple) and all(isinstance(v, list) for v in lists) else None
    if "" in parts:
        raise UserError(
            f"`{visible(key)}`: expected values with commas between, found {brief(value)}"
        )
    return parts


def _range(key: str, text: str, field: FieldInfo) -> Range:
    log = text.startswith("log:")
    ends = text.removeprefix("log:").split("..", 1)
    whole = takes(field, int) and not takes(field, float)
    try:
        low, high = (int(end) if whole else float(end) for end in ends)
    except ValueError:
        low, high = 1, 0
    if not (low < high < float("inf")) or (log and low <= 0):
        numbers = "whole numbers" if whole else "numbers"
        raise UserError(
            f"`{visible(key)}`: expected a range of {numbers}, LOW..HIGH or log:LOW..HIGH with "
            f"0 < LOW, found {brief(text)}"
        )
    return Range(low, high, log, whole)


def _words(given: Sequence[Layer], key: str) -> str:
    return visible(str(next(layer[key] for layer in reversed(given) if key in layer)))


def _takes_one(field: FieldInfo) -> bool:
    """Return whether a field takes one number, name or choice, so that several are a grid."""
    if tag_of(field) or takes_name(field):
        return True
    if any(takes(field, kind) for kind in (tuple, list, dict)):
        return False
    if field.annotation is Any or any(get_origin(kind) is Literal for kind in kinds(field)):
        return True
    return any(takes(field, kind) for kind in (bool, *NUMBERS))


def _field(tree: Mapping[str, Any], key: str) -> FieldInfo | None:
    """Return the field that a dotted key sets, or None if there is none."""
    if key == "epochs":  # of the whole schedule, see ``with_epochs``
        return FieldInfo(annotation=int)
    model: type[BaseModel] | None = Recipe
    field: FieldInfo | None = None
    node: Any = tree
    steps = key.split(".")
    while steps and model is not None:
        step = steps.pop(0)
        if step == "name" and field is not None and not steps:
            return field  # the name of the part that the field takes
        field = model.model_fields.get(step)
        if field is None:
            return None
        node = node.get(step, field.default) if isinstance(node, Mapping) else None
        if isinstance(node, Word):
            node = node.content()
        if not steps:
            return field
        if tag_of(field):
            model = _options(field, node)
        elif (item := item_model(field.annotation)) is not None:
            place = steps.pop(0)
            inside = isinstance(node, list | tuple) and place.isdigit() and int(place) < len(node)
            node, model = (node[int(place)] if inside else None), item
            field = None
        elif takes(field, dict):
            return _inside(field)
        else:
            model = model_of(field.annotation)
    return None


def _options(field: FieldInfo, node: Any) -> type[BaseModel] | None:
    """Return the options of the part that a field holds."""
    name = node.get("name") if isinstance(node, Mapping) else node
    try:
        return find_registry(tag_of(field) or "").options(str(name))
    except UserError:
        return None


def _inside(field: FieldInfo) -> FieldInfo | None:
    """Return the field of a value inside a mapping."""
    kind = next((k for k in kinds(field) if get_origin(k) is dict), None)
    value = get_args(kind)[1] if kind is not None else None
    return None if value is None else FieldInfo(annotation=value)
