"""Words of the command line, `key=value`, read into the options that a command declares.

A command says which words it takes as a `Config`:

    class Check(Config):
        path: Path = Field(json_schema_extra=PLAIN, description="Folder of shards.")
        level: Literal["size", "crc"] = Field("crc", description="How much is checked.")
        workers: int = Field(4, ge=1, le=1024, description="Processes.")

    given = read_words(words, Check)  # ltbench data check SHARDS workers=8
    check(given.path, given.level, workers=given.workers)

A field of text, a path or a choice takes the value as it stands, a tuple takes values with commas
between, a mapping `data` takes `data.KEY=VALUE`, and everything else is read as YAML (`typed`).
One field may be marked `PLAIN`: it takes words without `=`, several of them if it is a tuple. One
may be marked `REST`: it takes the words that no other field does, as they stand if it is a tuple,
by key if it is a mapping. Values in mappings stay `Word`s until the fields that take them are
known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ltbench.config.schema import CONTROL
from ltbench.config.validation import find_mistakes
from ltbench.config.values import Word, as_text, contradictions, kinds, takes, typed
from ltbench.errors import UserError, did_you_mean, visible

C = TypeVar("C", bound=BaseModel)

PLAIN: dict[str, Any] = {"words": "plain"}  # marks the field that takes words without `=`
REST: dict[str, Any] = {"words": "rest"}  # marks the field that takes what no other field does
LONGEST = 30  # characters of a key with its default in the help


def read_words(words: Sequence[str], options: type[C], rest: Collection[str] | None = None) -> C:
    """Return the options that words set.

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
    mappings: dict[str, dict[str, Word]] = {}  # by field, then by the key inside it
    bare: list[str] = []
    others: dict[str, str] = {}  # word by key
    seen: set[str] = set()
    errors: list[str] = []
    for word in words:
        key, equals, text = word.partition("=")
        first, dot, last = key.partition(".")
        problem = _unreadable(word)
        if problem:
            errors.append(problem)
        elif not equals:
            bare.append(word)
        elif key in seen:
            errors.append(f"`{visible(key)}` is given twice; give it once")
        elif key in named:
            values[key] = _value(key, text, named[key], errors)
        elif dot and first in named and takes(named[first], dict):
            mappings.setdefault(first, {})[last] = _filled(key, text, errors)
        elif other and (rest is None or first in rest):
            _filled(key, text, errors)
            others[key] = word
        else:
            errors.append(_unknown(key, [*named, *(rest or ())]))
        seen.add(key)
    if plain and bare:
        if len(bare) > 1 and not takes(fields[plain], tuple):
            errors.append(f"expected one {plain.upper()}, found {visible(', '.join(bare))}")
        values[plain] = bare if takes(fields[plain], tuple) else as_text(bare[0], fields[plain])
    elif bare:
        errors += [f"expected `key=value`, found `{visible(word)}`" for word in bare]
    if other and takes(fields[other], dict):
        mappings[other] = {key: Word(word.partition("=")[2]) for key, word in others.items()}
    elif other:
        values[other] = list(others.values())
    for name, inside in mappings.items():
        whole = values.get(name, {})
        if isinstance(whole, dict):
            dotted = {f"{name}.{key}": value for key, value in inside.items()}
            errors += contradictions({name: whole, **dotted})
            values[name] = {**whole, **inside}
    for name, field in fields.items():
        if field.is_required() and name not in values and not errors:
            errors.append(missing(name.upper() if name == plain else name, words))
    if errors:
        raise UserError("\n".join(errors))
    checked, mistakes = find_mistakes(
        options, {k: {} if k in mappings and isinstance(v, dict) else v for k, v in values.items()}
    )
    if checked is None or mistakes:
        raise UserError("\n".join(mistakes))
    return checked.model_copy(update={name: values[name] for name in mappings})


def missing(key: str, words: Sequence[str]) -> str:
    """Return the message that a key, or a word in capitals, is not among the words."""
    form = key if key.isupper() else f"`{key}=...`"
    hint = did_you_mean(key, [word.partition("=")[0] for word in words])
    return f"expected {form}, found {visible(' '.join(words)) or 'nothing'}{hint}"


def describe_words(options: type[BaseModel]) -> list[tuple[str, str]]:
    """Return the keys that options take, with defaults, and what each means, with its range."""
    plain, other = _marked(options, PLAIN), _marked(options, REST)
    rows = []
    for name, field in options.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name in (plain, other):
            key = name.upper() if name == plain else "KEY=VALUE"
        elif takes(field, dict):
            key = f"{name}.KEY=VALUE"
        else:
            key = f"{name}=..." if field.is_required() else f"{name}={_shown(default)}"
        notes = list(_range(field))
        if len(key) > LONGEST:
            key, notes = f"{name}=", [f"default {_shown(default)}", *notes]
        text = field.description or ""
        rows.append((key, f"{text} [{'; '.join(notes)}]" if notes else text))
    return rows


def parse_words(words: Sequence[str]) -> dict[str, Word]:
    """Return the values of `key=value` words by key.

    Raises:
        UserError: every word without `=` or a value, and every key that is given twice.
    """
    values: dict[str, Word] = {}
    errors: list[str] = []
    for word in words:
        key, equals, text = word.partition("=")
        problem = _unreadable(word)
        if problem or not equals or not key:
            errors.append(problem or f"expected `key=value`, found `{visible(word)}`")
        elif key in values:
            errors.append(f"`{visible(key)}` is given twice; give it once")
        else:
            values[key] = _filled(key, text, errors)
    if errors:
        raise UserError("\n".join(errors))
    return values


def _value(key: str, text: str, field: FieldInfo, errors: list[str]) -> Any:
    """Return the value of a word as plain data that the field can check."""
    try:
        return typed(_filled(key, text, errors), field) if text else _filled(key, text, errors)
    except UserError as error:
        errors.append(f"`{visible(key)}`: {error}")
        return None


def _filled(key: str, text: str, errors: list[str]) -> Word:
    if not text:
        shown = visible(key)
        errors.append(f"`{shown}`: expected a value after `=`, found none; leave out `{shown}=`")
    return Word(text)


def _unreadable(word: str) -> str:
    """Return the message on a word with control characters, or an empty text."""
    if CONTROL.search(word):
        return f"expected words of UTF-8 without control characters, found `{visible(word)}`"
    return ""


def _unknown(key: str, known: Sequence[str]) -> str:
    hint = (
        did_you_mean(key.partition(".")[0], known) or f"; known here: {', '.join(known) or 'none'}"
    )
    return f"`{visible(key)}`: unknown key{hint}"


def _marked(options: type[BaseModel], mark: dict[str, Any]) -> str:
    """Return the name of the field that bears a mark, or an empty one."""
    fields = options.model_fields.items()
    return next((name for name, field in fields if field.json_schema_extra == mark), "")


def _range(field: FieldInfo) -> Iterator[str]:
    """Yield what a field requires of its value."""
    for kind in kinds(field):
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
