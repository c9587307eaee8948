"""Results of a run on validation images, and facts about the choice that they decided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ltbench.digest import read_json
from ltbench.errors import UserError, brief
from ltbench.evaluation.metrics import Metrics
from ltbench.evaluation.summary import DERIVED
from ltbench.files import write_atomic
from ltbench.machine import environment
from ltbench.records.parts import CheckpointFacts, CodeFacts, Name, Part, RecipeFacts

if TYPE_CHECKING:
    from ltbench.config.recipe import Recipe
    from ltbench.data.base import Data

# Files of a run's folder: results in place of a record, and how the run's values were chosen.
VALIDATION, SELECTION = "validation.json", "selection.json"


class ValidationData(Part):
    """The data set's name and the hashes of the images that the run has seen."""

    name: Name
    train_sha256: str = Field(min_length=1)
    val_sha256: str = Field(min_length=1)
    manifest: dict[str, str] = Field({})

    @property
    def split(self) -> str:
        """Hash of the choice of validation images, whatever their size; else of the images."""
        return self.manifest.get("val_index_sha256", self.val_sha256)


class Validation(Part):
    """Results of a finished run on its validation images; it has not seen the test images.

    The parts that it shares with a record have the same names.
    """

    schema_version: Literal[1] = 1
    recipe: RecipeFacts
    dataset: ValidationData
    code: CodeFacts
    seed: int = Field(ge=0, lt=2**63)
    metrics: Metrics
    """Results on the validation images."""
    checkpoint: CheckpointFacts
    wall_seconds: float = Field(ge=0)

    def save(self, path: Path) -> None:
        """Write the results, averages in [0, 1] first.

        Raises:
            UserError: they could not be written.
        """
        tree = {
            "split": "val",
            "images": sum(self.metrics.total),
            **{name: getattr(self.metrics, name) for name in DERIVED},
            "validation": self.model_dump(mode="json"),
        }
        write_atomic(path, (json.dumps(tree, indent=1, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> Validation:
        """Read results that ``save`` wrote.

        Raises:
            UserError: the file is missing, damaged or something else.
        """
        try:
            found = read_json(path)
            return cls.model_validate_json(json.dumps(found["validation"]))
        except (OSError, ValueError, KeyError, TypeError) as error:  # pydantic's is a ValueError
            raise UserError(
                f"{path} does not hold validation results ({brief(str(error))}); delete it, and "
                "the same command makes it again"
            ) from error


def make_validation(
    recipe: Recipe, facts: RecipeFacts, data: Data, metrics: Metrics, weights: Path, sha256: str,
    seconds: float,
) -> Validation:  # fmt: skip
    """Return the results of a run that has just ended in this process.

    Args:
        recipe: what was run.
        facts: about it, as in a record.
        data: what it was run on, with validation images.
        metrics: of the last epoch on the validation images.
        weights: the file of its final weights.
        sha256: hash of that file.
        seconds: wall time spent on the run.
    """
    assert data.val is not None
    return Validation(
        recipe=facts,
        dataset=ValidationData(
            name=data.info.name,
            train_sha256=data.train.fingerprint(),
            val_sha256=data.val.fingerprint(),
            manifest=data.manifest,
        ),
        code=CodeFacts(**environment()["code"]),
        seed=recipe.seed,
        metrics=metrics,
        checkpoint=CheckpointFacts(file=weights.name, sha256=sha256, bytes=weights.stat().st_size),
        wall_seconds=round(seconds, 2),
    )


class CandidateFacts(Part):
    """Values that were tried, and their results on the validation images."""

    values: dict[str, str]
    """Value by key of the recipe, as it would be typed."""
    digest: str = Field(pattern=r"^[0-9a-f]{16}$")
    score: float | None
    """Mean over the seeds, in [0, 1]; null if the loss of a run diverged."""
    by_seed: tuple[float | None, ...]


class SelectionFacts(Part):
    """The choice of a recipe's values by results on validation images.

    The test images were evaluated for the chosen values alone.
    """

    metric: str
    """Measure on the validation images; `ece` is the better the lower, others the higher."""
    search: str
    """Where the candidates come from: grid, or the sampler, its version and seed."""
    split_sha256: str
    """Hash of the choice of validation images: their indices in the training list where they were
    held out from it, else their content."""
    val_fraction: float | None = None
    """Share of the training images that was held out; null for validation images of the data set's
    own."""
    val_images: int = Field(ge=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    candidates: tuple[CandidateFacts, ...] = Field(min_length=1, max_length=10_000)
    """In the order in which they were tried."""
    chosen: int = Field(ge=0)
    """Position of the chosen one."""
    tied: int = Field(ge=1)
    """Candidates with the best score, of which the first was chosen."""
    refit: bool = False
    """Trained again with the chosen values on training and validation images together."""

    @property
    def summary(self) -> str:
        """One line for tables, e.g. ``best of 3 on 39 validation images (balanced)``."""
        count, images = len(self.candidates), "image" if self.val_images == 1 else "images"
        refit = ", trained again on all" if self.refit else ""
        return (
            f"best of {count:,} on {self.val_images:,} validation {images} ({self.metric}){refit}"
        )


def read_selection(folder: Path) -> SelectionFacts | None:
    """Return how the recipe of a run was chosen, if ``write_selection`` was called for its folder.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / SELECTION
    if not path.is_file():
        return None
    try:
        return SelectionFacts.model_validate_json(json.dumps(read_json(path)))
    except (OSError, ValueError) as error:  # pydantic's error is a ValueError
        raise UserError(
            f"{path} is damaged ({brief(str(error))}); delete it and select again"
        ) from error


def write_selection(folder: Path, facts: SelectionFacts) -> None:
    """Write how the recipe of a run was chosen, for its record.

    Raises:
        UserError: it could not be written.
    """
    write_atomic(folder / SELECTION, (facts.model_dump_json(indent=1) + "\n").encode())


def is_candidate(folder: Path) -> bool:
    """Return whether a folder holds a run that was evaluated on validation images only."""
    return (folder / VALIDATION).is_file() and not (folder / "record.json").is_file()
