"""The parts of a record: recipe, data set, code, execution, checkpoint."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

NAME = "[A-Za-z0-9_][A-Za-z0-9_.-]*"  # of a file or folder; never climbs out of its place


class Part(BaseModel):
    """Base of all parts of a record: unknown fields are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RecipeFacts(Part):
    """Which recipe, with every value that changes what is computed."""

    name: str
    digest: str = Field(pattern=r"^[0-9a-f]{16}$")
    resolved: dict[str, Any]
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
