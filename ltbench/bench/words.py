"""Words of `ltbench bench`, read and checked without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from ltbench.config.files import get_recipe
from ltbench.config.recipe import Recipe, check_device
from ltbench.config.schema import Config
from ltbench.config.words import REST, read_words
from ltbench.errors import UserError
from ltbench.machine import cores

Name = Literal["plain", "sam", "fast", "certified", "exact", "reference", "torchjd"]
STEPS: tuple[Name, ...] = get_args(Name)
"""Pipelines of a step: ``reference`` is the released algorithm, ``torchjd`` that package's Gramian
engine in place of ours; it is left out where the package is not installed."""
ONLY = {"pipelines": "speed", "rounds": "speed", "seeds": "agreement"}


@dataclass(frozen=True)
class Case:
    """The recipe that is trained.

    Args:
        backbone: name of the network.
        part: parameters under multi-objective control.
        classes: classes C of the problem.
        present: classes in the batch; drawn at random if not given.
        batch: images per step.
        pixels: side of an image.
    """

    backbone: str = "resnet32_cifar"
    part: str = "last"
    classes: int = 10
    present: int | None = None
    batch: int = 128
    pixels: int = 32

    @property
    def title(self) -> str:
        """One line that tells cases apart."""
        here = f", {self.present} present" if self.present else ""
        return (
            f"{self.backbone}, {self.part}, {self.classes} classes{here}, "
            f"batch {self.batch}, {self.pixels} px"
        )


CASES = (
    Case(classes=10),
    Case(classes=100),
    Case(classes=10, part="whole"),
    Case(classes=100, part="whole"),
    Case("resnet50", classes=1000, present=30, batch=32, pixels=112),
)


class Plot(Config):
    """Words of `ltbench bench plot`; those of ``Case`` replace the usual cases."""

    what: tuple[Literal["steps", "memory", "traffic", "agreement"], ...] = Field(
        ("steps", "memory", "traffic"), description="measurements; several with commas between"
    )
    pipelines: tuple[Name, ...] = Field(STEPS, description="pipelines; several with commas between")
    threads: int = Field(cores(), ge=1, description="CPU threads")
    rounds: int = Field(7, ge=1, description="turns of the pipelines")
    device: Annotated[str, AfterValidator(check_device)] = Field(
        "cpu", description="auto, cpu, cuda or cuda:N"
    )
    channels_last: bool = Field(True, description="memory format of images and convolutions")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the forward pass")
    model: Path | None = Field(None, description="state of a run: RUN/checkpoints/NAME (agreement)")
    batches: int = Field(4, ge=1, description="batches of the comparison (agreement)")
    data: dict[str, Any] = Field({}, description="options of the run's data set (agreement)")
    backbone: str = Field(Case.backbone, description="network")
    part: str = Field(Case.part, description="parameters under multi-objective control")
    classes: int = Field(Case.classes, ge=1, description="classes of the problem")
    present: int | None = Field(Case.present, ge=1, description="classes in the batch")
    batch: int = Field(Case.batch, ge=1, description="images per step")
    pixels: int = Field(Case.pixels, ge=1, description="side of an image")

    def cases(self) -> tuple[Case, ...]:
        """Return the case that the words name, or the usual ones if they name none."""
        names = [f.name for f in fields(Case)]
        if self.model_fields_set.isdisjoint(names):
            return CASES
        return (Case(**{name: getattr(self, name) for name in names}),)


class Train(Config):
    """Words of `ltbench bench train`; all others are for the recipe."""

    recipe: str = Field(description="name of a recipe, or path of its file")
    what: Literal["speed", "agreement"] = Field("speed", description="measurement")
    pipelines: tuple[Literal["fast", "reference"], ...] = Field(
        ("fast", "reference"), description="pipelines; several with commas between (speed)"
    )
    rounds: int = Field(5, ge=1, description="turns of the pipelines (speed)")
    steps: int = Field(4, ge=1, description="steps of a turn")
    stage: int = Field(0, ge=0, description="stage of the recipe, counted from 0")
    threads: int | None = Field(None, ge=1, description="CPU threads; null is the recipe's")
    seeds: int = Field(1, ge=1, description="seeds to train (agreement)")
    overrides: tuple[str, ...] = Field((), json_schema_extra=REST, description="keys of the recipe")


def read_plot(words: Sequence[str]) -> Plot:
    """Return the words of `ltbench bench plot`.

    Raises:
        UserError: a word or a value is unknown.
    """
    given = read_words(words, Plot)
    if "agreement" in given.what and given.model is None:
        raise UserError("what=agreement needs `model=RUN/checkpoints/NAME`, a state of a run")
    if given.present is not None and given.present > given.classes:
        raise UserError(
            f"`present`: expected at most classes={given.classes}, found {given.present}"
        )
    return given


def read_train(words: Sequence[str], trace: Path | None = None) -> tuple[Train, Recipe]:
    """Return the words of `ltbench bench train` and the recipe that they name.

    Args:
        words: see ``Train``.
        trace: file for a Chrome trace.

    Raises:
        UserError: a word or a value is unknown, or the recipe has no such stage or no data.
    """
    given = read_words(words, Train, rest=[*Recipe.model_fields, "epochs"])
    for key, what in ONLY.items():
        if key in given.model_fields_set and given.what != what:
            raise UserError(f"`{key}` is for what={what}; leave it out of what={given.what}")
    if len(set(given.pipelines)) < len(given.pipelines):
        raise UserError(f"`pipelines`: expected each once, found {', '.join(given.pipelines)}")
    if given.what == "agreement" and not any(w.startswith("epochs=") for w in given.overrides):
        raise UserError(
            "what=agreement trains the recipe under both pipelines: say how long with `epochs=N`"
        )
    if trace is not None and given.what != "speed":
        raise UserError("`--profile` is for what=speed; leave it out")
    if trace is not None and not trace.parent.is_dir():
        raise UserError(f"`--profile`: there is no folder {trace.parent}; make it first")
    threads = () if given.threads is None else (f"run.threads={given.threads}",)
    recipe = get_recipe(given.recipe, *given.overrides, *threads)
    stage = given.stage
    if stage >= len(recipe.stages) or recipe.stages[stage].epochs is None:
        able = [str(i) for i, s in enumerate(recipe.stages) if s.epochs is not None]
        raise UserError(
            f"`stage`: expected a stage of `{recipe.name}` that trains ({', '.join(able)}), "
            f"found {stage}"
        )
    recipe.data.config.ready()  # type: ignore[attr-defined]
    return given, recipe
