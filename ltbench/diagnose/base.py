from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ltbench import schema

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.figure import Figure

    from ltbench.data.base import Data
    from ltbench.methods.base import Method
    from ltbench.recipe import Recipe
    from ltbench.record import Record

Tables = dict[str, "pd.DataFrame"]
Figures = dict[str, "Figure"]


@dataclass(frozen=True)
class Subject:
    """A trained model and all that is known of it.

    Args:
        name: what figures call it; short, and different for all subjects of a report.
        method: the trained method in evaluation mode, on ``device``.
        recipe: how it was trained.
        data: the data set it was trained on.
        device: where to compute.
        folder: of the run, with its checkpoints and logs; ``None`` for a published model.
        record: of the run, where there is one.
    """

    name: str
    method: Method
    recipe: Recipe
    data: Data
    device: torch.device
    folder: Path | None = None
    record: Record | None = None


class Diagnostic:
    """One question asked of trained models: numbers first, then pictures of these numbers.

    ``measure`` looks at one subject; ``draw`` gets the tables of one or several subjects, so that
    a comparison is the same picture with more columns or lines. Nothing else is read to draw.
    """

    title: ClassVar[str]
    shown: ClassVar[str]
    """What the figures show."""
    computed: ClassVar[str]
    """How the numbers are found, and where this differs from the paper."""
    see: ClassVar[str]
    """What to look for."""

    class Options(schema.Config):
        """Options of the diagnostic."""

    def __init__(self, options: schema.Config) -> None:
        self.options = options

    def measure(self, subject: Subject) -> Tables:
        """Return the numbers of one subject, as long tables: one row per observation.

        Raises:
            UserError: it cannot be measured; says what is missing and what to give.
        """
        raise NotImplementedError

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return figures by name; the subjects' tables are given by the subjects' names."""
        raise NotImplementedError
