from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ltbench.config import schema

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.figure import Figure

    from ltbench.config.recipe import Recipe
    from ltbench.data.base import Data
    from ltbench.methods.base import Method
    from ltbench.records.record import Record

Tables = dict[str, "pd.DataFrame"]
Figures = dict[str, "Figure"]


@dataclass(frozen=True)
class Subject:
    """Trained model with its recipe, data and record.

    Args:
        name: short name in figures, unique within a report.
        method: the trained method in evaluation mode, on ``device``.
        recipe: recipe of the training.
        data: data set of the training.
        device: device for computations.
        folder: folder of the run, with checkpoints and logs; ``None`` for a published model.
        record: record of the run, or ``None``.
    """

    name: str
    method: Method
    recipe: Recipe
    data: Data
    device: torch.device
    folder: Path | None = None
    record: Record | None = None


class Diagnostic:
    """Base class of diagnostics: tables of measurements, and figures of these tables.

    ``measure`` evaluates one subject; ``draw`` gets only the tables of one or several subjects, so
    that a comparison is the same figure with more columns or lines.
    """

    title: ClassVar[str]
    shown: ClassVar[str]
    """Content of the figures."""
    computed: ClassVar[str]
    """Definition of the numbers, and departures from the paper."""
    see: ClassVar[str]
    """Interpretation of the figures."""

    class Options(schema.Config):
        """Options of the diagnostic."""

    def __init__(self, options: schema.Config) -> None:
        self.options = options

    def measure(self, subject: Subject) -> Tables:
        """Return the measurements of one subject as long tables, one row per observation.

        Raises:
            UserError: the subject cannot be measured; the message names what is missing.
        """
        raise NotImplementedError

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return figures by name, from the tables of each subject by name."""
        raise NotImplementedError
