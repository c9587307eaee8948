"""Options of a choice among values by results on validation images."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ltbench.config.schema import Config

Metric = Literal["balanced", "overall", "many", "medium", "few", "ece"]


class Select(Config):
    """How values are chosen on validation images, before the test images are evaluated once."""

    metric: Metric
    """Measure: mean accuracy of the classes (balanced), accuracy of the images (overall), mean
    accuracy of the classes of a shot group (many, medium, few), or calibration error (ece)."""
    trials: int | None = Field(None, ge=1, le=10_000)
    """Number of values that Optuna tries; null tries all of a grid."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the search."""
    refit: bool = False
    """Train the chosen values again on training and validation images together, and evaluate that
    model."""
