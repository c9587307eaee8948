"""Quick reading of record files: what many of them share is parsed and checked once."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from pydantic import ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import from_json
from pydantic_core.core_schema import ValidationInfo

from ltbench.digest import JSON_BYTES, canonical
from ltbench.records.parts import RecipeFacts

LONGEST = 32_768  # characters of the longest text that is remembered
_OWN = ("run_id", "seed", "execution", "metrics", "checkpoint", "checksums")  # in each another one
_LINE = re.compile(r'"([a-z_]{1,40})": (.+)')


class Shared:
    """Values that many records of one reading have in common, parsed and checked once.

    The records share them, so they must not be changed; a reading of its own has its own.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._recipes: dict[str, RecipeFacts | None] = {}

    def value(self, text: str) -> Any:
        """Return the value of a canonical text; errors as ``_value``."""
        if text not in self._values:
            self._values[text] = _value(text)
        return self._values[text]

    def recipe(self, text: str) -> RecipeFacts | None:
        """Return the recipe of a record from its canonical text; ``None`` if it is not sound."""
        if not text or len(text) > LONGEST:
            return None
        if text not in self._recipes:
            with contextlib.suppress(ValidationError):
                self._recipes[text] = RecipeFacts.model_validate_json(text, strict=True)
        return self._recipes.setdefault(text, None)


def as_written(
    raw: bytes, shared: Shared | None = None
) -> tuple[dict[str, Any], dict[str, str]] | None:
    """Return content and canonical texts of a file that ``record_text`` wrote.

    Each field is a line there, its value in canonical form. Any other file is none, even if it
    says the same.

    Args:
        raw: bytes of the file.
        shared: values of the records read with it.

    Returns:
        What ``parse_json`` and ``texts_of`` would find, or ``None``.
    """
    if len(raw) > JSON_BYTES or not (raw.startswith(b"{\n") and raw.endswith(b"\n}\n")):
        return None
    content: dict[str, Any] = {}
    texts: dict[str, str] = {}
    try:
        for line in raw[2:-3].decode().split(",\n"):
            found = _LINE.fullmatch(line)
            if found is None or found[1] in texts:
                return None
            key, text = found.groups()
            if shared is not None and key not in _OWN and len(text) <= LONGEST:
                content[key] = shared.value(text)
            else:
                content[key] = _value(text)
            texts[key] = text
    except ValueError:
        return None
    return content, dict(sorted(texts.items()))


def instead(value: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> RecipeFacts:
    """Return the recipe that the validation's context is, or validate the value."""
    if isinstance(info.context, RecipeFacts):
        return info.context
    found: RecipeFacts = handler(value)
    return found


def _value(text: str) -> Any:
    """Return the value of a canonical text, on which all parsers of JSON agree.

    Raises:
        ValueError: it is not canonical: a key is given twice, a number is not finite ...
    """
    value = from_json(text, allow_inf_nan=False)
    if canonical(value) != text:
        raise ValueError("not canonical")
    return value
