"""Words of the command line, `key=value`, read into the options that a command declares.

A command says which words it takes as a `Config`:

    class Check(Config):
        path: Path = Field(json_schema_extra=PLAIN, description="Folder of shards.")
        level: Literal["size", "crc"] = Field("crc", description="How much is checked.")
        workers: int = Field(4, ge=1, le=1024, description="Processes.")

    given = read_words(words, Check)  # ltbench data check SHARDS workers=8
    check(given.path, given.level, workers=given.workers)

A field of text, a path or a choice takes the value as it stands, a tuple takes values with commas
between, a mapping `data` takes `data.KEY=VALUE`, and everything else is read as YAML. One field may
be marked `PLAIN`: it takes words without `=`, several of them if it is a tuple. One may be marked
`REST`: it takes the words that no other field does, as they stand if it is a tuple, by key if it is
a mapping.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ltbench.config.validation import find_mistakes
from ltbench.errors import UserError, did_you_mean

try:
    from yaml import CSafeLoader as _SafeLoader
except ImportError:  # PyYAML built without libyaml: the same, seven times as slow
    from yaml import SafeLoader as _SafeLoader  # type: ignore[assignment]

C = TypeVar("C", bound=BaseModel)

PLAIN: dict[str, Any] = {"words": "plain"}  # marks the field that takes words without `=`
REST: dict[str, Any] = {"words": "rest"}  # marks the field that takes what no other field does
LONGEST = 30  # characters of a key with its default in the help


class Loader(_SafeLoader):
    """YAML in which 1e-4 is a number and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping whose keys are all different."""
        keys = [self.construct_object(k, deep=True) for k, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"key `{key}` is given twice")
        return super().construct_mapping(node, deep=deep)


Loader.yaml_implicit_resolvers = copy.deepcopy(_SafeLoader.yaml_implicit_resolvers)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_words(words: Sequence[str], options: type[C], rest: Collection[str] | None = None) -> C:
    """Return the options that words give.

    Args:
        words: as on the command line.
        options: the words that the command takes; see above.
        rest: what the keys of the field marked `REST` may begin with, up to a dot; None is
            anything.

    Raises:
        UserError: every mistake, one line each: a key that is unknown, missing or given twice, or
            a value that the field does not take.
    """
    fields = options.model_fields
    plain, other = _marked(options, PLAIN), _marked(options, REST)
    named = {name: field for name, field in fields.items() if name not in (plain, other)}
    values: dict[str, Any] = {}
    bare: list[str] = []
    others: dict[str, str] = {}  # word by key
    seen: set[str] = set()
    errors: list[str] = []
    for word in words:
        key, equals, text = word.partition("=")
        first, dot, last = key.partition(".")
        if not equals:
            bare.append(word)
        elif key in seen:
            errors.append(f"`{key}` is given twice; give it once")
        elif not text and (key in named or (dot and first in named)):
            errors.append(f"`{key}`: expected a value after `=`, found none; leave out `{key}=`")
        elif key in named:
            values[key] = _value(key, text, named[key], errors)
        elif dot and first in named and _is(named[first], dict):
            values.setdefault(first, {})[last] = _yaml(key, text, errors)
        elif other and (rest is None or first in rest):
            others[key] = word
        else:
            errors.append(_unknown(key, [*named, *(rest or ())]))
        seen.add(key)
    if plain and bare:
        if len(bare) > 1 and not _is(fields[plain], tuple):
            errors.append(f"expected one {plain.upper()}, found {', '.join(bare)}")
        values[plain] = bare if _is(fields[plain], tuple) else _text(bare[0], fields[plain])
    elif bare:
        errors += [f"expected `key=value`, found `{word}`" for word in bare]
    if other:
        as_mapping = _is(fields[other], dict)
        values[other] = (
            {key: _yaml(key, word.partition("=")[2], errors) for key, word in others.items()}
            if as_mapping
            else list(others.values())
        )
    for name, field in fields.items():
        if field.is_required() and name not in values and not errors:
            errors.append(missing(name.upper() if name == plain else name, words))
    if errors:
        raise UserError("\n".join(errors))
    checked, mistakes = find_mistakes(options, values)
    if checked is None or mistakes:
        raise UserError("\n".join(mistakes))
    return checked


def missing(key: str, words: Sequence[str]) -> str:
    """Return the message that a key, or a word in capitals, is not among the words."""
    form = key if key.isupper() else f"`{key}=...`"
    hint = did_you_mean(key, [word.partition("=")[0] for word in words])
    return f"expected {form}, found {' '.join(words) or 'nothing'}{hint}"


def describe_words(options: type[BaseModel]) -> list[tuple[str, str]]:
    """Return the keys that options take, with defaults, and what each means, with its range."""
    plain, other = _marked(options, PLAIN), _marked(options, REST)
    rows = []
    for name, field in options.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name in (plain, other):
            key = name.upper() if name == plain else "KEY=VALUE"
        elif _is(field, dict):
            key = f"{name}.KEY=VALUE"
        else:
            key = f"{name}=..." if field.is_required() else f"{name}={_shown(default)}"
        notes = list(_range(field))
        if len(key) > LONGEST:
            key, notes = f"{name}=", [f"default {_shown(default)}", *notes]
        text = field.description or ""
        rows.append((key, f"{text} [{'; '.join(notes)}]" if notes else text))
    return rows


def parse_word(word: str) -> tuple[str, Any]:
    """Split a `key=value` word; the value is read as YAML.

    Raises:
        UserError: there is no `=`, or the value is not YAML.
    """
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise UserError(f"expected `key=value`, found `{word}`")
    errors: list[str] = []
    value = _yaml(key, text, errors)
    if errors:
        raise UserError(errors[0])
    return key, value


def split_values(value: Any, field: FieldInfo) -> Any:
    """Return `a,b` as a list where a field is a tuple."""
    if not _is(field, tuple) or not isinstance(value, str | int | float):
        return value
    parts = [part.strip() for part in str(value).split(",")]
    item = next(get_args(kind)[0] for kind in _kinds(field) if get_origin(kind) is tuple)
    return [p if item is str or get_origin(item) is Literal else _plain(p) for p in parts if p]


def first_line(error: Exception) -> str:
    """Return what an error of YAML says, on one line."""
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _value(key: str, text: str, field: FieldInfo, errors: list[str]) -> Any:
    """Return the value of a word as plain data that the field can check."""
    if _is(field, str) or _is(field, Path) or _is(field, Literal):
        return _text(text, field)
    if _is(field, tuple) and not text.startswith("["):
        return split_values(text, field)
    return _yaml(key, text, errors)


def _text(text: str, field: FieldInfo) -> Any:
    return Path(text).expanduser() if _is(field, Path) else text


def _yaml(key: str, text: str, errors: list[str]) -> Any:
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        errors.append(f"`{key}`: cannot read the value `{text}` ({first_line(error)})")
        return None


def _plain(text: str) -> Any:
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError:
        return text


def _unknown(key: str, known: Sequence[str]) -> str:
    hint = (
        did_you_mean(key.partition(".")[0], known) or f"; known here: {', '.join(known) or 'none'}"
    )
    return f"`{key}`: unknown key{hint}"


def _marked(options: type[BaseModel], mark: dict[str, Any]) -> str:
    """Return the name of the field that bears a mark, or an empty one."""
    fields = options.model_fields.items()
    return next((name for name, field in fields if field.json_schema_extra == mark), "")


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    """Return the types that a field takes."""
    whole = field.annotation
    return (whole, *(get_args(whole) if get_origin(whole) not in (tuple, dict, Literal) else ()))


def _is(field: FieldInfo, kind: Any) -> bool:
    return any(kind in (found, get_origin(found)) for found in _kinds(field))


def _range(field: FieldInfo) -> Iterator[str]:
    """Yield what a field requires of its value."""
    for kind in _kinds(field):
        if get_origin(kind) is Literal:
            yield " | ".join(str(value) for value in get_args(kind))
    low = next((m.ge for m in field.metadata if hasattr(m, "ge")), None)
    high = next((m.le for m in field.metadata if hasattr(m, "le")), None)
    if low is not None:
        yield f"{low} to {high}" if high is not None else f"from {low}"
    if field.is_required():
        yield "required"


def _shown(value: Any) -> str:
    """Return a default as it would be typed; nothing for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
