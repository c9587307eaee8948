"""Model zoo: names of trained models and where their weights are."""

from __future__ import annotations

import contextlib
import fnmatch
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ltbench.config.registry import natural
from ltbench.config.resources import leaderboard_dir
from ltbench.digest import JSON_BYTES, file_sha256, read_json
from ltbench.errors import UserError, did_you_mean
from ltbench.files import copied
from ltbench.hub.folder import CARD, CONFIG, RECIPE
from ltbench.records.record import RECORD, WEIGHTS
from ltbench.remote import hub as client

INDEX = "zoo.json"
HUB = "hf-hub:"
EXTRA = (RECIPE, RECORD, CARD)  # nice to have beside what is needed to load


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Part):
    """Place of one model: inside the package, on the Hub, or both."""

    repository: str | None = None
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")
    folder: str = Field("", pattern=r"^([A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*)?$")
    """Inside the repository."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of ``model.safetensors``."""
    bytes: int = Field(gt=0)
    embedded: str | None = Field(None, pattern=r"^models/[A-Za-z0-9_][\w.-]*$")
    """Inside the leaderboard's folder."""

    @model_validator(mode="after")
    def _somewhere(self) -> Entry:
        if (self.repository is None) != (self.revision is None):
            raise ValueError("repository and revision go together")
        if self.repository is None and self.embedded is None:
            raise ValueError("neither embedded nor on the Hub")
        return self

    @property
    def place(self) -> str:
        """The place in words."""
        if self.embedded is not None:
            return "in the package"
        return f"{HUB}{self.repository}@{str(self.revision)[:12]}"


class Index(_Part):
    """Content of ``zoo.json``: recipe name -> seed -> entry."""

    schema_version: Literal[1]
    models: dict[str, dict[int, Entry]]


def read_index() -> dict[str, dict[int, Entry]]:
    """Return all entries by name and seed.

    Raises:
        UserError: the index is damaged.
    """
    path = leaderboard_dir() / INDEX
    if not path.is_file():
        return {}
    try:
        return Index.model_validate(read_json(path)).models
    except ValidationError as error:
        first = error.errors()[0]
        where, said = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path} is damaged: `{where}`: {said}; reinstall ltbench") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); reinstall ltbench") from error


def names(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern, in natural order."""
    return sorted((n for n in read_index() if fnmatch.fnmatchcase(n, pattern)), key=natural)


def find(name: str, seed: int = 0) -> Entry:
    """Return the entry of a model.

    Args:
        name: of its recipe.
        seed: of its run.

    Raises:
        UserError: there is none; says which names or seeds are near.
    """
    index = read_index()
    if name not in index:
        raise UserError(
            f"the zoo has no `{name}`{did_you_mean(name, index)}; `ltbench list models "
            f"pretrained=true` shows the names, a model on the Hub is {HUB}org/name[@revision]"
        )
    if seed not in index[name]:
        seeds = ", ".join(map(str, sorted(index[name])))
        raise UserError(f"the zoo has `{name}` for seed {seeds}, not for {seed}")
    return index[name][seed]


def listing(pattern: str = "*") -> list[tuple[str, str]]:
    """Return ``name seed=K`` and, in words, result and place of the models that match.

    Args:
        pattern: shell pattern of a name.
    """
    index = read_index()
    results = _results()
    return [
        (f"{name} seed={seed}", f"{results.get(entry.sha256, '')}{entry.place}")
        for name in names(pattern)
        for seed, entry in sorted(index[name].items())
    ]


def fetch(entry: Entry, *, out: Path | None = None, extra: bool = False) -> Path:
    """Return a folder with the weights and description of a model of the zoo, checked.

    Args:
        entry: of the zoo.
        out: folder to copy it to; by default it is read where it lies.
        extra: fetch recipe, record and card too.

    Raises:
        UserError: it cannot be fetched, or is not what the index says.
    """
    if entry.embedded is None:
        assert entry.repository is not None
        assert entry.revision is not None
        return fetch_repository(
            entry.repository, entry.revision, folder=entry.folder, sha256=entry.sha256,
            size=entry.bytes, out=out, extra=extra,
        )  # fmt: skip
    inside = leaderboard_dir() / entry.embedded
    weights = inside / WEIGHTS
    if not weights.is_file() or file_sha256(weights) != entry.sha256:
        raise UserError(f"{weights} is damaged or missing; reinstall ltbench")
    if out is None:
        return inside
    for path in sorted(p for p in inside.rglob("*") if p.is_file()):
        copied(path, out / path.relative_to(inside))
    return out


def fetch_repository(
    repo: str,
    revision: str = "main",
    *,
    folder: str = "",
    sha256: str | None = None,
    size: int | None = None,
    out: Path | None = None,
    extra: bool = False,
) -> Path:
    """Return a folder with the weights and description of a model on the Hub, checked.

    Args:
        repo: ``org/name``.
        revision: branch, tag or commit.
        folder: inside the repository.
        sha256: of the weights; by default what the Hub says.
        size: of the weights, if it is known.
        out: folder to copy it to; by default it stays in the cache.
        extra: fetch recipe, record and card too.

    Raises:
        UserError: as ``client.download``.
    """
    pinned = client.resolve(repo, revision)
    inside = f"{folder}/" if folder else ""

    def get(name: str, digest: str | None = None, bytes_: int | None = None) -> Path:
        limit = None if name == WEIGHTS else JSON_BYTES
        path = client.download(repo, inside + name, pinned, sha256=digest, size=bytes_, limit=limit)
        return (path if out is None else copied(path, out / inside / name)).parent

    get(CONFIG)
    place = get(WEIGHTS, sha256, size)
    for name in EXTRA if extra else ():
        with contextlib.suppress(client.Missing):
            get(name)
    return place


def parse_address(text: str) -> tuple[str, str]:
    """Split ``hf-hub:org/name[@revision]`` into repository and revision, ``main`` by default.

    Raises:
        UserError: the text is not of this form.
    """
    found = re.fullmatch(rf"{HUB}([^@]+?)(?:@([^@]+))?", text)
    if not found:
        raise UserError(f"`{text}` is no model on the Hub; expected {HUB}org/name[@revision]")
    return found[1], found[2] or "main"


def _results() -> dict[str, str]:
    """Return the results of committed records by the hash of their weights."""
    from ltbench.records.aggregate import percentages
    from ltbench.records.store import records
    from ltbench.records.titles import dataset_title

    return {
        r.checkpoint.sha256: f"{percentages(r)['overall']:.2f} % on "
        f"{dataset_title(r.dataset.name)}, "
        for r in records()
        if r.checkpoint is not None
    }
