"""Parts of a record: recipe, data set, code, execution, checkpoint, verification."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

NAME = "[A-Za-z0-9_][A-Za-z0-9_.-]*"  # of a file or folder; never climbs out of its place
MAX_DIFFERING = 2  # predictions; other hardware may round a tie the other way
MAX_ECE_DIFFERENCE = 0.05  # percentage points


class Part(BaseModel):
    """Base of all parts of a record: unknown fields are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _real(day: str) -> str:
    datetime.date.fromisoformat(day)
    return day


Date = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$"), AfterValidator(_real)]


class _Named(BaseModel):
    name: str = ""


class _Data(_Named):
    imbalance_ratio: float | None = None


class _Stage(BaseModel):
    epochs: int | None = None
    update: _Named | None = None


class _Run(BaseModel):
    max_steps: int | None = None


class _Tree(BaseModel):
    """What of a resolved recipe, of whatever version, the tables read."""

    data: _Data = _Data()
    backbone: _Named = _Named()
    stages: tuple[_Stage, ...] = ()
    run: _Run = _Run()


def _readable(resolved: dict[str, Any]) -> dict[str, Any]:
    _Tree.model_validate(resolved)
    return resolved


class RecipeFacts(Part):
    """Which recipe, with every value that changes what is computed."""

    name: str
    digest: str = Field(pattern=r"^[0-9a-f]{16}$")
    resolved: Annotated[dict[str, Any], AfterValidator(_readable)]
    target: dict[str, str] | None = None
    """Method and source of the published row that the recipe aims at."""
    overrides: tuple[str, ...] = ()
    """Keys whose values differ from the recipe of this name."""


class DatasetFacts(Part):
    """Which images, by content."""

    name: str
    train_sha256: str = Field(min_length=1)
    test_sha256: str = Field(min_length=1)
    manifest: dict[str, str] = {}


class CodeFacts(Part):
    """Which code; commit and dirty are null outside a checkout."""

    version: str
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{40,64}$")
    dirty: bool | None = None


class ExecutionFacts(Part):
    """On what, and how, the run was executed."""

    device: str
    cpu: str
    gpu: str | None = None
    ranks: tuple[int, ...] = Field(min_length=1)
    """Number of ranks; more than one number if the run was resumed on another number."""
    ranks_from: tuple[str, ...] = ()
    """Where each of these numbers took over: stage, epoch and step, counted from 0."""
    per_rank_batch: tuple[int | None, ...]
    """Images of a step on each rank, by stage; null for a post-hoc stage."""
    precision: str
    deterministic: bool
    libraries: dict[str, str]
    wall_seconds: float = Field(ge=0)
    peak_memory_bytes: int = Field(ge=0)


class CheckpointFacts(Part):
    """The weights that the metrics belong to."""

    file: str = Field(pattern=rf"^({NAME}/)*{NAME}\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)
    repository: str | None = None
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")


class VerificationFacts(Part):
    """That the published weights were evaluated again and gave the recorded results."""

    date: Date
    code: CodeFacts
    device: str
    """Where: the processor's or the GPU's name."""
    differing: int = Field(ge=0, le=MAX_DIFFERING)
    """Predictions that differ: the sum over classes of |difference in correct|."""
    ece_difference: float = Field(ge=0, lt=MAX_ECE_DIFFERENCE)
    """|Difference in calibration error|, in percentage points."""
