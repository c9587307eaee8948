"""Parts of a record: recipe, data set, code, execution, checkpoint, verification."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ltbench.config.schema import NAME, NAME_LENGTH
from ltbench.digest import canonical

MAX_DIFFERING = 2  # predictions; other hardware may round a tie the other way
MAX_ECE_DIFFERENCE = 0.05  # percentage points
MEMORISED, ALIKE = 0.25, 0.1  # gaps in accuracy on training images inside and outside a subset
MOST = 10**9  # epochs, steps, imbalance ratio
MOST_TEXT, MOST_ARGS, MOST_DEPTH = 200_000, 4_000, 20  # characters, levels of a resolved recipe


class Part(BaseModel):
    """Base of all parts of a record: unknown fields are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _real(day: str) -> str:
    datetime.date.fromisoformat(day)
    return day


Date = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$"), AfterValidator(_real)]


Name = Annotated[str, Field(pattern=f"^{NAME}$", max_length=NAME_LENGTH)]
Count = Annotated[int, Field(ge=0, le=MOST)]


class _Named(BaseModel):
    name: str = Field("", max_length=200)


class _Data(_Named):
    imbalance_ratio: float | None = Field(None, gt=0, le=MOST)


class _Backbone(_Named):
    args: dict[str, Any] | None = None
    pretrained: bool = False
    weights: str | None = None


class _Stage(BaseModel):
    epochs: Count | None = None
    batch_size: Count | None = None
    method: _Named | None = None
    update: _Named | None = None


class _Run(BaseModel):
    precision: str | None = None
    max_steps: Count | None = None


class _Tree(BaseModel):
    """The fields of a resolved recipe, of any version, that tables and page read."""

    data: _Data = _Data()
    backbone: _Backbone = _Backbone()
    stages: list[_Stage] = []
    run: _Run = _Run()


def _readable(resolved: dict[str, Any]) -> dict[str, Any]:
    tree = _Tree.model_validate(resolved, strict=True)
    for what, value, most in (
        ("recipe.resolved", resolved, MOST_TEXT),
        ("recipe.resolved.backbone.args", tree.backbone.args, MOST_ARGS),
    ):
        size, depth = len(canonical(value)), _depth(value)
        if size > most or depth > MOST_DEPTH:
            raise ValueError(
                f"`{what}` has {size:,} characters and {depth} levels; at most {most:,} and "
                f"{MOST_DEPTH} are allowed"
            )
    return resolved


def _depth(value: Any) -> int:
    """Return the number of mappings and lists around the innermost value."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, (dict, list, tuple))]:
        depth += 1
        level = [x for v in level for x in (v.values() if isinstance(v, dict) else v)]
    return depth


class RecipeFacts(Part):
    """Name and digest of the recipe, and every value that changes what is computed."""

    name: Name
    digest: str = Field(pattern=r"^[0-9a-f]{16}$")
    resolved: Annotated[dict[str, Any], AfterValidator(_readable)]
    target: dict[str, str] | None = None
    """Method and source of the published row that the recipe aims at."""
    overrides: tuple[str, ...] = ()
    """Keys whose values differ from the recipe of this name."""


class DatasetFacts(Part):
    """The data set's name and the hashes of its images."""

    name: Name
    train_sha256: str = Field(min_length=1)
    test_sha256: str = Field(min_length=1)
    manifest: dict[str, str] = {}


class CodeFacts(Part):
    """Version of the code; commit and dirty are null outside a checkout."""

    version: str
    commit: str | None = Field(None, pattern=r"^[0-9a-f]{40,64}$")
    dirty: bool | None = None


class GpuNumerics(Part):
    """Settings of torch on which a GPU's numbers depend, as they were at the end of the run."""

    tf32_convolutions: bool
    """Convolutions of float32 used TF32, which has 10 bits of mantissa."""
    tf32_matmul: bool
    """Matrix products of float32 used TF32."""
    cudnn_benchmark: bool
    """cuDNN's algorithms were chosen by their time, which differs between runs."""
    deterministic: bool
    """Only kernels that repeat bit for bit were used."""


