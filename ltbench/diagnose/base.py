from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """Base class of diagnostics: tables of measurements, and figures and sentences about them.

    ``measure`` evaluates one subject; ``draw``, ``describe`` and ``compare`` get only the tables,
    so that a comparison of subjects is the same figure with more columns or lines.
    """

    title: ClassVar[str]
    shown: ClassVar[str]
    """Content of the figures."""
    computed: ClassVar[str]
    """Definition of the numbers, and departures from the paper."""
    see: ClassVar[str]
    """Interpretation of the figures."""
    captions: ClassVar[Mapping[str, str]] = {}
    """Caption of each figure by its name: axes, bands and whiskers."""
    headings: ClassVar[Mapping[str, str]] = {}
    """Title of each table by its name."""

    class Options(schema.Config):
        """Options of the diagnostic."""

    def __init__(self, options: schema.Config) -> None:
        self.options = options
        self.report: Callable[[int, int], None] = lambda done, total: None
        """Called with the steps done and their total during a long measurement."""

    def images(self, subject: Subject) -> int:
        """Return the number of images that ``measure`` passes through the model."""
        return len(subject.data.test)

    def estimate(self, subject: Subject, forward: float) -> float:
        """Return the expected duration of ``measure`` in seconds.

        Args:
            subject: as in ``measure``.
            forward: seconds to load an image and pass it through the model.
        """
        return forward * self.images(subject)

    def measure(self, subject: Subject) -> Tables:
        """Return the measurements of one subject as long tables, one row per observation.

        Raises:
            UserError: the subject cannot be measured; the message names what is missing.
        """
        raise NotImplementedError

    def draw(self, results: Mapping[str, Tables]) -> Figures:
        """Return figures by name, from the tables of each subject by name."""
        raise NotImplementedError

    def describe(self, tables: Tables) -> Sequence[str]:
        """Return sentences that say what the tables of one subject show, the main one first."""
        return ()

    def compare(self, results: Mapping[str, Tables]) -> Sequence[str]:
        """Return sentences about differences between subjects, from their tables by name."""
        return ()

    def stepper(self, total: int) -> Callable[[], None]:
        """Return a function to be called after each of the steps of a measurement.

        Args:
            total: number of steps.
        """
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            self.report(done, total)

        self.report(0, total)
        return step
