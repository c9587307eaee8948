"""Values of words before and after the field that takes them is known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ltbench.config.paths import expanded
from ltbench.config.schema import CONTROL, DEEPEST, Tagged
from ltbench.errors import UserError, brief, visible


class Word(str):
    """Value of a `key=value` word as it was typed; its field decides how it is read."""

    __slots__ = ()

    def read(self) -> Any:
        """Return the value as YAML.

        Raises:
            UserError: it is not YAML.
        """
        from ltbench.config.yaml_text import read_yaml

        try:
            return read_yaml(str(self))
        except UserError as error:
            raise UserError(f"cannot read the value `{visible(self)}` ({error})") from error

    def content(self) -> Any:
        """Return the value as YAML, or its text if it is not YAML."""
        try:
            return self.read()
        except UserError:
            return str(self)


def typed(value: Any, field: FieldInfo) -> Any:
    """Return plain data that a field can check.

    A word is text where the field takes text, the name of a part or a choice, unless it is a list,
    mapping or number that the field takes as well. Elsewhere it is YAML. `null` is None in a field
    whose default is a text, where leaving the word out would not say so.

    Raises:
        UserError: the value is not YAML, or no path that a file system could have.
    """
    if not isinstance(value, Word):
        return value
    text = str(value)
    choices = [o for kind in kinds(field) if get_origin(kind) is Literal for o in get_args(kind)]
    if text in choices:
        return text
    part = any(isinstance(m, Tagged) for m in field.metadata) or takes_name(field)
    several = takes(field, tuple) and not _made_of_models(field)
    if not (part or takes(field, str) or takes(field, Path) or several):
        return value.read()
    content = value.content()
    if isinstance(content, dict) and (part or takes(field, dict)):
        return content
    if isinstance(content, list) and (part or takes(field, tuple)):
        return content
    if isinstance(content, int | float) and takes(field, type(content)):
        return content
    default_text = isinstance(field.default, str) and text == "null"
    if (
        content is None
        and takes(field, type(None))
        and (part or takes(field, tuple) or default_text)
    ):
        return None
    if takes(field, str) or takes(field, Path) or part:
        return as_text(text, field)
    return split_values(text, field)


def plain(value: Any, field: FieldInfo, depth: int = 0) -> Any:
    """Return what a field holds with the words inside it read, and all its texts checked.

    Raises:
        UserError: a word is not YAML, a text has control characters, or the nesting is too deep.
    """
    if depth > DEEPEST:
        raise UserError(f"expected at most {DEEPEST} levels, found more")
    if isinstance(value, Word):
        texts = any(get_args(kind)[1:] == (str,) for kind in kinds(field))  # dict[str, str]
        value = str(value) if texts else value.read()
    if isinstance(value, str) and CONTROL.search(value):
        raise UserError(f"expected text without control characters, found `{visible(value)}`")
    if isinstance(value, dict):
        return {plain(k, field, depth + 1): plain(v, field, depth + 1) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v, field, depth + 1) for v in value]
    return value


def split_values(value: Any, field: FieldInfo) -> Any:
    """Return `a,b` as a list where a field is a tuple.

    Raises:
        UserError: there is nothing before or after a comma.
    """
    if (
        isinstance(value, Word)
        or not takes(field, tuple)
        or not isinstance(value, str | int | float)
    ):
        return value
    parts = [part.strip() for part in str(value).split(",")]
    if "" in parts:
        raise UserError(f"expected values with commas between, found `{visible(str(value))}`")
    item = next(get_args(kind)[0] for kind in kinds(field) if get_origin(kind) is tuple)
    texts = item in (str, Path) or get_origin(item) is Literal
    return [part if texts else Word(part).content() for part in parts]


def contradictions(values: Mapping[str, Any]) -> list[str]:
    """Return a line for every value that contradicts the value of a key above it.

    Args:
        values: by dotted key, e.g. ``{"data": Word("folder"), "data.root": Word("images")}``, where
            a text above a key is the name of a part.
    """
    lines = []
    for key, value in values.items():
        steps = key.split(".")
        for n in range(1, len(steps)):
            above = ".".join(steps[:n])
            if above in values and not _agree(values[above], steps[n:], value):
                lines.append(
                    f"`{visible(above)}` = {_said(values[above])} and `{visible(key)}` = "
                    f"{_said(value)} contradict each other; leave one of them out"
                )
    return lines


def kinds(field: FieldInfo) -> tuple[Any, ...]:
    """Return the types that a field takes."""
    whole = field.annotation
    parts = get_args(whole) if get_origin(whole) not in (tuple, dict, Literal) else ()
    return (whole, *(get_args(p)[0] if get_origin(p) is Annotated else p for p in parts))


def takes(field: FieldInfo, kind: Any) -> bool:
    """Return True if a type, such as `str` or `tuple`, is among those that a field takes."""
    return any(kind in (found, get_origin(found)) for found in kinds(field))


def as_text(text: str, field: FieldInfo) -> Any:
    """Return a text as a field of text or of a path takes it.

    Raises:
        UserError: no file system has such a path.
    """
    return expanded(text) if takes(field, Path) else text


def _agree(whole: Any, steps: Sequence[str], value: Any) -> bool:
    """Return False if a value has something other than ``value`` inside it, at some steps."""
    for step in steps:
        whole = whole.content() if isinstance(whole, Word) else whole
        whole = {"name": whole} if isinstance(whole, str) else whole
        if isinstance(whole, Mapping):
            if step not in whole:
                return True
            whole = whole[step]
        elif isinstance(whole, list | tuple):
            if not re.fullmatch("[0-9]{1,4}", step) or int(step) >= len(whole):
                return True
            whole = whole[int(step)]
        else:
            return False
    found, wanted = (v.content() if isinstance(v, Word) else v for v in (whole, value))
    name = found.get("name") if isinstance(found, Mapping) else found
    return bool(found == wanted or name == wanted)


def _said(value: Any) -> str:
    return visible(value) if isinstance(value, str) else brief(value)


def _made_of_models(field: FieldInfo) -> bool:
    items = (get_args(kind)[0] for kind in kinds(field) if get_origin(kind) is tuple)
    return any(isinstance(item, type) and issubclass(item, BaseModel) for item in items)


def takes_name(field: FieldInfo) -> bool:
    """Return True if a field is made of options that a name stands for."""
    models = (k for k in kinds(field) if isinstance(k, type) and issubclass(k, BaseModel))
    return any("name" in model.model_fields for model in models)
