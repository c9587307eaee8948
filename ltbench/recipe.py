from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from ltbench.errors import UserError
from ltbench.optim import Optim, Schedule
from ltbench.schema import ADDED, EPOCHS, Config, Tagged
from ltbench.sealing import digest_of, file_sha256

NO_DIGEST: dict[str, Any] = {"digest": False}  # fields that do not change what a run computes
BatchNormPolicy = Literal["local", "sync", "frozen", "statistics"]


@dataclass(frozen=True)
class Choice:
    """A part picked by its registered name, with its own checked options."""

    name: str
    config: Config


class BackboneChoice(Config):
    """Which feature extractor, and from which weights it starts."""

    name: str
    """A registered backbone or any timm name."""
    pretrained: bool = False
    """Start from timm's weights of that name (needs a network or a filled cache)."""
    weights: str | None = None
    """Path of a safetensors file to start from."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm's `create_model`."""


class Stage(Config):
    """One training stage: a method, how long, on which order of images, updated how."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    method: Annotated[Choice, Tagged("METHODS")]
    start: Literal["previous", "fresh"] = "previous"
    """Whether the backbone goes on from the stage before, or begins anew (the stage before then is
    only the method's helper)."""
    reset: tuple[str, ...] = Field((), json_schema_extra=ADDED)
    """Modules whose weights begin anew, with PyTorch's own initial values and a linear classifier
    as `head_init` says: prefixes of names, e.g. backbone.net.layer4.2 of a pretrained network."""
    epochs: int | None = Field(None, ge=1, json_schema_extra=EPOCHS)
    """Passes over the sampler's order; none for a post-hoc method."""
    batch_size: int | None = Field(None, ge=1)
    """Global batch: ranks and micro-batches share it."""
    micro_batch: int | None = Field(None, ge=1)
    """Images that pass through the network together, and share batch statistics where these are
    local; the global batch is cut into batch_size / micro_batch parts that the ranks share, so that
    fewer ranks take more passes to the same step. null: one part per rank."""
    last_batch: Literal["keep", "drop"] = "keep"
    """What to do with the short last batch of an epoch."""
    sampler: Annotated[Choice, Tagged("SAMPLERS")] = Field(
        default="instance", validate_default=True
    )
    optim: Optim | None = None
    schedule: Schedule = Schedule()
    update: Annotated[Choice, Tagged("UPDATES")] = Field(default="plain", validate_default=True)
    freeze: tuple[str, ...] | None = None
    """Parts not trained: name prefixes or stages of the backbone; null is the method's own rule."""
    frozen_bn: Literal["train", "eval", "trained"] | dict[str, Literal["train", "eval"]] | None = (
        None
    )
    """Mode of batch normalisation in frozen parts; trained is train, with scale and shift trained
    all the same; a mapping has modes by the first parts of modules' names, of which the longest
    counts; null is the method's own rule."""
    head_init: Literal["kaiming_normal", "pytorch"] = Field(
        "kaiming_normal", json_schema_extra=ADDED
    )
    """Initial weights of a new linear classifier: as the CIFAR codes of the field have them, or
    `nn.Linear`'s own, of 1 / sqrt(6) the spread."""

    def passes(self, ranks: int) -> int:
        """Return how many micro-batches a step has on each of some ranks.

        Raises:
            UserError: they do not come out even.
        """
        if self.micro_batch is None or self.batch_size is None:
            return 1
        passes, rest = divmod(self.batch_size, self.micro_batch * ranks)
        if rest or not passes:
            raise UserError(
                f"`micro_batch` = {self.micro_batch} does not cut `batch_size` = "
                f"{self.batch_size} into parts that {ranks} rank{'s' * (ranks > 1)} can share "
                "equally; choose a divisor of batch_size / ranks"
            )
        return passes


class RunOptions(Config):
    """How a recipe is executed; only what can change numbers counts in the digest."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", json_schema_extra=NO_DIGEST)
    """auto takes a GPU when there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the forward pass under autocast; weights and solvers stay in full precision."""
    channels_last: bool = True
    """Memory format of images and convolutions."""
    batchnorm: BatchNormPolicy = "local"
    """Batch statistics are those of a pass on one rank (local) or on all (sync); or running
    statistics are used and kept, and scale and shift are not trained (frozen); or local
    statistics and their bookkeeping go on without training scale and shift (statistics). frozen
    outranks a stage's frozen_bn."""
    deterministic: bool = Field(False, json_schema_extra=NO_DIGEST)
    """Deterministic kernels only: a resumed run is bitwise the unbroken one on a GPU too."""
    max_steps: int | None = Field(None, ge=1)
    """Stop each stage after so many steps: a smoke test, marked as incomplete in the record."""
    eval_every: int = Field(0, ge=0, json_schema_extra=NO_DIGEST)
    """Epochs between evaluations for the curves; 0 is a tenth of the stage."""
    save_steps: int | None = Field(None, ge=1, json_schema_extra=NO_DIGEST)
    """Steps between checkpoints inside an epoch; one is saved after each epoch anyway."""
    save_minutes: float | None = Field(10.0, gt=0, json_schema_extra=NO_DIGEST)
    """Minutes after which a checkpoint is written at the latest, while training goes on; null is
    never."""
    timeout_minutes: float = Field(10.0, gt=0, json_schema_extra=NO_DIGEST)
    """How long a rank waits for the others before it gives up."""
    workers: int = Field(2, ge=0, json_schema_extra=NO_DIGEST)
    """Processes that decode images; sets held in memory need none."""
    threads: int = Field(0, ge=0, json_schema_extra=NO_DIGEST)
    """CPU threads of torch; 0 leaves torch's own choice."""


class Diagnose(Config):
    """What is written down of the classes' gradients while training; changes nothing of it."""

    every: int = Field(0, ge=0)
    """Steps from one look to the next, counted over a stage; 0 is never."""
    part: str | tuple[str, ...] = "last"
    """Parameters whose gradients are looked at: last, a stage's name, head, backbone or whole; in
    stages that train nothing of it, whole."""
    gradients: Literal["auto", "exact", "fast"] = "auto"
    """exact is one backward pass per class present; fast one in all, approximate; auto is exact for
    up to 20 classes."""


class Target(Config):
    """The published result that a recipe aims at: a row of `leaderboard/published.csv`."""

    method: str
    source: str


class Recipe(Config):
    """Everything that defines a run: data, backbone, stages."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str = Field(json_schema_extra=NO_DIGEST)
    description: str = Field("", json_schema_extra=NO_DIGEST)
    target: Target | None = Field(None, json_schema_extra=NO_DIGEST)
    note: str = Field("", json_schema_extra=NO_DIGEST)
    """What the literature leaves open and was chosen here."""
    data: Annotated[Choice, Tagged("DATASETS")]
    backbone: BackboneChoice
    stages: tuple[Stage, ...] = Field(min_length=1)
    shot_rule: Literal["strict", "inclusive"] = Field("strict", json_schema_extra=NO_DIGEST)
    """strict: many > 100, medium 20..100, few < 20; inclusive: >= 100, 21..99, <= 20."""
    run: RunOptions = RunOptions()
    diagnose: Diagnose = Field(Diagnose(), json_schema_extra=NO_DIGEST)
    seed: int = Field(0, ge=0, json_schema_extra=NO_DIGEST)
    out: str | None = Field(None, json_schema_extra=NO_DIGEST)
    """Output folder; by default runs/<recipe>-<digest>/seed<seed>."""
    resume: Literal["auto", "never"] = Field("auto", json_schema_extra=NO_DIGEST)
    """auto continues an interrupted run found in the output folder."""

    def tree(self, *, digest_only: bool = False) -> dict[str, Any]:
        """Return the recipe as plain data; optionally without what does not change a run."""
        plain: dict[str, Any] = dump(self, digest_only=digest_only)
        start = self.backbone.weights
        if digest_only and start is not None and Path(start).is_file():
            plain["backbone"]["weights"] = f"sha256:{file_sha256(Path(start))}"
        return plain

    @property
    def digest(self) -> str:
        """Identity of what is computed: a hash of the tree without seed, paths and workers."""
        return digest_of(self.tree(digest_only=True))


def dump(value: Any, *, digest_only: bool = False) -> Any:
    """Return a config, choice or container as plain data for JSON and YAML."""
    if isinstance(value, Choice):
        return {"name": value.name, **dump(value.config, digest_only=digest_only)}
    if isinstance(value, Config):
        plain = {"revision": value.revision} if digest_only and value.revision else {}
        for name, field in type(value).model_fields.items():
            extra = field.json_schema_extra
            counts = extra.get("digest", True) if isinstance(extra, dict) else True
            if digest_only and counts is False:
                continue
            if digest_only and counts == "unless default" and getattr(value, name) == field.default:
                continue
            plain[name] = dump(getattr(value, name), digest_only=digest_only)
        return plain
    if isinstance(value, dict):
        return {k: dump(v, digest_only=digest_only) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [dump(v, digest_only=digest_only) for v in value]
    return value