class ExecutionFacts(Part):
    """Hardware, ranks, precision and cost of a run."""

    device: str
    cpu: str
    gpu: str | None = None
    ranks: tuple[Annotated[int, Field(ge=1, le=MOST)], ...] = Field(min_length=1)
    """Number of ranks; more than one number if the run was resumed on another number."""
    ranks_from: tuple[str, ...] = ()
    """Stage, epoch and step, counted from 0, from which each of these numbers applies."""
    threads: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """CPU threads of torch on rank 0, on which rounding depends; more than one number if the run
    was resumed with another number; empty in older records and if nothing was trained."""
    per_rank_batch: tuple[int | None, ...]
    """Images of a step on each rank, by stage; null for a post-hoc stage."""
    precision: str
    deterministic: bool
    libraries: dict[str, str]
    wall_seconds: float = Field(ge=0)
    peak_memory_bytes: int = Field(ge=0)
    gpu_numerics: GpuNumerics | None = None
    """Absent on the CPU and in older records."""
    jpeg_decoder: Literal["nvjpeg"] | None = None
    """Decoder of JPEGs, on whose rounding pixels depend; absent if it was libjpeg-turbo or
    Pillow on the CPU."""

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        for name in ("gpu_numerics", "jpeg_decoder"):
            if content.get(name) is None:
                content.pop(name, None)
        return content


class CheckpointFacts(Part):
    """The weights that the metrics belong to."""

    file: str = Field(pattern=rf"^({NAME}/)*{NAME}\.safetensors$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)
    repository: str | None = None
    revision: str | None = Field(None, pattern=r"^[0-9a-f]{40}$")


class TrainingImagesFacts(Part):
    """Accuracy on training images of rare classes, inside and outside the frozen subset.

    A model that was trained on the subset knows the images inside it far better.
    """

    classes: int = Field(ge=1)
    """The rarest classes, whose images were taken."""
    inside: int = Field(ge=1)
    inside_correct: int = Field(ge=0)
    outside: int = Field(ge=1)
    outside_correct: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> TrainingImagesFacts:
        if self.inside_correct > self.inside or self.outside_correct > self.outside:
            raise ValueError("more correct images than images")
        return self

    @property
    def gap(self) -> float:
        """Difference of both accuracies, in [-1, 1]."""
        return self.inside_correct / self.inside - self.outside_correct / self.outside

    @property
    def verdict(self) -> str:
        """What the accuracies say, in words."""
        if self.gap >= MEMORISED:
            return "trained on the images of this subset"
        return "trained on other images" if self.gap <= ALIKE else "undecided"


class ImportFacts(Part):
    """The released file that a model was imported from, and what its authors say of it."""

    source: str = Field(min_length=1, max_length=500)
    """Repository and commit, or address; the file's name if nothing else is known."""
    release: Name | None = None
    """Name of a known release, see `ltbench list releases`."""
    file: str = Field(min_length=1, max_length=200)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the file as released."""
    bytes: int = Field(gt=0)
    classifier_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """Of a second file, if the classifier lies in one."""
    family: Name
    """Layout of the file, see `ltbench import --help`."""
    class_order: Literal["official", "by-count", "by-count-ascending"] = "official"
    scale: float | None = Field(None, gt=0)
    """Factor of a cosine classifier, which is in no file: accuracy does not depend on it,
    calibration does."""
    epoch: int | None = Field(None, ge=0, le=MOST)
    """As the file says."""
    chosen_on_test: Literal["yes", "no", "unknown"] = "unknown"
    """The authors kept the epoch with the best accuracy on the test images."""
    claimed: float | None = Field(None, ge=0, le=100)
    """Accuracy that the authors print, in percent."""
    training_images: TrainingImagesFacts | None = None


class VerificationFacts(Part):
    """A second evaluation of the published weights, which gave the recorded results."""

    date: Date
    code: CodeFacts
    device: str
    """Name of the processor or GPU."""
    differing: int = Field(ge=0, le=MAX_DIFFERING)
    """Predictions that differ: the sum over classes of |difference in correct|."""
    ece_difference: float = Field(ge=0, lt=MAX_ECE_DIFFERENCE)
    """|Difference in calibration error|, in percentage points."""
