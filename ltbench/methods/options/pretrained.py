"""Options of classifiers on a pretrained encoder, which stays frozen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ltbench.config.schema import CONTENT, MOST, Config
from ltbench.methods.options.losses import LogitAdjustment


class HeadInit(Config):
    """Initial directions of a cosine classifier."""

    name: Literal["random", "text", "class_mean"] = "random"
    """random directions; text: those of a table of the class names' text features, brought back by
    the encoder's own projection; class_mean: of the mean features of each class's training images,
    without augmentation."""
    file: str | None = Field(None, json_schema_extra=CONTENT)
    """Table of text features, written by `ltbench data text-table` for these classes and this
    encoder; text only."""
    images: int | None = Field(None, ge=1, le=MOST)
    """Most training images of a class in its mean, drawn at random; null is all; class_mean
    only."""

    @model_validator(mode="after")
    def _own_options(self) -> HeadInit:
        if self.file is not None and self.name != "text":
            raise ValueError(f"file is an option of init `text`, not of `{self.name}`")
        if self.images is not None and self.name != "class_mean":
            raise ValueError(f"images is an option of init `class_mean`, not of `{self.name}`")
        return self


class LIFT(LogitAdjustment):
    """Options of LIFT in addition to those of logit adjustment."""

    scale: float = Field(25.0, gt=0)
    """Scale s of the cosine classifier: logits are s times the cosine."""
    init: HeadInit = HeadInit()
    """Initial directions of the classifier."""


class LIFTPlus(LIFT):
    """Options of LIFT+: those of LIFT."""


class ClassMean(Config):
    """Options of the class-mean classifier."""

    scale: float = Field(25.0, gt=0)
    """Scale s of the cosine classifier, which calibration depends on and accuracy does not."""
    images: int | None = Field(None, ge=1, le=MOST)
    """Most training images of a class in its mean, drawn at random; null is all."""


class ZeroShot(Config):
    """Options of the classifier from text."""

    scale: float = Field(100.0, gt=0)
    """Scale s of the cosine classifier, which calibration depends on and accuracy does not."""
    file: str | None = Field(None, json_schema_extra=CONTENT)
    """Table of text features, written by `ltbench data text-table` for these classes and this
    encoder."""
