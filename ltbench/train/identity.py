"""Images and classes that a result belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ltbench.config.recipe import Recipe
from ltbench.data.base import Data, Split
from ltbench.errors import UserError
from ltbench.records.record import Record
from ltbench.records.validation import Validation, ValidationData


@dataclass(frozen=True)
class Images:
    """Images of a data set by content, and their classes.

    Args:
        train_sha256: fingerprint of the training split.
        test_sha256: fingerprint of the test split; of the validation split for a run that is
            evaluated on that.
        class_names: name of each class [C].
        class_counts: training images of each class [C].
    """

    train_sha256: str
    test_sha256: str
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]

    def match(self, record: Record) -> bool:
        """Return whether a record is of these images."""
        found = record.dataset
        return (found.train_sha256, found.test_sha256) == (self.train_sha256, self.test_sha256)


def images_of(recipe: Recipe, seen: dict[str, Images]) -> Images:
    """Read the images of a recipe's data set.

    Args:
        recipe: recipe with a data set and its options.
        seen: data sets read before, by their options; is added to.

    Raises:
        UserError: they cannot be read.
    """
    key = f"{recipe.run.evaluate} {recipe.data!r}"
    if key not in seen:
        data: Data = recipe.data.config.load()  # type: ignore[attr-defined]
        prints = data.train.fingerprint(), evaluated(recipe, data).fingerprint()
        seen[key] = Images(*prints, data.info.class_names, data.info.class_counts)
    return seen[key]


def evaluated(recipe: Recipe, data: Data) -> Split:
    """Return the images on which the trained model of a recipe is evaluated.

    Raises:
        UserError: these are validation images, and the data set has none.
    """
    if recipe.run.evaluate == "test":
        return data.test
    if data.val is None:
        raise UserError(
            f"`run.evaluate=val`: {data.info.name} has no validation images here; hold some of its "
            "training images out with data.val_fraction=0.1"
        )
    return data.val


def check_images(
    record: Record | Validation, class_names: Sequence[str] | None, images: Images, origin: str
) -> None:
    """Check that a finished run is of the given images and classes.

    Args:
        record: of the run.
        class_names: of its model.
        images: of the data set given now.
        origin: name of the run in messages.

    Raises:
        UserError: they differ; names the first difference.
    """
    facts = record.dataset
    name, sha256 = (
        ("validation", facts.val_sha256)
        if isinstance(facts, ValidationData)
        else ("test", facts.test_sha256)
    )
    compared = {
        "training images": (facts.train_sha256, images.train_sha256),
        f"{name} images": (sha256, images.test_sha256),
        "class names": (tuple(class_names or ()), images.class_names),
        "class counts": (record.metrics.class_counts, images.class_counts),
    }
    for what, (recorded, now) in compared.items():
        if recorded != now:
            raise UserError(
                f"{origin} holds a finished run on other {what} than those of the data set given "
                f"now (recorded {_short(recorded)}, found {_short(now)}); pass another `out=` for "
                "these, or the data.* options of that run"
            )


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 40 else f"{text[:32]}..."
