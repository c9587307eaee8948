"""Record of a run: what was done, with what, and what came out, in one JSON file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    WrapValidator,
    model_serializer,
    model_validator,
)

from ltbench.digest import canonical, parse_json, read_regular
from ltbench.errors import UserError
from ltbench.evaluation.metrics import Metrics
from ltbench.files import write_atomic
from ltbench.records.parts import (
    CheckpointFacts,
    CodeFacts,
    DatasetFacts,
    Date,
    ExecutionFacts,
    ImportFacts,
    Part,
    RecipeFacts,
    VerificationFacts,
)
from ltbench.records.reading import Shared, as_written, instead
from ltbench.records.sealing import (
    checksums_of,
    joined,
    recipe_digest,
    run_id_of,
    texts_of,
)
from ltbench.records.validation import SelectionFacts

# Files of a run's folder.
RECIPE, WEIGHTS, RECORD, LOCK = "recipe.json", "model.safetensors", "record.json", ".lock"

SCHEMA_VERSION = 1
LARGEST = 16 * 2**20  # bytes of a record; one of 10,000 classes has 300,000
MOST_IMAGES = 10**12  # of a class
# Characters in JSON that steer a terminal or turn text around, newline and tab aside.
_CONTROL = re.compile(
    r"(?<!\\)(?:\\\\)*(\\(?:u00[01].|[bfr])|[\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069])"
)
Origin = Literal["reproduced", "paper", "imported"]
Status = Literal["paper", "imported", "claimed", "reproduced", "verified", "withdrawn"]
UNCHECKED: dict[str, Status] = {"paper": "paper", "imported": "imported", "reproduced": "claimed"}
"""Status that nobody has checked, by origin."""


class Record(Part):
    """One run, one imported model, or one set of per-class counts released with a paper.

    ``run_id`` is a hash of everything but itself, status and verification; ``checksums`` holds
    one hash for each field, so that a damaged file can say what in it is not to be trusted.
    """

    schema_version: Literal[1] = 1
    run_id: str = Field("", pattern=r"^([0-9a-f]{32})?$")
    origin: Origin = "reproduced"
    status: Status = "claimed"
    citation: str | None = None
    """Paper and table, for origin paper."""
    recipe: Annotated[RecipeFacts, WrapValidator(instead)]
    dataset: DatasetFacts
    code: CodeFacts
    seed: int = Field(ge=0, lt=2**63)
    epoch: int | None = Field(ge=0)
    """The epoch reported, counted over all stages; null if `run.max_steps` cut the run, and for an
    imported model."""
    selection: Literal["last", "released"] = "last"
    """The epoch that is reported; that of an imported model was chosen by its authors."""
    selected: SelectionFacts | None = None
    """How the recipe's values were chosen among others on validation images; null if they were
    not."""
    complete: bool = True
    shortened: tuple[str, ...] = ()
    """Options that made the run shorter than its recipe; empty for a complete one."""
    execution: ExecutionFacts
    metrics: Metrics
    checkpoint: CheckpointFacts | None = None
    backbone_weights: str | None = None
    """Source of the initial weights; null is a random start."""
    licence: str = "unspecified"
    submitted_by: str | None = None
    notes: str = ""
    date: Date
    checksums: dict[str, str] = Field({})
    verification: VerificationFacts | None = None
    imported: ImportFacts | None = None
    """The released file, for origin imported; absent in all other records."""

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if self.imported is None:
            content.pop("imported", None)
        return content

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        own = UNCHECKED[self.origin]
        others = set(UNCHECKED.values()) - {own}
        if self.status in others or (own in ("paper", "imported") and self.status == "reproduced"):
            raise ValueError(f"origin {self.origin} cannot have status {self.status}")
        if self.origin == "paper" and self.status != "paper":
            raise ValueError(f"origin paper cannot have status {self.status}")
        released = self.origin == "imported"
        if (self.imported is not None) != released or (self.selection == "released") != released:
            raise ValueError("`imported` and selection released belong to origin imported alone")
        if self.origin == "paper" and (self.checkpoint is not None or not self.citation):
            raise ValueError("origin paper needs a citation and has no checkpoint")
        if self.status == "verified" and self.verification is None:
            raise ValueError("status verified needs a verification")
        if max(max(self.metrics.class_counts), max(self.metrics.total)) >= MOST_IMAGES:
            raise ValueError(f"metrics count more than {MOST_IMAGES:,} images of a class")
        if self.complete == bool(self.shortened):
            raise ValueError("complete must be true exactly when shortened is empty")
        return self

    def sealed(self) -> Record:
        """Return the record with its checksums and run_id computed."""
        content = self.model_dump(mode="json")
        content["checksums"] = checksums_of(content)
        return self.model_copy(
            update={"checksums": content["checksums"], "run_id": run_id_of(content)}
        )

    def save(self, path: Path) -> None:
        """Write the record, one line per field, under a temporary name first.

        Raises:
            UserError: it could not be written.
        """
        write_atomic(path, record_text(self.model_dump(mode="json")))

    @classmethod
    def load(cls, path: Path, shared: Shared | None = None) -> Record:
        """Read a record and check it.

        Args:
            path: its file.
            shared: values of the records that are read with it.

        Raises:
            UserError: it is missing, truncated, foreign or edited.
        """
        content, texts = _opened(path, shared)
        found = _validated(content, texts, shared)
        lines = [line for _, line in found] if isinstance(found, list) else []
        problems = lines or seal_problems(content, texts)
        if isinstance(found, list) or problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise UserError(f"record {path}: {problems[0]}{more}")
        return found


def load_content(path: Path) -> Any:
    """Return the parsed JSON of a record, which is what its hashes are computed from.

    A record of an older version may lack fields that have a default since; who writes it anew must
    write this content, not that of a ``Record``.

    Raises:
        UserError: the file is missing, truncated or no JSON.
    """
    return _opened(path)[0]


def _opened(path: Path, shared: Shared | None = None) -> tuple[Any, dict[str, str]]:
    """Return the parsed JSON of a record's file and the canonical texts of its fields."""
    try:
        return _parsed(read_regular(path, LARGEST), shared)
    except OSError as error:
        raise UserError(f"cannot read the record {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(
            f"record {path} is truncated or not JSON ({error}); run the recipe again or "
            "restore the file"
        ) from error


def read_content(text: bytes) -> Any:
    """Return the parsed JSON of a record.

    Raises:
        ValueError: it is not JSON, too long or too deep, has a key twice, or a number is not
            finite.
    """
    return _parsed(text)[0]


def _parsed(raw: bytes, shared: Shared | None = None) -> tuple[Any, dict[str, str]]:
    """Return the parsed JSON of a record and the canonical texts of its fields."""
    written = as_written(raw, shared)
    if written is not None:
        return written
    content = parse_json(raw, strict=True)
    texts = texts_of(content if isinstance(content, dict) else {"": content})  # refuses 1e999
    joined(texts).encode()  # refuses half of a character
    return content, texts


def record_text(content: Mapping[str, Any]) -> bytes:
    """Return the file of a record: one line per field."""
    lines = [f"{json.dumps(key)}: {canonical(value)}" for key, value in content.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def validate_record(content: Any) -> list[str]:
    """Return the problems of a record's content, one line each.

    Args:
        content: parsed JSON.
    """
    return [line for _, line in schema_problems(content)] or seal_problems(content)


def schema_problems(content: Any) -> list[tuple[str, str]]:
    """Return the violations of the schema: the top field (or nothing) and a line for each.

    Args:
        content: parsed JSON.
    """
    found = _validated(content)
    return found if isinstance(found, list) else []


def _validated(
    content: Any, texts: Mapping[str, str] | None = None, shared: Shared | None = None
) -> Record | list[tuple[str, str]]:
    """Return the record that a content is, or the violations of the schema.

    Args:
        content: parsed JSON.
        texts: of ``texts_of``, if they are at hand.
        shared: values of the records that are read with it.
    """
    if not isinstance(content, dict) or not {"schema_version", "run_id"} <= set(content):
        return [("", "is not a record of ltbench: expected schema_version and run_id at the top")]
    if content["schema_version"] != SCHEMA_VERSION:
        line = (
            f"has schema_version {content['schema_version']!r}, this version reads "
            f"{SCHEMA_VERSION}; use the version of ltbench that wrote it"
        )
        return [("", line)]
    try:
        texts = texts or texts_of(content)
        text = joined(texts)
    except ValueError as error:  # NaN, infinity
        return [("", f"is not JSON: {error}")]
    plain = text.isascii() and not any(c in text for c in "\\\x7f")  # the usual case is quick
    found = None if plain else _CONTROL.search(text)
    if found:
        return [("", f"holds a control character, {found[1]!a}, which no record needs")]
    recipe = (shared or Shared()).recipe(texts.get("recipe", ""))
    if recipe is not None:
        text = joined({**texts, "recipe": "null"})
    try:  # strict: 9.0, "9", true are no counts
        return Record.model_validate_json(text, strict=True, context=recipe)
    except ValidationError as error:
        return [(str(e["loc"][0]) if e["loc"] else "", _explain(e)) for e in error.errors()]


def seal_problems(content: Mapping[str, Any], texts: Mapping[str, str] | None = None) -> list[str]:
    """Return which hashes of a record do not fit its content, one line each.

    They are computed from the file as it stands: fields that it lacks and that have a default
    count as absent, as they were when it was written.

    Args:
        content: parsed JSON; recipe and checksums fit the schema.
        texts: of ``texts_of``, if they are at hand.
    """
    texts = texts or texts_of(content)
    now, then = checksums_of(content, texts), content.get("checksums", {})
    keys = now.keys() | then.keys() if now != then else ()
    edited = sorted(key for key in keys if now.get(key) != then.get(key))
    problems = []
    if edited:
        problems.append(f"was edited after it was written: do not trust `{'`, `'.join(edited)}`")
    elif content.get("run_id") != run_id_of(content, texts):
        problems.append("was edited after it was written: run_id or checksums do not fit the rest")
    stated, found = content["recipe"]["digest"], recipe_digest(content, texts)
    if stated != found:
        problems.append(f"recipe.digest is {stated}, but recipe.resolved gives {found}")
    return problems


def _explain(error: Any) -> str:
    where = ".".join(map(str, error["loc"]))
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"`{where}` is not a field of a record"
    found = "" if error["type"] in ("missing", "value_error") else f", found {error['input']!r:.60}"
    return f"`{where}`: {message}{found}" if where else f"{message}{found}"
